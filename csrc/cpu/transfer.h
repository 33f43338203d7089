// What comes in from the caller's tensors, (T, B, width), to the rows of a chunk, and what goes out to them.
#pragma once

#include "position.h"

namespace vrnn::VRNN_ISA {

template <class T>
static void gather(const Position<T>& p, const Steps<const T>& from, Matrix<T> to, int64_t width) {
    p.for_rows([&](int64_t row, int64_t t, int64_t b) { copy(to[row], from.at(t, b), width); });
}

template <class T>
static void gather(const Position<T>& p, const Steps<const T>& from, T* to) {
    p.for_rows([&](int64_t row, int64_t t, int64_t b) { to[row] = *from.at(t, b); });
}

template <class T>
static void scatter(const Position<T>& p, Matrix<T> from, const Steps<T>& to, int64_t width) {
    if (to) p.for_rows([&](int64_t row, int64_t t, int64_t b) { copy(to.at(t, b), from[row], width); });
}

template <class T>
static void gather_inputs(const Position<T>& p) {
    const Program& program = p.program;
    const int64_t input = program.buffers[buffer_x].width;
    if (p.launch.x) gather(p, p.launch.x, p.work.value[buffer_x], input);
    if (p.launch.noise) gather(p, p.launch.noise, p.work.value[program.output->noise.buffer], input);
    gather(p, p.launch.eps, p.work.value[buffer_eps], program.buffers[buffer_eps].width);
    if (program.cond >= 0) gather(p, p.launch.cond, p.work.value[program.cond], program.buffers[program.cond].width);
    if (p.launch.mask)
        p.for_rows([&](int64_t row, int64_t t, int64_t b) {
            const uint8_t* from = p.launch.mask.at(t, b);
            for (int64_t j = 0; j < input; ++j) p.work.mask[row][j] = from[j] != 0;
        });
}

template <class T>
static void gather_upstream(const Position<T>& p) {
    const Launch<T>& launch = p.launch;
    if (launch.d_nll) gather(p, launch.d_nll, p.work.nll);
    if (launch.d_kl) gather(p, launch.d_kl, p.work.kl);
    const int64_t latent = p.program.buffers[buffer_eps].width;
    const Steps<const T> from[] = {launch.d_z, launch.d_mean, launch.d_std, launch.d_prior_mean, launch.d_prior_std};
    const Matrix<T> to[] = {p.work.on_z, p.work.on_mean, p.work.on_std, p.work.on_prior_mean, p.work.on_prior_std};
    for (int k = 0; k < 5; ++k)
        if (from[k]) gather(p, from[k], to[k], latent);
    const Slice& raw = p.program.output->source;
    const Matrix<T> d_raw = p.gradient(raw.buffer, p.chunk.row).columns(raw.start);
    p.for_rows([&](int64_t row, int64_t t, int64_t b) {
        copy(d_raw[row], launch.d_raw ? launch.d_raw.at(t, b) : nullptr, raw.width);
    });
    if (launch.d_x)
        for (int64_t row = 0; row < p.chunk.rows(); ++row)
            set_zero(p.work.gradient[buffer_x][row], p.program.buffers[buffer_x].width);
}

template <class T>
static void scatter_results(const Position<T>& p) {
    const Launch<T>& launch = p.launch;
    const Stage *sample = p.program.sample, *divergence = p.program.divergence;
    const auto matrix = [&](const Slice& s) { return p.value(s.buffer, p.chunk.row).columns(s.start); };
    scatter(p, matrix({buffer_x, 0, 0}), launch.drawn, p.program.buffers[buffer_x].width);
    if (launch.drawn) return;
    p.for_rows([&](int64_t row, int64_t t, int64_t b) {
        *launch.nll.at(t, b) = p.work.nll[row];
        *launch.kl.at(t, b) = divergence ? p.work.kl[row] : T(0);
    });
    const Slice& raw = p.program.output->source;
    scatter(p, matrix(raw), launch.raw, raw.width);
    if (!sample || !divergence) return;
    const int64_t latent = sample->target.width;
    scatter(p, matrix(sample->target), launch.z, latent);
    scatter(p, matrix(sample->source), launch.mean, latent);
    scatter(p, matrix(sample->std), launch.std, latent);
    scatter(p, matrix(divergence->source), launch.prior_mean, latent);
    scatter(p, matrix(divergence->std), launch.prior_std, latent);
}

template <class T>
static void scatter_gradients(const Position<T>& p) {
    const Program& program = p.program;
    scatter(p, p.work.gradient[buffer_x], p.launch.d_x, program.buffers[buffer_x].width);
    scatter(p, p.work.gradient[buffer_eps], p.launch.d_eps, program.buffers[buffer_eps].width);
    if (p.launch.d_cond)
        scatter(p, p.work.gradient[program.cond], p.launch.d_cond, program.buffers[program.cond].width);
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
    const int64_t latent = p.program.buffers[buffer_eps].width;
    const int64_t output = p.program.output->source.width;
    const Steps<T> results[] = {launch.nll, launch.kl,         launch.z,         launch.mean,
                                launch.std, launch.prior_mean, launch.prior_std, launch.raw};
    const int64_t widths[] = {1, 1, latent, latent, latent, latent, latent, output};
    for (int64_t i = 0; i < p.shard.sequences; ++i) {
        for (int r = 0; r < 8; ++r) clear_padding(p, i, results[r], widths[r]);
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
