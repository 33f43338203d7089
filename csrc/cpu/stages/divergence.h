// What tells posterior and prior apart: the divergence of two Gaussians, or log q(z) - log p(z) of the sample itself.
#pragma once

#include "../math.h"
#include "../matrix.h"

namespace vrnn::VRNN_ISA {

// Posterior q and prior p: [mean | raw] (rows, 2 width) and the standard deviations (rows, width).
template <class T>
struct Gaussians {
    Matrix<T> q, q_std, p, p_std;
};

// p_std is written; kl (rows)
template <class T, class D>
static void divergence_forward(int64_t rows, int64_t width, D deviation, Gaussians<T> given, T* kl) {
    const Matrix<T> q = given.q, q_std = given.q_std, p = given.p, p_std = given.p_std;
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

// What both leave in p_std.
template <class T, class D>
static void prior_std_forward(int64_t rows, int64_t width, D deviation, Matrix<T> p, Matrix<T> p_std) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width,
                       [&](int64_t j, int64_t n) { store(p_std[i] + j, deviation(load(p[i] + width + j, n)), n); });
}

// What reaches the parameters of both from outside the launch, (rows, width) each, or null.
template <class T>
struct Upstream {
    Matrix<T> q_mean, q_std, p_mean, p_std;
};

// dkl (rows), or null for zeros; dq = [d mean | d std] and dp = [d mean | d raw] (rows, 2 width) are written. Divides
// where forward did: of equal deviations the ratio is 1, and the gradient 0.
template <class T, class D>
static void divergence_backward(int64_t rows, int64_t width, D deviation, const T* dkl, Upstream<T> on,
                                Gaussians<T> given, Matrix<T> dq, Matrix<T> dp) {
    const Matrix<T> q = given.q, q_std = given.q_std, p = given.p, p_std = given.p_std;
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
            if (on.q_mean) q_mean += load(on.q_mean[i] + j, n);
            if (on.q_std) q_dev += load(on.q_std[i] + j, n);
            if (on.p_mean) p_mean += load(on.p_mean[i] + j, n);
            if (on.p_std) p_dev += load(on.p_std[i] + j, n);
            store(dq[i] + j, q_mean, n);
            store(dq[i] + width + j, q_dev, n);
            store(dp[i] + j, p_mean, n);
            store(dp[i] + width + j, deviation.backward(load(p[i] + width + j, n), p_dev), n);
        });
    }
}

// log q(z) - log p(z) of z = mean + q_std eps: eps, z (rows, width); p_std is written; result (rows)
template <class T, class D>
static void log_ratio_forward(int64_t rows, int64_t width, D deviation, Gaussians<T> given, Matrix<T> eps, Matrix<T> z,
                              T* result) {
    const Matrix<T> q_std = given.q_std, p = given.p, p_std = given.p_std;
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
static void log_ratio_backward(int64_t rows, int64_t width, D deviation, const T* dkl, Upstream<T> on,
                               Gaussians<T> given, Matrix<T> z, Matrix<T> dq, Matrix<T> dp, Matrix<T> dz, bool add) {
    const Matrix<T> q_std = given.q_std, p = given.p, p_std = given.p_std;
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
            if (on.q_mean) q_mean += load(on.q_mean[i] + j, n);
            if (on.q_std) q_dev += load(on.q_std[i] + j, n);
            if (on.p_mean) p_mean += load(on.p_mean[i] + j, n);
            if (on.p_std) p_dev += load(on.p_std[i] + j, n);
            store(dz[i] + j, add ? load(dz[i] + j, n) + pull : pull, n);
            store(dq[i] + j, q_mean, n);
            store(dq[i] + width + j, q_dev, n);
            store(dp[i] + j, p_mean, n);
            store(dp[i] + width + j, deviation.backward(load(p[i] + width + j, n), p_dev), n);
        });
}

}  // namespace vrnn::VRNN_ISA
