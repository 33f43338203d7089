// The elementwise stages, forward and backward, on a block of rows. Every matrix is row-major with its own stride.
//
// A gradient matrix has the shape and the columns of the value it belongs to. One exception saves a buffer: between
// divergence and sample the gradient of [mean | raw] holds [d mean | d std], which sample turns into [d mean | d raw].
#pragma once

#include "../core/program.h"
#include "math.h"

namespace vrnn::VRNN_ISA {

template <class T>
struct Matrix {
    T* data = nullptr;
    int64_t stride = 0;
    T* operator[](int64_t row) const { return data + row * stride; }
    Matrix columns(int64_t start) const { return {data + start, stride}; }
    Matrix rows(int64_t start) const { return {data + start * stride, stride}; }
    explicit operator bool() const { return data != nullptr; }
};

// Calls f(column, count) for each vector of a row; count < lanes only for the last.
template <class T, class F>
VRNN_INLINE void for_vectors(int64_t width, F f) {
    constexpr int64_t W = lanes<T>;
    int64_t j = 0;
    for (; j + W <= width; j += W) f(j, W);
    if (j < width) f(j, width - j);
}

template <class T>
VRNN_INLINE Vec<T> activate(Activation kind, Vec<T> x) {
    switch (kind) {
        case Activation::relu: return x < 0 ? Vec<T>{} : x;
        case Activation::leaky_relu: return x < 0 ? x * T(0.01) : x;
        case Activation::tanh: return tanh(x);
        case Activation::elu: return x < 0 ? expm1(x) : x;
        case Activation::identity: break;
    }
    return x;
}

// d times the derivative, from the result. What a mask stops is selected, here and below: it may be infinite.
template <class T>
VRNN_INLINE Vec<T> activate_backward(Activation kind, Vec<T> y, Vec<T> d) {
    const Vec<T> one = all<T>(1);
    switch (kind) {
        case Activation::relu: return y <= 0 ? Vec<T>{} : d;
        case Activation::leaky_relu: return y > 0 ? d : d * T(0.01);
        case Activation::tanh: return d * (one - y * y);
        case Activation::elu: return y > 0 ? d : d * (y + one);
        case Activation::identity: break;
    }
    return d;
}

template <class T, Activation kind>
static void activate_rows(int64_t rows, int64_t width, Matrix<T> y) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) { store(y[i] + j, activate<T>(kind, load(y[i] + j, n)), n); });
}

template <class T, Activation kind>
static void activate_rows_backward(int64_t rows, int64_t width, Matrix<T> y, Matrix<T> dy) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            store(dy[i] + j, activate_backward<T>(kind, load(y[i] + j, n), load(dy[i] + j, n)), n);
        });
}

template <class T>
static void activate_forward(Activation kind, int64_t rows, int64_t width, Matrix<T> y) {
    switch (kind) {
        case Activation::relu: return activate_rows<T, Activation::relu>(rows, width, y);
        case Activation::leaky_relu: return activate_rows<T, Activation::leaky_relu>(rows, width, y);
        case Activation::tanh: return activate_rows<T, Activation::tanh>(rows, width, y);
        case Activation::elu: return activate_rows<T, Activation::elu>(rows, width, y);
        case Activation::identity: return;
    }
}

template <class T>
static void activate_backward(Activation kind, int64_t rows, int64_t width, Matrix<T> y, Matrix<T> dy) {
    switch (kind) {
        case Activation::relu: return activate_rows_backward<T, Activation::relu>(rows, width, y, dy);
        case Activation::leaky_relu: return activate_rows_backward<T, Activation::leaky_relu>(rows, width, y, dy);
        case Activation::tanh: return activate_rows_backward<T, Activation::tanh>(rows, width, y, dy);
        case Activation::elu: return activate_rows_backward<T, Activation::elu>(rows, width, y, dy);
        case Activation::identity: return;
    }
}

// target = bias (zeros where there is none), the same for every row
template <class T>
static void fill_rows(int64_t rows, int64_t width, const T* bias, Matrix<T> target) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) { store(target[i] + j, load(bias + j, n), n); });
}

template <class T>
static void add_rows(int64_t rows, int64_t width, Matrix<T> source, Matrix<T> target) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            store(target[i] + j, load(target[i] + j, n) + load(source[i] + j, n), n);
        });
}

// total (or zeros) + the sum over rows, in four interleaved sums: less rounding, and four additions under way at a time
template <class T>
static void add_column_sums(int64_t rows, int64_t width, Matrix<T> d, bool from_zero, T* total) {
    for_vectors<T>(width, [&](int64_t j, int64_t n) {
        Vec<T> sums[4]{};
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4)
            for (int64_t k = 0; k < 4; ++k) sums[k] += load(d[i + k] + j, n);
        for (; i < rows; ++i) sums[0] += load(d[i] + j, n);
        const Vec<T> before = from_zero ? Vec<T>{} : load(total + j, n);
        store(total + j, before + ((sums[0] + sums[1]) + (sums[2] + sums[3])), n);
    });
}

// A standard deviation from its raw value, and d times its derivative there.
template <class T, StdKind kind>
struct Deviation {
    T floor, scale, shift, minimum, low, high;

    explicit Deviation(const Std& s)
        : floor(T(s.floor)),
          scale(T(s.scale)),
          shift(T(s.shift)),
          minimum(T(s.minimum)),
          low(T(s.low)),
          high(T(s.high)) {}
    Vec<T> operator()(Vec<T> raw) const {
        if constexpr (kind == StdKind::plain) return softplus(raw) + floor;
        const Vec<T> s = unbounded(argument(raw)) + floor;
        return s < minimum ? all(minimum) : s;
    }
    Vec<T> backward(Vec<T> raw, Vec<T> d) const {
        if constexpr (kind == StdKind::plain) return d * sigmoid(raw);
        const Vec<T> u = argument(raw), slope = kind == StdKind::softplus ? sigmoid(u) : exp(u) * scale;
        const Vec<T> free = unbounded(u) + floor >= minimum ? d * slope : Vec<T>{};
        return raw >= low ? (raw <= high ? free : Vec<T>{}) : Vec<T>{};
    }

  private:
    Vec<T> argument(Vec<T> raw) const {
        const Vec<T> above = raw < low ? all(low) : raw;
        return ((above > high ? all(high) : above) + shift) * scale;
    }
    Vec<T> unbounded(Vec<T> u) const { return kind == StdKind::softplus ? softplus(u) / scale : exp(u); }
};

// Calls f with the deviation of a run-time kind.
template <class T, class F>
VRNN_INLINE void with_deviation(const Std& s, F f) {
    switch (s.kind) {
        case StdKind::plain: return f(Deviation<T, StdKind::plain>(s));
        case StdKind::softplus: return f(Deviation<T, StdKind::softplus>(s));
        case StdKind::exponential: return f(Deviation<T, StdKind::exponential>(s));
    }
}

// q [mean | raw] (rows, 2 width); eps, std, z (rows, width)
template <class T, class D>
static void sample_forward(int64_t rows, int64_t width, D deviation, Matrix<T> q, Matrix<T> eps, Matrix<T> std,
                           Matrix<T> z) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> s = deviation(load(q[i] + width + j, n));
            store(std[i] + j, s, n);
            store(z[i] + j, load(q[i] + j, n) + s * load(eps[i] + j, n), n);
        });
}

// dq [d mean | d std] -> [d mean | d raw]; dz (rows, width) is complete; deps, if given, is written, with what
// dkl (rows), if given, of a log_ratio adds to it
template <class T, class D>
static void sample_backward(int64_t rows, int64_t width, D deviation, Matrix<T> q, Matrix<T> eps, Matrix<T> std,
                            Matrix<T> dz, Matrix<T> dq, const T* dkl, Matrix<T> deps) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> d = load(dz[i] + j, n);
            const Vec<T> dstd = load(dq[i] + width + j, n) + d * load(eps[i] + j, n);
            store(dq[i] + j, load(dq[i] + j, n) + d, n);
            store(dq[i] + width + j, deviation.backward(load(q[i] + width + j, n), dstd), n);
            const Vec<T> through_z = d * load(std[i] + j, n);
            if (deps) store(deps[i] + j, dkl ? through_z - dkl[i] * load(eps[i] + j, n) : through_z, n);
        });
}

// gates [r | u | n_x] (rows, 3 width) become their activations; n_h, h (rows, width); next (rows, width) or null
template <class T>
static void gru_forward(int64_t rows, int64_t width, Matrix<T> gates, Matrix<T> n_h, Matrix<T> h, Matrix<T> next) {
    for (int64_t i = 0; i < rows; ++i) {
        T* g = gates[i];
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> r = sigmoid(load(g + j, n)), u = sigmoid(load(g + width + j, n));
            const Vec<T> candidate = tanh(load(g + 2 * width + j, n) + r * load(n_h[i] + j, n));
            store(g + j, r, n);
            store(g + width + j, u, n);
            store(g + 2 * width + j, candidate, n);
            if (next) store(next[i] + j, candidate + u * (load(h[i] + j, n) - candidate), n);
        });
    }
}

// dnext (rows, width), or null for zeros; dgates, dn_h are written, dh is added to
template <class T>
static void gru_backward(int64_t rows, int64_t width, Matrix<T> gates, Matrix<T> n_h, Matrix<T> h, Matrix<T> dnext,
                         Matrix<T> dgates, Matrix<T> dn_h, Matrix<T> dh) {
    for (int64_t i = 0; i < rows; ++i) {
        const T* g = gates[i];
        T* dg = dgates[i];
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> one = all<T>(1), d = dnext ? load(dnext[i] + j, n) : Vec<T>{};
            const Vec<T> r = load(g + j, n), u = load(g + width + j, n), candidate = load(g + 2 * width + j, n);
            const Vec<T> dn = d * (one - u) * (one - candidate * candidate);
            store(dg + j, dn * load(n_h[i] + j, n) * r * (one - r), n);
            store(dg + width + j, d * (load(h[i] + j, n) - candidate) * u * (one - u), n);
            store(dg + 2 * width + j, dn, n);
            store(dn_h[i] + j, dn * r, n);
            store(dh[i] + j, load(dh[i] + j, n) + d * u, n);
        });
    }
}

// gates [i | f | g | o] (rows, 4 width) become their activations; c (rows, width); next_h, next_c or null
template <class T>
static void lstm_forward(int64_t rows, int64_t width, Matrix<T> gates, Matrix<T> c, Matrix<T> next_h,
                         Matrix<T> next_c) {
    for (int64_t k = 0; k < rows; ++k) {
        T* g = gates[k];
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> input = sigmoid(load(g + j, n)), forget = sigmoid(load(g + width + j, n));
            const Vec<T> candidate = tanh(load(g + 2 * width + j, n)), output = sigmoid(load(g + 3 * width + j, n));
            store(g + j, input, n);
            store(g + width + j, forget, n);
            store(g + 2 * width + j, candidate, n);
            store(g + 3 * width + j, output, n);
            if (!next_h) return;
            const Vec<T> cell = forget * load(c[k] + j, n) + input * candidate;
            if (next_c) store(next_c[k] + j, cell, n);
            store(next_h[k] + j, output * tanh(cell), n);
        });
    }
}

// dnext_h, dnext_c (rows, width), or null for zeros; dgates and dc are written
template <class T>
static void lstm_backward(int64_t rows, int64_t width, Matrix<T> gates, Matrix<T> c, Matrix<T> dnext_h,
                          Matrix<T> dnext_c, Matrix<T> dgates, Matrix<T> dc) {
    for (int64_t k = 0; k < rows; ++k) {
        const T* g = gates[k];
        T* dg = dgates[k];
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> one = all<T>(1);
            const Vec<T> input = load(g + j, n), forget = load(g + width + j, n);
            const Vec<T> candidate = load(g + 2 * width + j, n), output = load(g + 3 * width + j, n);
            const Vec<T> before = load(c[k] + j, n), squashed = tanh(forget * before + input * candidate);
            const Vec<T> dh = dnext_h ? load(dnext_h[k] + j, n) : Vec<T>{};
            Vec<T> dcell = dh * output * (one - squashed * squashed);
            if (dnext_c) dcell += load(dnext_c[k] + j, n);
            store(dg + j, dcell * candidate * input * (one - input), n);
            store(dg + width + j, dcell * before * forget * (one - forget), n);
            store(dg + 2 * width + j, dcell * input * (one - candidate * candidate), n);
            store(dg + 3 * width + j, dh * squashed * output * (one - output), n);
            store(dc[k] + j, dcell * forget, n);
        });
    }
}

// target = source; without a source, zeros
template <class T>
static void copy_rows(int64_t rows, int64_t width, Matrix<T> source, Matrix<T> target) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(
            width, [&](int64_t j, int64_t n) { store(target[i] + j, source ? load(source[i] + j, n) : Vec<T>{}, n); });
}

// q, p [mean | raw] (rows, 2 width); q_std, p_std (rows, width), p_std is written; kl (rows)
template <class T, class D>
static void divergence_forward(int64_t rows, int64_t width, D deviation, Matrix<T> q, Matrix<T> q_std, Matrix<T> p,
                               Matrix<T> p_std, T* kl) {
    for (int64_t i = 0; i < rows; ++i) {
        Vec<T> total{};
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> s = deviation(load(p[i] + width + j, n)), ratio = load(q_std[i] + j, n) / s;
            const Vec<T> distance = (load(q[i] + j, n) - load(p[i] + j, n)) / s;
            store(p_std[i] + j, s, n);
            const Vec<T> term = T(0.5) * (ratio * ratio + distance * distance - T(1)) - log(ratio);
            total += first<T>(term, n);
        });
        kl[i] = sum<T>(total);
    }
}

// What reaches a Gaussian's parameters from outside the launch, (rows, width) each, or null.
template <class T>
struct Upstream {
    Matrix<T> mean, std;
};

// dkl (rows), or null for zeros; dq = [d mean | d std] and dp = [d mean | d raw] (rows, 2 width) are written. Divides
// where forward did: of equal deviations the ratio is 1, and the gradient 0.
template <class T, class D>
static void divergence_backward(int64_t rows, int64_t width, D deviation, const T* dkl, Upstream<T> on_q,
                                Upstream<T> on_p, Matrix<T> q, Matrix<T> q_std, Matrix<T> p, Matrix<T> p_std,
                                Matrix<T> dq, Matrix<T> dp) {
    for (int64_t i = 0; i < rows; ++i) {
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            Vec<T> q_mean{}, q_dev{}, p_mean{}, p_dev{};
            if (dkl) {
                const Vec<T> one = all<T>(1), sp = load(p_std[i] + j, n), sq = load(q_std[i] + j, n);
                const Vec<T> ratio = sq / sp, distance = (load(q[i] + j, n) - load(p[i] + j, n)) / sp;
                q_mean = dkl[i] * distance / sp;
                p_mean = -q_mean;
                q_dev = dkl[i] * (ratio / sp - one / sq);
                p_dev = dkl[i] / sp * (one - ratio * ratio - distance * distance);
            }
            if (on_q.mean) q_mean += load(on_q.mean[i] + j, n);
            if (on_q.std) q_dev += load(on_q.std[i] + j, n);
            if (on_p.mean) p_mean += load(on_p.mean[i] + j, n);
            if (on_p.std) p_dev += load(on_p.std[i] + j, n);
            store(dq[i] + j, q_mean, n);
            store(dq[i] + width + j, q_dev, n);
            store(dp[i] + j, p_mean, n);
            store(dp[i] + width + j, deviation.backward(load(p[i] + width + j, n), p_dev), n);
        });
    }
}

// log q(z) - log p(z) of z = mean + q_std eps: q_std, eps, z, p_std (rows, width), p_std is written; p [mean | raw]
// (rows, 2 width); result (rows)
template <class T, class D>
static void log_ratio_forward(int64_t rows, int64_t width, D deviation, Matrix<T> q_std, Matrix<T> eps, Matrix<T> p,
                              Matrix<T> p_std, Matrix<T> z, T* result) {
    for (int64_t i = 0; i < rows; ++i) {
        Vec<T> total{};
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> s = deviation(load(p[i] + width + j, n)), e = load(eps[i] + j, n);
            const Vec<T> distance = (load(z[i] + j, n) - load(p[i] + j, n)) / s;
            store(p_std[i] + j, s, n);
            // a difference of squares, of which a fused multiply-add would round one alone
            const Vec<T> squares = (distance - e) * (distance + e);
            const Vec<T> term = T(0.5) * squares - log(load(q_std[i] + j, n) / s);
            total += first<T>(term, n);
        });
        result[i] = sum<T>(total);
    }
}

// As divergence_backward(); dz (rows, width) is written, or added to.
template <class T, class D>
static void log_ratio_backward(int64_t rows, int64_t width, D deviation, const T* dkl, Upstream<T> on_q,
                               Upstream<T> on_p, Matrix<T> q_std, Matrix<T> p, Matrix<T> p_std, Matrix<T> z,
                               Matrix<T> dq, Matrix<T> dp, Matrix<T> dz, bool add) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            Vec<T> pull{}, q_mean{}, q_dev{}, p_mean{}, p_dev{};
            if (dkl) {
                const Vec<T> sp = load(p_std[i] + j, n), distance = (load(z[i] + j, n) - load(p[i] + j, n)) / sp;
                pull = dkl[i] * distance / sp;
                p_mean = -pull;
                q_dev = -dkl[i] / load(q_std[i] + j, n);
                p_dev = dkl[i] / sp * (all<T>(1) - distance * distance);
            }
            if (on_q.mean) q_mean += load(on_q.mean[i] + j, n);
            if (on_q.std) q_dev += load(on_q.std[i] + j, n);
            if (on_p.mean) p_mean += load(on_p.mean[i] + j, n);
            if (on_p.std) p_dev += load(on_p.std[i] + j, n);
            store(dz[i] + j, add ? load(dz[i] + j, n) + pull : pull, n);
            store(dq[i] + j, q_mean, n);
            store(dq[i] + width + j, q_dev, n);
            store(dp[i] + j, p_mean, n);
            store(dp[i] + width + j, deviation.backward(load(p[i] + width + j, n), p_dev), n);
        });
}

// weight (n) = exp(log_weight - its largest); returns their effective number, (sum w)^2 / sum w^2, or NaN
template <class T>
static double effective_number(int64_t n, const T* log_weight, T* weight) {
    T most = log_weight[0];
    for (int64_t i = 1; i < n; ++i) most = log_weight[i] > most ? log_weight[i] : most;
    for_vectors<T>(
        n, [&](int64_t j, int64_t count) { store(weight + j, exp(load(log_weight + j, count) - most), count); });
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += weight[i];
        squares += double(weight[i]) * weight[i];
    }
    return sum * sum / squares;
}

// `term` where the mask is not zero, else zero; without a mask, term
template <class T>
VRNN_INLINE Vec<T> observed(Matrix<T> mask, int64_t row, int64_t j, int64_t n, Vec<T> term) {
    return mask ? (load(mask[row] + j, n) == 0 ? Vec<T>{} : term) : term;
}

// logits, x (rows, width), mask as well or null; nll (rows): sum softplus(logit) - x logit. Of a confident logit that
// is right, the difference cancels before its logarithm is added.
template <class T>
static void bernoulli_forward(int64_t rows, int64_t width, Matrix<T> logits, Matrix<T> x, Matrix<T> mask, T* nll) {
    for (int64_t i = 0; i < rows; ++i) {
        Vec<T> total{};
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> logit = load(logits[i] + j, n);
            const Vec<T> linear = (logit < 0 ? Vec<T>{} : logit) - load(x[i] + j, n) * logit;
            const Vec<T> term = plus_log1p(linear, exp(-absolute<T>(logit)));
            total += first<T>(observed(mask, i, j, n, term), n);
        });
        nll[i] = sum<T>(total);
    }
}

// dlogits, sigmoid(logit) - x, is added to, dx (if given) as well
template <class T>
static void bernoulli_backward(int64_t rows, int64_t width, const T* dnll, Matrix<T> logits, Matrix<T> x,
                               Matrix<T> mask, Matrix<T> dlogits, Matrix<T> dx) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> logit = load(logits[i] + j, n), seen = load(x[i] + j, n), unseen = all<T>(1) - seen;
            const Vec<T> e = exp(-absolute<T>(logit));
            const Vec<T> excess = logit < 0 ? e * unseen - seen : unseen - e * seen;
            const Vec<T> d = dnll[i] * (excess / (all<T>(1) + e));
            store(dlogits[i] + j, load(dlogits[i] + j, n) + observed(mask, i, j, n, d), n);
            if (dx) store(dx[i] + j, load(dx[i] + j, n) - observed<T>(mask, i, j, n, dnll[i] * logit), n);
        });
}

// raw [mean | raw std] (rows, 2 width), x (rows, width), mask as well or null; nll (rows)
template <class T, class D>
static void gaussian_forward(int64_t rows, int64_t width, D deviation, Matrix<T> raw, Matrix<T> x, Matrix<T> mask,
                             T* nll) {
    const T half_log_two_pi = T(0.91893853320467274178);
    for (int64_t i = 0; i < rows; ++i) {
        Vec<T> total{};
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> s = deviation(load(raw[i] + width + j, n));
            const Vec<T> distance = (load(x[i] + j, n) - load(raw[i] + j, n)) / s;
            const Vec<T> term = observed<T>(mask, i, j, n, T(0.5) * distance * distance + log(s) + half_log_two_pi);
            total += first<T>(term, n);
        });
        nll[i] = sum<T>(total);
    }
}

template <class T, class D>
static void gaussian_backward(int64_t rows, int64_t width, D deviation, const T* dnll, Matrix<T> raw, Matrix<T> x,
                              Matrix<T> mask, Matrix<T> draw, Matrix<T> dx) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> r = load(raw[i] + width + j, n), s = deviation(r);
            const Vec<T> distance = (load(x[i] + j, n) - load(raw[i] + j, n)) / s;
            const Vec<T> pull = observed<T>(mask, i, j, n, dnll[i] * distance / s);
            const Vec<T> dstd = dnll[i] / s * (all<T>(1) - distance * distance);
            const Vec<T> dr = observed<T>(mask, i, j, n, deviation.backward(r, dstd));
            store(draw[i] + j, load(draw[i] + j, n) - pull, n);
            store(draw[i] + width + j, load(draw[i] + width + j, n) + dr, n);
            if (dx) store(dx[i] + j, load(dx[i] + j, n) + pull, n);
        });
}

// x (rows, width) = raw > noise, or sigmoid(raw); NaN of NaN
template <class T>
static void bernoulli_draw(int64_t rows, int64_t width, bool mean, Matrix<T> raw, Matrix<T> noise, Matrix<T> x) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> logit = load(raw[i] + j, n);
            const Vec<T> drawn = logit > load(noise[i] + j, n) ? all<T>(1) : Vec<T>{};
            store(x[i] + j, mean ? sigmoid(logit) : logit == logit ? drawn : logit, n);
        });
}

// raw [mean | raw std] (rows, 2 width): x (rows, width) = mean + std noise, or mean
template <class T, class D>
static void gaussian_draw(int64_t rows, int64_t width, D deviation, bool mean, Matrix<T> raw, Matrix<T> noise,
                          Matrix<T> x) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> centre = load(raw[i] + j, n), s = deviation(load(raw[i] + width + j, n));
            store(x[i] + j, mean ? centre : centre + s * load(noise[i] + j, n), n);
        });
}

}  // namespace vrnn::VRNN_ISA
