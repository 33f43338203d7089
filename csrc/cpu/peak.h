// The most floating-point work that one core of this machine does.
#pragma once

#include <string>

namespace vrnn {

// GFLOP/s of float32 multiply-adds on one thread, over at least `seconds`, with the vectors of the given instruction
// set (a name from usable_isas()). Throws std::invalid_argument for another name.
double fma_peak(const std::string& isa, double seconds);

}  // namespace vrnn
