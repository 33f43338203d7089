// The negative log-likelihood of x under the decoder's raw output.
#pragma once

#include "../math.h"
#include "../matrix.h"

namespace vrnn::VRNN_ISA {

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

}  // namespace vrnn::VRNN_ISA
