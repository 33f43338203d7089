// What both sides of the device layer are written in. No header of the standard library: NVRTC has none.
#pragma once

#if defined(__CUDACC__)
#    define VRNN_DEVICE __device__ __forceinline__
#    define VRNN_BOTH __host__ __device__
#    define VRNN_UNROLL _Pragma("unroll")
#    define VRNN_UNROLL_BY_2 _Pragma("unroll 2")
#    define VRNN_UNROLL_NOT _Pragma("unroll 1")
#else
#    define VRNN_DEVICE inline
#    define VRNN_BOTH
#    define VRNN_UNROLL
#    define VRNN_UNROLL_BY_2
#    define VRNN_UNROLL_NOT
#endif

namespace vrnn {

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;

// What a product reads: its operands are rounded to this, its sums are float32.
enum class Operand { f32, tf32, bf16, f16 };

// An mbarrier: opaque, in shared memory.
struct alignas(8) Gate {
    u32 opaque[2];
};

// A number of 16 bits in memory; arithmetic is float32.
struct Bf16 {
    u16 bits;
};
struct F16 {
    u16 bits;
};

}  // namespace vrnn
