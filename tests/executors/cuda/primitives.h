// One kernel for each primitive of csrc/cuda/device/device.h: what it reads and writes is what the tests look at. The
// same source compiles for a GPU.
#pragma once

#include "device/device.h"

namespace vrnn::primitives {

// left (32 lanes, 4 registers), right (32, 2) and sums (32, 4) of a warp; out (32, 4)
template <Operand kind>
VRNN_DEVICE void mma(const u32* left, const u32* right, const float* sums, float* out) {
    u32 a[4], b[2];
    float c[4];
    for (int i = 0; i < 4; ++i) a[i] = left[device::lane() * 4 + i], c[i] = sums[device::lane() * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = right[device::lane() * 2 + i];
    device::mma<kind>(c, a, b);
    for (int i = 0; i < 4; ++i) out[device::lane() * 4 + i] = c[i];
}

// in: matrices of 8 rows of 16 bytes, one behind the other; out (32, matrices)
template <int matrices, bool transposed>
VRNN_DEVICE void load_matrices(const u32* in, u32* out) {
    u32* const own = static_cast<u32*>(device::shared());
    for (int i = device::lane(); i < matrices * 32; i += 32) own[i] = in[i];
    device::barrier();
    u32 found[matrices];
    const u32* const row = own + device::lane() % (8 * matrices) * 4;
    if constexpr (transposed)
        device::load_matrices_transposed(found, row);
    else
        device::load_matrices(found, row);
    for (int i = 0; i < matrices; ++i) out[device::lane() * matrices + i] = found[i];
}

// in (threads), out (threads)
VRNN_DEVICE void shuffle_xor(const float* in, float* out, int mask) {
    out[device::thread()] = device::shuffle_xor(in[device::thread()], mask);
}

// Each warp adds 1 to what the warp before it left: out[0] is the number of warps, if barriers hold warps back.
VRNN_DEVICE void barrier(int* out) {
    int* const sum = static_cast<int*>(device::shared());
    if (device::thread() == 0) *sum = 0;
    for (int turn = 0; turn < device::threads() / 32; ++turn) {
        device::barrier();
        if (device::thread() == turn * 32) *sum += turn + 1;
    }
    device::barrier();
    if (device::thread() == 0) *out = *sum;
}

// Pairs of warps meet at a barrier of their own: out (threads) is what the peer wrote.
VRNN_DEVICE void named_barrier(int* out) {
    int* const own = static_cast<int*>(device::shared());
    own[device::thread()] = device::thread() + 1;
    device::barrier(1 + device::warp() / 2, 64);
    out[device::thread()] = own[device::thread() ^ 32];
}

// in (threads, bytes / 4), copied and waited for, all but the second copy; out (2, threads, bytes / 4)
template <int bytes>
VRNN_DEVICE void copy_async(const u32* in, u32* out) {
    constexpr int words = bytes / 4;
    u32* const first = static_cast<u32*>(device::shared()) + device::thread() * words;
    u32* const second = first + device::threads() * words;
    device::copy_async<bytes>(first, in + device::thread() * words);
    device::copy_commit();
    device::copy_async<bytes>(second, in + device::thread() * words);
    device::copy_commit();
    device::copy_wait<1>();
    for (int i = 0; i < words; ++i) {
        out[device::thread() * words + i] = first[i];
        out[(device::threads() + device::thread()) * words + i] = second[i];
    }
    device::copy_wait<0>();
}

// Block 0 writes what all others wait for; counters (1), message (1), out (blocks)
VRNN_DEVICE void publish(int* counter, int* message, int* out) {
    if (device::block() == 0) {
        if (device::thread() == 0) {
            *message = 42;
            device::publish(counter, 7);
        }
    } else {
        device::wait_for(counter, 7);
    }
    if (device::thread() == 0) out[device::block()] = device::block() ? *message : 0;
}

// in (threads), out (threads, 4): packed twice (low, with -in above), and read back; rounded to TF32
VRNN_DEVICE void convert(const float* in, u32* packed, float* back) {
    const int i = device::thread();
    packed[i * 2] = device::pack<Operand::bf16>(in[i], -in[i]);
    packed[i * 2 + 1] = device::pack<Operand::f16>(in[i], -in[i]);
    Bf16 b;
    F16 h;
    device::write(&b, in[i]);
    device::write(&h, in[i]);
    back[i * 3] = device::read(&b);
    back[i * 3 + 1] = device::read(&h);
    back[i * 3 + 2] = device::round_tf32(in[i]);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The first warp of every block of a cluster pushes words to all of them, turn by turn into one of two buffers; the
// second one reads: out (turns, blocks, ranks) is the sum of what each of the ranks sent. Each wait has a number.
template <int words>
VRNN_DEVICE void exchange(int turns, u32* out) {
    struct Shared {
        u32 inbox[2][16][words];
        Gate gates[2];
    };
    Shared& own = *static_cast<Shared*>(device::shared());
    if (device::thread() == 0) {
        for (int i = 0; i < 2; ++i) device::make_gate(&own.gates[i], 1);
        device::show_gates();
    }
    if (device::present(0)) device::cluster_barrier();
    const int ranks = device::ranks(), peer = device::lane();
    for (int turn = 0; turn < turns; ++turn) {
        const int buffer = turn % 2;
        Gate* const gate = &own.gates[buffer];
        if (device::thread() == 0) device::arrive_and_expect(gate, ranks * words * 4);
        if (device::warp() == 0 && peer < ranks) {
            u32 sent[words];
            for (int i = 0; i < words; ++i) sent[i] = 100 * turn + 10 * device::rank() + i;
            device::store_async(own.inbox[buffer][device::rank()], peer, sent, gate);
        }
        if (device::present(1)) device::wait_at(gate, turn / 2 % 2);
        if (device::warp() == 1 && peer < ranks) {
            u32 sum = 0;
            for (int i = 0; i < words; ++i) sum += own.inbox[buffer][peer][i];
            out[(turn * device::blocks() + device::block()) * ranks + peer] = sum;
        }
        if (device::present(2))
            device::barrier();  // all is read before a peer, let on by this block, writes there again
    }
}

// out (blocks) is what the next block of the cluster has written; and how many warps have arrived at a gate.
VRNN_DEVICE void read_peer(int* out, int* arrived) {
    struct Shared {
        int number, count;
        Gate gate;
    };
    Shared& own = *static_cast<Shared*>(device::shared());
    if (device::thread() == 0) {
        own.number = 7 + device::block();
        device::make_gate(&own.gate, device::threads() / 32);
        device::show_gates();
    }
    device::cluster_barrier();
    if (device::lane() == 0) device::arrive(&own.gate);
    device::wait_at(&own.gate, 0);
    if (device::thread() == 0) {
        out[device::block()] = *device::peer(&own.number, (device::rank() + 1) % device::ranks());
        arrived[device::block()] = device::threads() / 32;
    }
    device::cluster_barrier();
}

#endif

}  // namespace vrnn::primitives
