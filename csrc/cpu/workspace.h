// Where a shard's matrices are: in what forward saves, or in scratch, chunk of time by chunk of time.
#pragma once

#include "gemm.h"
#include "launch.h"
#include "matrix.h"

namespace vrnn::VRNN_ISA {

constexpr int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// [begin, end) of one chunk's time steps and, beside them, of its rows.
struct Chunk {
    int64_t step, end_step, row, end_row;
    int64_t rows() const { return end_row - row; }
};

// Whole steps, at least one, and at most chunk_rows rows if one step has not more.
inline Chunk next_chunk(const Shard& shard, int64_t step) {
    Chunk chunk{step, step + 1, shard.offset[step], shard.offset[step + 1]};
    while (chunk.end_step < shard.steps && shard.offset[chunk.end_step + 1] - chunk.row <= tuning::chunk_rows)
        chunk.end_row = shard.offset[++chunk.end_step];
    return chunk;
}

inline Chunk previous_chunk(const Shard& shard, int64_t end) {
    Chunk chunk{end - 1, end, shard.offset[end - 1], shard.offset[end]};
    while (chunk.step > 0 && chunk.end_row - shard.offset[chunk.step - 1] <= tuning::chunk_rows)
        chunk.row = shard.offset[--chunk.step];
    return chunk;
}

inline int64_t chunk_capacity(int64_t sequences) {
    return largest(tuning::chunk_rows, sequences);
}

// A bump allocator over a shard's scratch; with no memory it only counts.
template <class T>
struct Arena {
    T* data;
    int64_t used = 0;
    T* take(int64_t elements) {
        T* at = data ? data + used : nullptr;
        used += (elements + line - 1) / line * line;
        return at;
    }
};

// Chunk-long buffers start at the chunk's first row, the others at the shard's.
template <class T>
struct Workspace {
    Span<Buffer> buffers;
    T *values[most_buffers], *gradients[most_buffers];  // without strides, which would be written for every call
    bool chunked[most_buffers];
    T *carry[most_states], *nll, *kl;  // (rows): of these two the values or, going back, the gradients
    T* tiles;                          // of weight_gradient()
    T *log_weight, *weight;            // (sequences) since a row was resampled; (particles)
    Matrix<T> group;                   // (particles, hidden) states, or their gradients, while they are resampled
    PerOutput<Matrix<T>> upstream;     // (rows, width): the gradients that reach outputs
    Matrix<T> d_final[most_states];
    Matrix<T> mask;  // 1 where x was observed, else 0; null where all was
    int64_t used;

    Matrix<T> value(int64_t buffer) const { return {values[buffer], buffers[buffer].stride}; }
    Matrix<T> gradient(int64_t buffer) const { return {gradients[buffer], buffers[buffer].stride}; }

    Workspace(const Launch<T>& launch, T* scratch, int64_t sequences, int64_t first_row, bool backward)
        : buffers(launch.program->buffers) {
        Arena<T> arena{scratch};
        const Program& program = *launch.program;
        const int64_t capacity = chunk_capacity(sequences), slack = Tile<T>::columns;
        for (int64_t b = 0; b < program.buffers.size; ++b) {
            const int64_t stride = program.buffers[b].stride;
            chunked[b] = launch.saved_offset[b] < 0;
            values[b] = chunked[b] ? arena.take(capacity * stride + slack)
                                   : launch.saved + launch.saved_offset[b] + first_row * stride;
            gradients[b] = backward ? arena.take(capacity * stride + slack) : nullptr;
        }
        const int64_t hidden = program.buffers[buffer_state].stride, latent = program.buffers[buffer_eps].stride;
        const int64_t input = program.buffers[buffer_x].stride;
        for (int64_t s = 0; s < program.states; ++s) {
            carry[s] = arena.take(sequences * hidden);
            d_final[s] = {backward ? arena.take(sequences * hidden) : nullptr, hidden};
        }
        mask = {launch.mask ? arena.take(capacity * input + slack) : nullptr, input};
        nll = arena.take(capacity);
        kl = arena.take(capacity);
        for_outputs([&](Output o) {
            const Slice& s = program.outputs[o];
            if (o == Output::raw)  // its buffer's gradient starts there
                upstream[o] = backward ? gradient(s.buffer).columns(s.start) : Matrix<T>{};
            else if (is_scalar(o))
                upstream[o] = {o == Output::nll ? nll : kl, 1};
            else
                upstream[o] = {backward ? arena.take(capacity * latent) : nullptr, latent};
        });
        int64_t widest = 0;
        for (const Buffer& b : program.buffers) widest = largest(widest, b.width);
        tiles = backward ? arena.take(weight_gradient_scratch<T>(widest)) : nullptr;
        const bool resamples = bool(launch.ancestors);
        log_weight = resamples ? arena.take(sequences) : nullptr;
        weight = resamples ? arena.take(launch.particles + slack) : nullptr;
        group = {resamples ? arena.take(launch.particles * hidden) : nullptr, hidden};
        used = arena.used;
    }
};

}  // namespace vrnn::VRNN_ISA
