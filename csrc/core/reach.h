// Which buffers a gradient reaches, from the outputs that have one.
#pragma once

#include "program.h"

namespace vrnn {

// Writes one flag for each buffer of the program. `given` says which outputs have a gradient, and `state` whether a
// final state does. The parameters behind all other buffers have a gradient of zero, which a product would not find:
// zero times the infinity of a state that ran away is NaN.
void reach(const Program& program, const PerOutput<bool>& given, bool state, bool* reached);

}  // namespace vrnn
