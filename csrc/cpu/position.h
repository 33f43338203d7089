// Where a pass over a shard is: the chunk of time, the rows that stages work on, and the matrices at these rows.
#pragma once

#include "workspace.h"

namespace vrnn::VRNN_ISA {

template <class T>
struct Position {
    const Launch<T>& launch;
    const Program& program;
    const Shard& shard;
    Workspace<T> work;
    Chunk chunk{};
    int64_t begin = 0, rows = 0;  // the rows that stages work on

    Position(const Launch<T>& launch, int64_t index, bool backward)
        : launch(launch),
          program(*launch.program),
          shard(launch.shards[index]),
          work(launch, launch.scratch + index * launch.scratch_size, shard.sequences, shard.first_row, backward) {}

    void set_rows(int64_t from, int64_t to) {
        begin = from;
        rows = to - from;
    }
    void set_chunk_rows() { set_rows(chunk.row, chunk.end_row); }
    void set_step_rows(int64_t t) { set_rows(shard.offset[t], shard.offset[t + 1]); }
    int64_t in_chunk() const { return begin - chunk.row; }

    int64_t hidden() const { return program.buffers[buffer_state].width; }
    Matrix<T> carry(int64_t state) const { return {work.carry[state], program.buffers[buffer_state].stride}; }

    Matrix<T> value(int64_t buffer, int64_t row) const {
        return work.value(buffer).rows(work.chunked[buffer] ? row - chunk.row : row);
    }
    Matrix<T> value(const Slice& s) const { return value(s.buffer, begin).columns(s.start); }
    Matrix<T> gradient(int64_t buffer, int64_t row) const { return work.gradient(buffer).rows(row - chunk.row); }
    Matrix<T> gradient(const Slice& s) const { return gradient(s.buffer, begin).columns(s.start); }
    // What forward found of an output, from the chunk's first row on; null for zeros.
    Matrix<T> output(Output o) const {
        const Slice& s = program.outputs[o];
        if (s.buffer >= 0) return value(s.buffer, chunk.row).columns(s.start);
        if (o == Output::nll) return {work.nll, 1};
        return {o == Output::kl && program.divergence ? work.kl : nullptr, 1};
    }
    // The gradient that reaches an output from outside, null for zeros.
    Matrix<T> upstream(Output o) const { return launch.upstream[o] ? work.upstream[o].rows(in_chunk()) : Matrix<T>{}; }
    Matrix<T> mask() const { return work.mask ? work.mask.rows(in_chunk()) : Matrix<T>{}; }

    // Whether whole vectors may be stored: what lies behind the slice's columns, up to the row's end, is nobody's.
    bool padded(const Slice& s) const {
        const Buffer& b = program.buffers[s.buffer];
        return s.start + s.width == b.width && s.start + (s.width + line - 1) / line * line <= b.stride;
    }
    bool wants_gradient(const Slice& s) const {
        return s.buffer == buffer_x ? bool(launch.d_x) : s.buffer != program.cond || launch.d_cond;
    }

    // Calls f(row of the chunk, time step, sequence of the batch) for each row of the chunk.
    template <class F>
    void for_rows(F f) const {
        for (int64_t t = chunk.step; t < chunk.end_step; ++t)
            for (int64_t i = 0; i < shard.active[t]; ++i) f(shard.offset[t] + i - chunk.row, t, shard.sequence[i]);
    }
};

}  // namespace vrnn::VRNN_ISA
