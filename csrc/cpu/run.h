// One stage over the rows that a position is at, in each direction. Those that go from row to row are not among them:
// recur and begin (states.h) and resample (resample.h).
//
// A gradient matrix has the shape and the columns of the value it belongs to. One exception saves a buffer: between
// divergence and sample the gradient of [mean | raw] holds [d mean | d std], which sample turns into [d mean | d raw].
#pragma once

#include "position.h"
#include "stages/activate.h"
#include "stages/deviation.h"
#include "stages/divergence.h"
#include "stages/draw.h"
#include "stages/likelihood.h"
#include "stages/normalize.h"
#include "stages/sample.h"
#include "unpacked.h"

namespace vrnn::VRNN_ISA {

template <class T>
static void run(const Position<T>& p, const Stage& s) {
    const T* bias = p.launch.packed + p.program.packed_size + s.weights;
    const int64_t at = p.in_chunk();
    switch (s.op) {
        case Op::bias: return fill_rows<T>(p.rows, s.target.width, bias, p.value(s.target));
        case Op::dense: {
            if (p.launch.unpacked)
                return unpacked_product<T>(p.launch, s, p.rows, p.value(s.source), p.value(s.target), bias);
            const Sizes size{p.rows, s.target.width, s.source.width};
            return packed_product<T>(size, p.value(s.source), p.launch.packed + s.packed, p.value(s.target),
                                     s.accumulate ? Start::keep : Start::bias, bias, p.padded(s.target));
        }
        case Op::activate:
            return activate_forward<T>(static_cast<Activation>(s.kind), p.rows, s.target.width, p.value(s.source),
                                       p.value(s.target));
        case Op::add: return add_rows<T>(p.rows, s.target.width, p.value(s.source), p.value(s.target));
        case Op::normalize:
            return normalize_forward<T>(p.rows, s.target.width, s.epsilon, bias, p.value(s.source), p.value(s.target));
        case Op::sample:
            return with_deviation<T>(s.deviation, [&](auto deviation) {
                sample_forward<T>(p.rows, s.target.width, deviation, p.value(s.source), p.value(buffer_eps, p.begin),
                                  p.value(s.std), p.value(s.target));
            });
        case Op::divergence:
            return with_deviation<T>(s.deviation, [&](auto deviation) {
                const Gaussians<T> both{p.value(s.posterior), p.value(s.posterior_std), p.value(s.source),
                                        p.value(s.std)};
                if (s.z.width)
                    log_ratio_forward<T>(p.rows, s.std.width, deviation, both, p.value(buffer_eps, p.begin),
                                         p.value(s.z), p.work.kl + at);
                else
                    divergence_forward<T>(p.rows, s.std.width, deviation, both, p.work.kl + at);
            });
        case Op::likelihood: {
            const Matrix<T> x = p.value(buffer_x, p.begin), mask = p.mask();
            const int64_t width = p.program.buffers[buffer_x].width;
            if (static_cast<Loss>(s.kind) == Loss::bernoulli)
                return bernoulli_forward<T>(p.rows, width, p.value(s.source), x, mask, p.work.nll + at);
            if (static_cast<Loss>(s.kind) == Loss::gaussian)
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    gaussian_forward<T>(p.rows, width, deviation, p.value(s.source), x, mask, p.work.nll + at);
                });
            return set_zero(p.work.nll + at, p.rows);
        }
        case Op::draw:
            if (static_cast<Loss>(s.kind) == Loss::bernoulli)
                return bernoulli_draw<T>(p.rows, s.target.width, s.mean, p.value(s.source), p.value(s.noise),
                                         p.value(s.target));
            return with_deviation<T>(s.deviation, [&](auto deviation) {
                gaussian_draw<T>(p.rows, s.target.width, deviation, s.mean, p.value(s.source), p.value(s.noise),
                                 p.value(s.target));
            });
        case Op::recur:
        case Op::begin:
        case Op::resample: return;
    }
}

template <class T>
static void run(const Position<T>& p, Span<Stage> stages) {
    for (const Stage& s : stages) run(p, s);
}

template <class T>
static void run_backward(const Position<T>& p, const Stage& s) {
    const T* const d_kl = p.upstream(Output::kl).data;  // nobody's gradient is none, not 0 times infinity
    switch (s.op) {
        case Op::bias: return;
        case Op::dense: {
            if (!p.wants_gradient(s.source)) return;
            if (p.launch.unpacked)
                return unpacked_input_gradient<T>(p.launch, s, p.rows, p.gradient(s.target), p.gradient(s.source));
            const Sizes size{p.rows, s.source.width, s.target.width};
            return packed_product<T>(size, p.gradient(s.target), p.launch.packed_backward + s.packed,
                                     p.gradient(s.source), s.first_gradient ? Start::zero : Start::keep, nullptr,
                                     p.padded(s.source));
        }
        case Op::activate:
            return activate_backward<T>(static_cast<Activation>(s.kind), p.rows, s.target.width, p.value(s.source),
                                        p.gradient(s.target), p.gradient(s.source));
        case Op::add: return add_rows<T>(p.rows, s.target.width, p.gradient(s.target), p.gradient(s.source));
        case Op::normalize:
            return normalize_backward<T>(p.rows, s.target.width, s.epsilon,
                                         p.launch.packed + p.program.packed_size + s.weights, p.value(s.source),
                                         p.gradient(s.target), p.gradient(s.source));
        case Op::sample: {
            const Matrix<T> dz = p.gradient(s.target);
            if (const Matrix<T> d = p.upstream(Output::z)) add_rows<T>(p.rows, s.target.width, d, dz);
            return with_deviation<T>(s.deviation, [&](auto deviation) {
                sample_backward<T>(p.rows, s.target.width, deviation, p.value(s.source), p.value(buffer_eps, p.begin),
                                   p.value(s.std), dz, p.gradient(s.source),
                                   p.program.divergence->z.width ? d_kl : nullptr,
                                   p.launch.d_eps ? p.gradient(buffer_eps, p.begin) : Matrix<T>{});
            });
        }
        case Op::divergence:
            return with_deviation<T>(s.deviation, [&](auto deviation) {
                const Upstream<T> on{p.upstream(Output::mean), p.upstream(Output::std), p.upstream(Output::prior_mean),
                                     p.upstream(Output::prior_std)};
                const Gaussians<T> both{p.value(s.posterior), p.value(s.posterior_std), p.value(s.source),
                                        p.value(s.std)};
                const Matrix<T> d_q = p.gradient(s.posterior), d_p = p.gradient(s.source);
                if (s.z.width)
                    log_ratio_backward<T>(p.rows, s.std.width, deviation, d_kl, on, both, p.value(s.z), d_q, d_p,
                                          p.gradient(s.z), !s.first_gradient);
                else
                    divergence_backward<T>(p.rows, s.std.width, deviation, d_kl, on, both, d_q, d_p);
            });
        case Op::likelihood: {
            const T* const d_nll = p.upstream(Output::nll).data;
            if (!d_nll) return;
            const Matrix<T> x = p.value(buffer_x, p.begin), mask = p.mask();
            const Matrix<T> dx = p.launch.d_x ? p.gradient(buffer_x, p.begin) : Matrix<T>{};
            const int64_t width = p.program.buffers[buffer_x].width;
            if (static_cast<Loss>(s.kind) == Loss::bernoulli)
                return bernoulli_backward<T>(p.rows, width, d_nll, p.value(s.source), x, mask, p.gradient(s.source),
                                             dx);
            if (static_cast<Loss>(s.kind) == Loss::gaussian)
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    gaussian_backward<T>(p.rows, width, deviation, d_nll, p.value(s.source), x, mask,
                                         p.gradient(s.source), dx);
                });
            return;
        }
        case Op::recur:
        case Op::begin:
        case Op::resample:
        case Op::draw: return;
    }
}

template <class T>
static void run_backward(const Position<T>& p, Span<Stage> stages) {
    for (int64_t i = stages.size - 1; i >= 0; --i) run_backward(p, stages[i]);
}

}  // namespace vrnn::VRNN_ISA
