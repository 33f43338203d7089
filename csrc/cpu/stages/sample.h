// The posterior's sample, z = mean + std eps.
#pragma once

#include "../matrix.h"

namespace vrnn::VRNN_ISA {

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

}  // namespace vrnn::VRNN_ISA
