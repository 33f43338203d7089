#define VRNN_ISA avx512
#define VRNN_VECTOR_BYTES 64
#include "kernels.h"

namespace vrnn {
const Isa isa_avx512{"avx512", avx512::kernels<float>(), avx512::kernels<double>()};
}  // namespace vrnn
