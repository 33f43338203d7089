// The weights as the kernels read them, once per call, and the way back: gradients to where the parameters' are.
#pragma once

#include "gemm.h"
#include "launch.h"
#include "matrix.h"

namespace vrnn::VRNN_ISA {

template <class T>
static void pack_blocks(const Launch<T>& launch, const Stage& s, bool backward) {
    for (const Block& b : s.blocks) {
        const int64_t columns = launch.columns[b.parameter];
        const T* w = launch.parameters[b.parameter] + b.row * columns + b.column;
        if (backward)
            pack<T>(launch.packed_backward + s.packed, s.source.width, s.target.width,
                    {0, s.source.width, b.at, b.rows}, w, 1, columns);
        else
            pack<T>(launch.packed + s.packed, s.target.width, s.source.width, {b.at, b.rows, 0, s.source.width}, w,
                    columns, 1);
    }
}

// Packs every weight once per call: transposed, with the stacked biases, for forward; as it stands for backward. Of
// `shares` threads each packs the stages that begin in its part of what is packed, and the first one all biases,
// which is all there is to do for unpacked ones.
template <class T>
static void pack_weights(const Launch<T>& launch, bool backward, int64_t share, int64_t shares) {
    const Program& program = *launch.program;
    T* biases = launch.packed + program.packed_size;
    const bool with_biases = share == 0 && !backward;
    if (with_biases) __builtin_memset(biases, 0, program.bias_size * sizeof(T));
    for (const Stage& s : program.stages) {
        if (!launch.unpacked && s.packed * shares / program.packed_size == share) pack_blocks(launch, s, backward);
        if (!with_biases) continue;
        for (const Term& t : s.terms)
            for (int64_t i = 0; i < t.rows; ++i)
                biases[s.weights + t.at + i] += launch.parameters[t.parameter][t.row + i];
    }
}

// Adds the shards' weight gradients in order and writes them where the parameters' gradients belong; of `shares`
// threads each a part of every block and term. Every element of every parameter is in exactly one of them. Those of
// unpacked weights are there already.
template <class T>
static void reduce(const Launch<T>& launch, int64_t share, int64_t shares) {
    const Program& program = *launch.program;
    const auto total = [&](int64_t offset, int64_t n, T* to) {
        const T* from = launch.weight_gradients + offset;
        for_vectors<T>(n, [&](int64_t j, int64_t count) {
            Vec<T> sum = load(from + j, count);
            for (int64_t shard = 1; shard < launch.shards.size; ++shard)
                sum += load(from + shard * program.gradient_size + j, count);
            store(to + j, sum, count);
        });
    };
    const int64_t biases = program.gradient_size - program.bias_size;
    for (const Stage& s : program.stages) {
        const auto write = [&](int64_t offset, int64_t n, T* to) {
            launch.reached[s.target.buffer] ? total(offset, n, to) : set_zero(to, n);
        };
        if (!launch.unpacked)
            for (const Block& b : s.blocks) {
                const int64_t columns = launch.columns[b.parameter];
                for (int64_t i = b.rows * share / shares; i < b.rows * (share + 1) / shares; ++i)
                    write(s.gradient + (b.at + i) * gradient_stride(s), s.source.width,
                          launch.d_parameters[b.parameter] + (b.row + i) * columns + b.column);
            }
        for (const Term& t : s.terms) {
            const int64_t from = t.rows * share / shares, n = t.rows * (share + 1) / shares - from;
            write(biases + s.weights + t.at + from, n, launch.d_parameters[t.parameter] + t.row + from);
        }
    }
}

}  // namespace vrnn::VRNN_ISA
