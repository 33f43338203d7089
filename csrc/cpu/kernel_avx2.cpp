#define VRNN_ISA avx2
#define VRNN_VECTOR_BYTES 32
#include "kernels.h"

namespace vrnn {
const Isa isa_avx2{"avx2", avx2::kernels<float>(), avx2::kernels<double>()};
}  // namespace vrnn
