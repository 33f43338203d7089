// The device layer on a GPU, sm_80 and later. Not yet run on one: only compiled.
#pragma once

#include "types.h"

namespace vrnn::device {

VRNN_DEVICE int thread() {
    return threadIdx.x;
}
VRNN_DEVICE int threads() {
    return blockDim.x;
}
VRNN_DEVICE int block() {
    return blockIdx.x;
}
VRNN_DEVICE int blocks() {
    return gridDim.x;
}
VRNN_DEVICE int lane() {
    return threadIdx.x & 31;
}
VRNN_DEVICE int warp() {
    return threadIdx.x >> 5;
}

VRNN_DEVICE void* shared() {
    extern __shared__ __align__(128) unsigned char vrnn_shared[];
    return vrnn_shared;
}
VRNN_DEVICE u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

VRNN_DEVICE constexpr bool present(int) {
    return true;
}
VRNN_DEVICE void barrier() {
    __syncthreads();
}
VRNN_DEVICE void barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
VRNN_DEVICE void sync_warp() {
    __syncwarp();
}
VRNN_DEVICE float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(~0u, value, mask);
}

VRNN_DEVICE void load_matrices(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
VRNN_DEVICE void load_matrices(u32 (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}
VRNN_DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
VRNN_DEVICE void load_matrices_transposed(u32 (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}

#define VRNN_MMA(shape, type)                                                           \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))

template <Operand kind>
VRNN_DEVICE void mma(float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
    static_assert(kind != Operand::f32, "tensor cores do not multiply float32");
    if constexpr (kind == Operand::bf16) VRNN_MMA("m16n8k16", "bf16");
    if constexpr (kind == Operand::f16) VRNN_MMA("m16n8k16", "f16");
    if constexpr (kind == Operand::tf32) VRNN_MMA("m16n8k8", "tf32");
}
#undef VRNN_MMA

template <int bytes>
VRNN_DEVICE void copy_async(void* to, const void* from) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what cp.async copies");
    if constexpr (bytes == 16)  // past the first-level cache: a weight or an input is read once
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(bytes)
                     : "memory");
}
VRNN_DEVICE void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int still_out>
VRNN_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(still_out) : "memory");
}

VRNN_DEVICE void publish(int* counter, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
// What nobody publishes ends the launch, after about so long: the driver then says that it failed. docs/pages/gpu.md
// tells it.
constexpr u32 patience = 10'000'000;                       // microseconds
constexpr u32 first_nap = 20, last_nap = 320, look = 600;  // nanoseconds; of a look and what else a round takes
VRNN_DEVICE void wait_for(const int* counter, int at_least, u32 longest_nap = last_nap) {
    const u32 most_looks = patience / (longest_nap + look) * 1000;
    u32 nap = first_nap;
    for (u32 looked = 0; looked < most_looks; ++looked) {
        int found;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
        if (found >= at_least) return;
        __nanosleep(nap);
        nap = 2 * nap < longest_nap ? 2 * nap : longest_nap;
    }
    __trap();
}
VRNN_DEVICE void wait_shortly_for(const int* counter, int at_least) {
    wait_for(counter, at_least, first_nap);
}

// Of a cluster: a kernel for an older chip names none of these, or its assembler says so.
VRNN_DEVICE int rank() {
    int found;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(found));
    return found;
}
VRNN_DEVICE int ranks() {
    int found;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(found));
    return found;
}
VRNN_DEVICE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
template <class T>
VRNN_DEVICE T* peer(T* own, int rank) {
    T* found;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(found) : "l"(own), "r"(rank));
    return found;
}
VRNN_DEVICE u32 peer_address(const void* own, int rank) {
    u32 found;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(shared_address(own)), "r"(rank));
    return found;
}

VRNN_DEVICE void make_gate(Gate* gate, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(gate)), "r"(arrivals) : "memory");
}
VRNN_DEVICE void show_gates() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
VRNN_DEVICE void arrive(Gate* gate) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(gate)) : "memory");
}
VRNN_DEVICE void arrive_and_expect(Gate* gate, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(gate)), "r"(bytes)
                 : "memory");
}
VRNN_DEVICE void wait_at(Gate* gate, int parity) {
    asm volatile(
        "{\n\t.reg .pred over;\n\t"
        "again_%=:\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%0], %1;\n\t"
        "@!over bra again_%=;\n\t}" ::"r"(shared_address(gate)),
        "r"(parity)
        : "memory");
}

template <int words>
VRNN_DEVICE void store_async(void* to, int rank, const u32 (&from)[words], Gate* gate) {
    static_assert(words == 1 || words == 2 || words == 4, "what st.async stores");
    const u32 there = peer_address(to, rank), counts = peer_address(gate, rank);
    if constexpr (words == 1)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(there),
                     "r"(from[0]), "r"(counts)
                     : "memory");
    if constexpr (words == 2)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1, %2}, [%3];" ::"r"(there),
                     "r"(from[0]), "r"(from[1]), "r"(counts)
                     : "memory");
    if constexpr (words == 4)
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
            "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3]), "r"(counts)
            : "memory");
}

template <Operand kind>
VRNN_DEVICE u32 pack(float low, float high) {
    static_assert(kind == Operand::bf16 || kind == Operand::f16, "of 16 bits");
    u32 both;
    if constexpr (kind == Operand::bf16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
VRNN_DEVICE float round_tf32(float x) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

VRNN_DEVICE float read(const float* from) {
    return *from;
}
VRNN_DEVICE float read(const Bf16* from) {
    return __uint_as_float(static_cast<u32>(from->bits) << 16);
}
VRNN_DEVICE float read(const F16* from) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(from->bits));
    return value;
}
VRNN_DEVICE void write(float* to, float value) {
    *to = value;
}
VRNN_DEVICE void write(Bf16* to, float value) {
    to->bits = static_cast<u16>(pack<Operand::bf16>(value, 0));
}
VRNN_DEVICE void write(F16* to, float value) {
    to->bits = static_cast<u16>(pack<Operand::f16>(value, 0));
}

VRNN_DEVICE float exp(float x) {
    return expf(x);
}
VRNN_DEVICE float erfc(float x) {
    return erfcf(x);
}
VRNN_DEVICE float expm1(float x) {
    return expm1f(x);
}
VRNN_DEVICE float log(float x) {
    return logf(x);
}
VRNN_DEVICE float log1p(float x) {
    return log1pf(x);
}
VRNN_DEVICE float sqrt(float x) {
    return sqrtf(x);
}
VRNN_DEVICE float tanh(float x) {
    return tanhf(x);
}

}  // namespace vrnn::device
