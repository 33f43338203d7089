// The device layer on a CPU: a fiber for every thread, one of them at a time, in an order that can be chosen.
//
// What it is stricter in than a GPU: shared memory starts as NaN; an asynchronous copy or store lands as late as
// allowed, or as early; a gate that nobody has made, a store to a block that has ended, a lane outside of its warp's
// collective, a barrier that nobody completes, an address off its alignment or outside of shared memory, and more
// shared memory than the chip has are faults with a message. What it does not model: how tensor cores round their sums,
// bank conflicts, weak ordering between threads (ThreadSanitizer's part).
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"  // and none of the large headers: every kernel is compiled with this one

namespace vrnn::device {

// Whose turn it is. A warp that runs ahead of all others, or behind them, shows a missing barrier, and a block a
// missing wait; chance alone keeps warps in near lockstep; so does one warp of each block for those of a cluster, which
// one warp of the grid does not.
enum class Order { round_robin, ahead, behind, random, one_ahead, one_behind };

struct Schedule {
    Order order = Order::round_robin;
    int warp = 0;       // of each block, that is ahead or behind; -1 - b: all of block b; or the one of the grid
    uint64_t seed = 1;  // of chance
    bool late = true;   // copies land when they are waited for; else at once
    int without = -1;   // the number of a barrier or a wait that is left out; see present
};

struct Shape {
    int blocks, threads;
    size_t shared;        // bytes of a block
    size_t shared_limit;  // and of the chip, for a block
    int cluster = 1;      // blocks of a cluster
};

// Run body as every thread of a grid, all blocks side by side: nothing, or what went wrong, until the next launch.
const char* launch_as(const Shape& shape, const Schedule& schedule, void (*body)(const void*), const void* context);
template <class Body>
const char* launch(const Shape& shape, const Schedule& schedule, const Body& body) {
    return launch_as(shape, schedule, [](const void* context) { (*static_cast<const Body*>(context))(); }, &body);
}

int thread();
int threads();
int block();
int blocks();
inline int lane() {
    return thread() % 32;
}
inline int warp() {
    return thread() / 32;
}
void* shared();

// Whether a barrier or a wait of this number is there: tests leave out one at a time.
bool present(int number);

void barrier();
void barrier(int id, int threads);
void sync_warp();
float shuffle_xor(float value, int mask);

struct Row {  // that one lane brings to ldmatrix; read where the kernel is compiled, so that a sanitizer sees it
    u32 words[4];
};
void check_row(const char* name, const void* row);
void exchange_rows(u32* to, int matrices, const Row& row, bool transposed);
template <int matrices>
void load_matrices_as(u32 (&to)[matrices], const void* row, bool transposed) {
    static_assert(matrices == 2 || matrices == 4, "of ldmatrix");
    Row own{};
    if (lane() < 8 * matrices) {
        check_row(transposed ? "load_matrices_transposed" : "load_matrices", row);
        const u32* const from = static_cast<const u32*>(row);
        for (int i = 0; i < 4; ++i) own.words[i] = from[i];
    }
    exchange_rows(to, matrices, own, transposed);
}
template <int matrices>
void load_matrices(u32 (&to)[matrices], const void* row) {
    load_matrices_as(to, row, false);
}
template <int matrices>
void load_matrices_transposed(u32 (&to)[matrices], const void* row) {
    load_matrices_as(to, row, true);
}

void multiply(Operand kind, float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]);
template <Operand kind>
void mma(float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
    static_assert(kind != Operand::f32, "tensor cores do not multiply float32");
    multiply(kind, sums, left, right);
}

using Land = void (*)(void* to, const void* from);
void copy_async_of(void* to, const void* from, int bytes, Land land);
template <int bytes>
void land(void* to, const void* from) {  // compiled with the kernel as well, for a sanitizer to see
    for (int i = 0; i < bytes / 4; ++i) static_cast<u32*>(to)[i] = static_cast<const u32*>(from)[i];
}
template <int bytes>
void copy_async(void* to, const void* from) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what cp.async copies");
    copy_async_of(to, from, bytes, land<bytes>);
}
void copy_commit();
void copy_wait_for_all_but(int still_out);
template <int still_out>
void copy_wait() {
    copy_wait_for_all_but(still_out);
}

void publish(int* counter, int value);
void wait_for(const int* counter, int at_least);
inline void wait_shortly_for(const int* counter, int at_least) {
    wait_for(counter, at_least);
}

int rank();
int ranks();
void cluster_barrier();
void* peer_of(const void* own, int rank);
template <class T>
T* peer(T* own, int rank) {
    return static_cast<T*>(peer_of(own, rank));
}

void make_gate(Gate* gate, int arrivals);
inline void show_gates() {}  // all see one memory here
void arrive(Gate* gate);
void arrive_and_expect(Gate* gate, int bytes);
void wait_at(Gate* gate, int parity);

void store_async_of(void* to, int rank, const u32* from, int words, Gate* gate, Land land);
template <int words>
void store_async(void* to, int rank, const u32 (&from)[words], Gate* gate) {
    static_assert(words == 1 || words == 2 || words == 4, "what st.async stores");
    store_async_of(to, rank, from, words, gate, land<4 * words>);
}

// ---- numbers, as the hardware rounds them: to nearest, ties to even, but TF32's ties away from zero

inline u32 bits_of(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
inline u16 bf16_bits(float x) {
    const u32 bits = bits_of(x);
    if (x != x) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
u16 f16_bits(float x);
float f16_value(u16 bits);
inline float bf16_value(u16 bits) {
    return float_of(static_cast<u32>(bits) << 16);
}

template <Operand kind>
u32 pack(float low, float high) {
    static_assert(kind == Operand::bf16 || kind == Operand::f16, "of 16 bits");
    const auto bits = [](float x) -> u32 { return kind == Operand::bf16 ? bf16_bits(x) : f16_bits(x); };
    return bits(low) | bits(high) << 16;
}
inline float round_tf32(float x) {
    return x - x == 0 ? float_of((bits_of(x) + 0x1000) & ~0x1fffu) : x;
}

inline float read(const float* from) {
    return *from;
}
inline float read(const Bf16* from) {
    return bf16_value(from->bits);
}
inline float read(const F16* from) {
    return f16_value(from->bits);
}
inline void write(float* to, float value) {
    *to = value;
}
inline void write(Bf16* to, float value) {
    to->bits = bf16_bits(value);
}
inline void write(F16* to, float value) {
    to->bits = f16_bits(value);
}

inline float exp(float x) {
    return __builtin_expf(x);
}
inline float erfc(float x) {
    return __builtin_erfcf(x);
}
inline float expm1(float x) {
    return __builtin_expm1f(x);
}
inline float log(float x) {
    return __builtin_logf(x);
}
inline float log1p(float x) {
    return __builtin_log1pf(x);
}
inline float sqrt(float x) {
    return __builtin_sqrtf(x);
}
inline float tanh(float x) {
    return __builtin_tanhf(x);
}

}  // namespace vrnn::device
