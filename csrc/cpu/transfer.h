// What comes in from the caller's tensors, (T, B, width), to the rows of a chunk, and what goes out to them.
#pragma once

#include "position.h"

namespace vrnn::VRNN_ISA {

template <class T>
static void gather(const Position<T>& p, const Steps<const T>& from, Matrix<T> to, int64_t width) {
    p.for_rows([&](int64_t row, int64_t t, int64_t b) { copy(to[row], from.at(t, b), width); });
}

template <class T>
static void scatter(const Position<T>& p, Matrix<T> from, const Steps<T>& to, int64_t width) {
    if (to)
        p.for_rows([&](int64_t row, int64_t t, int64_t b) { copy(to.at(t, b), from ? from[row] : nullptr, width); });
}

template <class T>
static void gather_inputs(const Position<T>& p) {
    const Program& program = p.program;
    const int64_t input = program.buffers[buffer_x].width;
    if (p.launch.x) gather(p, p.launch.x, p.work.value(buffer_x), input);
    if (p.launch.noise) gather(p, p.launch.noise, p.work.value(program.output->noise.buffer), input);
    gather(p, p.launch.eps, p.work.value(buffer_eps), program.buffers[buffer_eps].width);
    if (program.cond >= 0) gather(p, p.launch.cond, p.work.value(program.cond), program.buffers[program.cond].width);
    if (p.launch.mask)
        p.for_rows([&](int64_t row, int64_t t, int64_t b) {
            const uint8_t* from = p.launch.mask.at(t, b);
            for (int64_t j = 0; j < input; ++j) p.work.mask[row][j] = from[j] != 0;
        });
}

template <class T>
static void gather_upstream(const Position<T>& p) {
    const Launch<T>& launch = p.launch;
    for_outputs([&](Output o) {
        const int64_t width = p.program.outputs[o].width;
        if (launch.upstream[o])
            gather(p, launch.upstream[o], p.work.upstream[o], width);
        else if (o == Output::raw)  // the likelihood adds to it
            for (int64_t row = 0; row < p.chunk.rows(); ++row) set_zero(p.work.upstream[o][row], width);
    });
    if (launch.d_x)
        for (int64_t row = 0; row < p.chunk.rows(); ++row)
            set_zero(p.work.gradient(buffer_x)[row], p.program.buffers[buffer_x].width);
}

template <class T>
static void scatter_results(const Position<T>& p) {
    scatter(p, p.value(buffer_x, p.chunk.row), p.launch.drawn, p.program.buffers[buffer_x].width);
    for_outputs([&](Output o) { scatter(p, p.output(o), p.launch.outputs[o], p.program.outputs[o].width); });
}

template <class T>
static void scatter_gradients(const Position<T>& p) {
    const Program& program = p.program;
    scatter(p, p.work.gradient(buffer_x), p.launch.d_x, program.buffers[buffer_x].width);
    scatter(p, p.work.gradient(buffer_eps), p.launch.d_eps, program.buffers[buffer_eps].width);
    if (p.launch.d_cond)
        scatter(p, p.work.gradient(program.cond), p.launch.d_cond, program.buffers[program.cond].width);
}

// Zeroes a sequence's padding, steps t >= its length.
template <class T>
static void clear_padding(const Position<T>& p, int64_t i, const Steps<T>& to, int64_t width) {
    if (!to) return;
    for (int64_t t = p.shard.length[i]; t < p.launch.steps; ++t) set_zero(to.at(t, p.shard.sequence[i]), width);
}

template <class T>
static void clear_padding_of_results(const Position<T>& p) {
    const Launch<T>& launch = p.launch;
    for (int64_t i = 0; i < p.shard.sequences; ++i) {
        for_outputs([&](Output o) { clear_padding(p, i, launch.outputs[o], p.program.outputs[o].width); });
        if (launch.ancestors)
            for (int64_t t = p.shard.length[i]; t < launch.steps; ++t)
                *launch.ancestors.at(t, p.shard.sequence[i]) = -1;
    }
}

template <class T>
static void clear_padding_of_gradients(const Position<T>& p) {
    const auto width = [&](int64_t buffer) { return p.program.buffers[buffer].width; };
    for (int64_t i = 0; i < p.shard.sequences; ++i) {
        clear_padding(p, i, p.launch.d_x, width(buffer_x));
        clear_padding(p, i, p.launch.d_eps, width(buffer_eps));
        if (p.launch.d_cond) clear_padding(p, i, p.launch.d_cond, width(p.program.cond));
    }
}

}  // namespace vrnn::VRNN_ISA
