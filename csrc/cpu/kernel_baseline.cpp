#define VRNN_ISA baseline
#define VRNN_VECTOR_BYTES 16
#include "kernels.h"

namespace vrnn {
const Isa isa_baseline{"baseline", baseline::kernels<float>(), baseline::kernels<double>()};
}  // namespace vrnn
