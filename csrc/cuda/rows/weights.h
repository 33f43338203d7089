// Gradients of weights and biases: products over all real rows of a batch, in shares of rows that sums.h adds up.
// vrnn::program::Value, operand and buffers come first.
//
// A block has 64 x 64 elements of one product, and one share of the rows; which share is how long depends on T and B
// alone. Its warps take 16 x 32 elements each. Every 32 rows begin with sums of zero, so that errors stay small.
#pragma once

#include "device/entry.h"

namespace vrnn {

constexpr int side = 64, depth = 32, warps = 8, padding = 8;
constexpr bool small = program::operand == Operand::bf16 || program::operand == Operand::f16;

// dW (rows, columns) += d (rows of the batch, rows)^T times source (rows of the batch, columns); db likewise.
struct Job {
    int d, d_column, d_stride;                 // Call::buffers[d][row * d_stride + d_column]
    int source, source_column, source_stride;  // or none, for a bias alone
    int rows, columns, to, bias;               // into Call::shares; bias or none
};
struct Tile64 {
    int job, row, column;
};

struct Call {
    const program::Value* buffers[program::buffers];  // (steps * batch, stride)
    float* shares;                                    // (shares_in_all, elements)
    const Job* jobs;
    const Tile64* tiles;  // (tiles_in_all)
    const i64* lengths;   // (batch), or null
    int blocks, steps, batch, elements, tiles_in_all, shares_in_all;
};

struct Element16 {
    u16 bits;
};
template <bool of_16_bits>
struct Stored {
    using Type = float;
};
template <>
struct Stored<true> {
    using Type = Element16;
};
using Element = Stored<small>::Type;  // TF32 is rounded as it is read, lest a bias is

// 32 rows of d and of the source, 64 columns each.
struct Shared {
    Element d[depth][side + padding], source[depth][side + padding];
};

VRNN_DEVICE void put(float& to, float value) {
    to = value;
}
VRNN_DEVICE float value_of(float e) {
    return e;
}
template <Operand kind = program::operand>
VRNN_DEVICE void put(Element16& to, float value) {
    to.bits = static_cast<u16>(device::pack<kind>(value, 0));
}
VRNN_DEVICE float value_of(Element16 e) {
    if constexpr (program::operand == Operand::bf16) return device::read(reinterpret_cast<const Bf16*>(&e));
    return device::read(reinterpret_cast<const F16*>(&e));
}

// Whether a row of a buffer is real.
VRNN_DEVICE bool real(const Call& call, int row, int end) {
    return row < end && (!call.lengths || row / call.batch < call.lengths[row % call.batch]);
}

// 32 rows from this one on, 64 columns of a buffer from this one on; zeros for what is not there.
VRNN_DEVICE void load(const Call& call, Element (&to)[depth][side + padding], int buffer, int column, int stride,
                      int columns, int first, int end) {
    for (int i = device::thread(); i < depth * side; i += warps * 32) {
        const int row = i / side, own = i % side;
        float value = 0;
        if (own < columns && real(call, first + row, end))
            value = device::read(call.buffers[buffer] + static_cast<i64>(first + row) * stride + column + own);
        put(to[row][own], value);
    }
}

// What a warp has of 16 x 32 elements: four tiles of lanes::sums.
struct Sums {
    float v[4][4];
};

template <Operand kind>
VRNN_DEVICE void multiply_16(const Shared& s, Sums& sums, int row, int column) {
    const int lane = device::lane();
    for (int k = 0; k < depth; k += 16) {
        u32 left[4];
        device::load_matrices_transposed(left, &s.d[k + lane / 16 * 8 + lane % 8][row + lane / 8 % 2 * 8]);
        for (int pair = 0; pair < 2; ++pair) {
            u32 right[4];
            const int own = column + 16 * pair + lane / 16 * 8;
            device::load_matrices_transposed(right, &s.source[k + lane / 8 % 2 * 8 + lane % 8][own]);
            device::mma<kind>(sums.v[2 * pair], left, {right[0], right[1]});
            device::mma<kind>(sums.v[2 * pair + 1], left, {right[2], right[3]});
        }
    }
}

struct Bits {
    float value;
    VRNN_DEVICE operator u32() const {
        const float rounded = device::round_tf32(value);
        return *reinterpret_cast<const u32*>(&rounded);
    }
};
template <Operand kind>
VRNN_DEVICE void multiply_tf32(const Shared& s, Sums& sums, int row, int column) {
    const int lane = device::lane();
    for (int k = 0; k < depth; k += 8) {
        u32 left[4];
        for (int i = 0; i < 4; ++i) {
            const lanes::Place p = lanes::left_32(lane, i);
            left[i] = Bits{value_of(s.d[k + p.column][row + p.row])};
        }
        for (int tile = 0; tile < 4; ++tile) {
            u32 right[2];
            for (int i = 0; i < 2; ++i) {
                const lanes::Place p = lanes::right_32(lane, i);
                right[i] = Bits{value_of(s.source[k + p.row][column + 8 * tile + p.column])};
            }
            device::mma<kind>(sums.v[tile], left, right);
        }
    }
}

VRNN_DEVICE void multiply_f32(const Shared& s, Sums& sums, int row, int column) {
    const lanes::Place low = lanes::sums(device::lane(), 0);
    for (int k = 0; k < depth; ++k)
        for (int tile = 0; tile < 4; ++tile)
            for (int i = 0; i < 4; ++i)
                sums.v[tile][i] += value_of(s.d[k][row + low.row + i / 2 * 8]) *
                                   value_of(s.source[k][column + 8 * tile + low.column + i % 2]);
}

template <Operand kind>
VRNN_DEVICE void multiply(const Shared& s, Sums& sums, int row, int column) {
    if constexpr (kind == Operand::f32)
        multiply_f32(s, sums, row, column);
    else if constexpr (kind == Operand::tf32)
        multiply_tf32<kind>(s, sums, row, column);
    else
        multiply_16<kind>(s, sums, row, column);
}

VRNN_DEVICE void share(const Call& call, const Tile64& tile, int first, int end, float* to) {
    Shared& s = *static_cast<Shared*>(device::shared());
    const Job job = call.jobs[tile.job];
    const int row = device::warp() % 4 * 16, column = device::warp() / 4 * 32, thread = device::thread();
    const bool biased = job.bias >= 0 && tile.column == 0 && thread < side;
    Sums total{};
    float bias = 0;
    for (; first < end; first += depth) {
        if (device::present(0)) device::barrier();  // nobody reads the rows before these
        load(call, s.d, job.d, job.d_column + tile.row, job.d_stride, job.rows - tile.row, first, end);
        if (job.source >= 0)
            load(call, s.source, job.source, job.source_column + tile.column, job.source_stride,
                 job.columns - tile.column, first, end);
        if (device::present(1)) device::barrier();
        if (job.source >= 0) {
            Sums own{};
            multiply<program::operand>(s, own, row, column);
            for (int n = 0; n < 4; ++n)
                for (int i = 0; i < 4; ++i) total.v[n][i] += own.v[n][i];
        }
        if (biased) {
            float own = 0;
            for (int k = 0; k < depth; ++k) own += value_of(s.d[k][thread]);
            bias += own;
        }
    }
    for (int n = 0; n < 4; ++n)
        for (int i = 0; i < 4; ++i) {
            const lanes::Place p = lanes::sums(device::lane(), i);
            const int r = tile.row + row + p.row, c = tile.column + column + 8 * n + p.column;
            if (job.source >= 0 && r < job.rows && c < job.columns) to[job.to + r * job.columns + c] = total.v[n][i];
        }
    if (biased && tile.row + thread < job.rows) to[job.bias + tile.row + thread] = bias;
}

struct Kernel {
    static constexpr int threads = warps * 32, blocks = 2, shared = program::shared_bytes, limit = 48 << 10;
    static_assert(shared == sizeof(Shared), "what launch.py asks for");
    // The rows of a share, whole tiles of them.
    static VRNN_DEVICE int first_row(const Call& call, int own) {
        const int count = call.steps * call.batch;
        const int each = ((count + call.shares_in_all - 1) / call.shares_in_all + depth - 1) / depth * depth;
        return own * each < count ? own * each : count;
    }
    static VRNN_DEVICE void multiply(const Call& call, int tile, int own) {
        float* const to = call.shares + static_cast<i64>(own) * call.elements;
        share(call, call.tiles[tile], first_row(call, own), first_row(call, own + 1), to);
    }
    static VRNN_DEVICE void run(const Call& call) {
        multiply(call, device::block() % call.tiles_in_all, device::block() / call.tiles_in_all);
    }
};

}  // namespace vrnn
