// Gradients of weights and biases: products over all real rows of a batch, in shares of rows that sums.h adds up.
// vrnn::program::Value, operand and buffers come first.
//
// A block has side x side elements of one product, and one share of the rows; which share is how long depends on T and
// B alone. Its warps take side / 4 x side / 2 elements each. Every 32 rows begin with sums of zero, so that errors stay
// small; rows are copied two such groups ahead of those that are multiplied.
#pragma once

#include "device/entry.h"

namespace vrnn {

constexpr int side = program::side, depth = 32, warps = 8, padding = 8, groups = 3;  // of rows in shared memory
constexpr int high = side / 64, wide = side / 16;                                    // tiles of lanes::sums of a warp
constexpr bool small = program::operand == Operand::bf16 || program::operand == Operand::f16;

// dW (rows, columns) += d (rows of the batch, rows)^T times source (rows of the batch, columns); db likewise.
struct Job {
    int d, d_column, d_stride;                 // Call::buffers[d][row * d_stride + d_column]
    int source, source_column, source_stride;  // or none, for a bias alone
    int rows, columns, to, bias;               // into Call::shares; bias or none
};
struct Square {
    int job, row, column;
};

struct Call {
    const program::Value* buffers[program::buffers];  // (steps * batch, stride)
    float* shares;                                    // (shares_in_all, elements)
    const Job* jobs;
    const Square* tiles;  // (tiles_in_all)
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

// 32 rows of d and of the source, some columns each.
struct Group {
    Element d[depth][side + padding], source[depth][side + padding];
};
struct Shared {
    Group of[groups];
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

constexpr int many = 16 / sizeof(Element);
struct alignas(16) Piece {
    Element of[many];
};

// Read 16 bytes of a row that no copy can take, with zeros for what is not there, and store them at once: one by one
// they would be in each other's way.
VRNN_DEVICE void read_piece(Element* to, const program::Value* from, int count) {
    Piece piece;
    VRNN_UNROLL
    for (int i = 0; i < many; ++i) put(piece.of[i], i < count ? device::read(from + i) : 0.0f);
    *reinterpret_cast<Piece*>(to) = piece;
}

// Begin to copy 32 rows from this one on, of the columns of a buffer from this one on, 16 bytes at a time. What does
// not lie so is read at once: of an odd width in 16 bits, every second row begins between the 4 bytes of the least
// copy.
VRNN_DEVICE void copy_rows(const Call& call, Element (&to)[depth][side + padding], int buffer, int column, int stride,
                           int columns, int first, int end) {
    constexpr int in_a_row = side / many;
    for (int i = device::thread(); i < depth * in_a_row; i += warps * 32) {
        const int row = i / in_a_row, own = i % in_a_row * many;
        const int count = real(call, first + row, end) ? columns - own : 0;
        const program::Value* const from =
            call.buffers[buffer] + (count > 0 ? static_cast<i64>(first + row) * stride + column + own : 0);
        const bool whole = count >= many && reinterpret_cast<i64>(from) % 16 == 0;
        if (whole && sizeof(Element) == sizeof(program::Value))
            device::copy_async<16>(&to[row][own], from);
        else
            read_piece(&to[row][own], from, count);
    }
}

// What a warp has: tiles of lanes::sums.
struct Sums {
    float v[high][wide][4];
};

template <Operand kind>
VRNN_DEVICE void multiply_16(const Group& s, Sums& sums, int row, int column) {
    const int lane = device::lane();
    VRNN_UNROLL
    for (int k = 0; k < depth; k += 16) {
        u32 left[high][4];
        for (int m = 0; m < high; ++m)
            device::load_matrices_transposed(left[m],
                                             &s.d[k + lane / 16 * 8 + lane % 8][row + 16 * m + lane / 8 % 2 * 8]);
        for (int pair = 0; pair < wide / 2; ++pair) {
            u32 right[4];
            const int own = column + 16 * pair + lane / 16 * 8;
            device::load_matrices_transposed(right, &s.source[k + lane / 8 % 2 * 8 + lane % 8][own]);
            for (int m = 0; m < high; ++m) {
                device::mma<kind>(sums.v[m][2 * pair], left[m], {right[0], right[1]});
                device::mma<kind>(sums.v[m][2 * pair + 1], left[m], {right[2], right[3]});
            }
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
VRNN_DEVICE void multiply_tf32(const Group& s, Sums& sums, int row, int column) {
    const int lane = device::lane();
    for (int k = 0; k < depth; k += 8) {
        u32 left[high][4];
        for (int m = 0; m < high; ++m)
            for (int i = 0; i < 4; ++i) {
                const lanes::Place p = lanes::left_32(lane, i);
                left[m][i] = Bits{value_of(s.d[k + p.column][row + 16 * m + p.row])};
            }
        for (int tile = 0; tile < wide; ++tile) {
            u32 right[2];
            for (int i = 0; i < 2; ++i) {
                const lanes::Place p = lanes::right_32(lane, i);
                right[i] = Bits{value_of(s.source[k + p.row][column + 8 * tile + p.column])};
            }
            for (int m = 0; m < high; ++m) device::mma<kind>(sums.v[m][tile], left[m], right);
        }
    }
}

VRNN_DEVICE void multiply_f32(const Group& s, Sums& sums, int row, int column) {
    const lanes::Place low = lanes::sums(device::lane(), 0);
    for (int k = 0; k < depth; ++k)
        for (int m = 0; m < high; ++m)
            for (int tile = 0; tile < wide; ++tile)
                for (int i = 0; i < 4; ++i)
                    sums.v[m][tile][i] += value_of(s.d[k][row + 16 * m + low.row + i / 2 * 8]) *
                                          value_of(s.source[k][column + 8 * tile + low.column + i % 2]);
}

template <Operand kind>
VRNN_DEVICE void multiply(const Group& s, Sums& sums, int row, int column) {
    if constexpr (kind == Operand::f32)
        multiply_f32(s, sums, row, column);
    else if constexpr (kind == Operand::tf32)
        multiply_tf32<kind>(s, sums, row, column);
    else
        multiply_16<kind>(s, sums, row, column);
}

VRNN_DEVICE void share(const Call& call, const Square& tile, int first, int end, float* to) {
    Shared& s = *static_cast<Shared*>(device::shared());
    const Job job = call.jobs[tile.job];
    const int row = device::warp() % 4 * (side / 4), column = device::warp() / 4 * (side / 2);
    const int thread = device::thread();
    const bool biased = job.bias >= 0 && tile.column == 0 && thread < side;
    const auto copy = [&](int at) {
        if (first + at * depth < end) {
            Group& g = s.of[at % groups];
            const int from = first + at * depth;
            copy_rows(call, g.d, job.d, job.d_column + tile.row, job.d_stride, job.rows - tile.row, from, end);
            if (job.source >= 0)
                copy_rows(call, g.source, job.source, job.source_column + tile.column, job.source_stride,
                          job.columns - tile.column, from, end);
        }
        device::copy_commit();
    };
    Sums total{};
    float bias = 0;
    for (int at = 0; at < groups - 1; ++at) copy(at);
    for (int at = 0; first + at * depth < end; ++at) {
        if (device::present(0)) device::copy_wait<groups - 2>();
        if (device::present(1)) device::barrier();  // rows of all are there, and nobody reads those before
        copy(at + groups - 1);
        const Group& g = s.of[at % groups];
        if (job.source >= 0) {
            Sums own{};
            multiply<program::operand>(g, own, row, column);
            for (int m = 0; m < high; ++m)
                for (int n = 0; n < wide; ++n)
                    for (int i = 0; i < 4; ++i) total.v[m][n][i] += own.v[m][n][i];
        }
        if (biased) {
            float own = 0;
            for (int k = 0; k < depth; ++k) own += value_of(g.d[k][thread]);
            bias += own;
        }
    }
    for (int m = 0; m < high; ++m)
        for (int n = 0; n < wide; ++n)
            for (int i = 0; i < 4; ++i) {
                const lanes::Place p = lanes::sums(device::lane(), i);
                const int r = tile.row + row + 16 * m + p.row, c = tile.column + column + 8 * n + p.column;
                if (job.source >= 0 && r < job.rows && c < job.columns)
                    to[job.to + r * job.columns + c] = total.v[m][n][i];
            }
    if (biased && tile.row + thread < job.rows) to[job.bias + tile.row + thread] = bias;
}

struct Kernel {
    static constexpr int threads = warps * 32, blocks = side > 64 ? 1 : 2, shared = program::shared_bytes,
                         limit = 227 << 10;
    static_assert(shared == sizeof(Shared), "what kernels.py asks for");
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
