// primitives.h for a GPU: one kernel each.
#include "primitives.h"

using namespace vrnn;

#define KERNEL extern "C" __global__ void

KERNEL mma_tf32(const u32* a, const u32* b, const float* c, float* d) {
    primitives::mma<Operand::tf32>(a, b, c, d);
}
KERNEL mma_bf16(const u32* a, const u32* b, const float* c, float* d) {
    primitives::mma<Operand::bf16>(a, b, c, d);
}
KERNEL mma_f16(const u32* a, const u32* b, const float* c, float* d) {
    primitives::mma<Operand::f16>(a, b, c, d);
}
KERNEL load_matrices_2(const u32* in, u32* out) {
    primitives::load_matrices<2, false>(in, out);
}
KERNEL load_matrices_4(const u32* in, u32* out) {
    primitives::load_matrices<4, false>(in, out);
}
KERNEL load_matrices_transposed_2(const u32* in, u32* out) {
    primitives::load_matrices<2, true>(in, out);
}
KERNEL load_matrices_transposed_4(const u32* in, u32* out) {
    primitives::load_matrices<4, true>(in, out);
}
KERNEL shuffle_xor(const float* in, float* out, int mask) {
    primitives::shuffle_xor(in, out, mask);
}
KERNEL barrier(int* out) {
    primitives::barrier(out);
}
KERNEL named_barrier(int* out) {
    primitives::named_barrier(out);
}
KERNEL copy_async_4(const u32* in, u32* out) {
    primitives::copy_async<4>(in, out);
}
KERNEL copy_async_8(const u32* in, u32* out) {
    primitives::copy_async<8>(in, out);
}
KERNEL copy_async_16(const u32* in, u32* out) {
    primitives::copy_async<16>(in, out);
}
KERNEL publish(int* counter, int* message, int* out) {
    primitives::publish(counter, message, out);
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#    define CLUSTER extern "C" __global__ void __cluster_dims__(4)

CLUSTER exchange_1(int turns, u32* out) {
    primitives::exchange<1>(turns, out);
}
CLUSTER exchange_2(int turns, u32* out) {
    primitives::exchange<2>(turns, out);
}
CLUSTER exchange_4(int turns, u32* out) {
    primitives::exchange<4>(turns, out);
}
CLUSTER read_peer(int* out, int* arrived) {
    primitives::read_peer(out, arrived);
}
#endif
KERNEL convert(const float* in, u32* packed, float* back) {
    primitives::convert(in, packed, back);
}
