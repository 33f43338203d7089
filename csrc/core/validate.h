// What a decoded program must be before a kernel may run it.
#pragma once

#include <cstdint>

#include "program.h"

namespace vrnn {

// Throws std::invalid_argument unless every width is what the loops over a stage's columns take it for, and every
// stage is where a walk looks for it.
void validate(const Program& program);

// How many dimensions, 1 or 2, a parameter has, and its rows and columns, 1 of a bias.
struct Extent {
    int64_t dimensions, rows, columns;
};

// Throws std::invalid_argument unless each of `count` parameters is as large as what the program reads of it. One that
// generates may leave some out.
void validate(const Program& program, const Extent* parameters, int64_t count);

}  // namespace vrnn
