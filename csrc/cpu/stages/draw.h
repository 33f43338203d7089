// x, drawn from the decoder's raw output, or its mean.
#pragma once

#include "../math.h"
#include "../matrix.h"

namespace vrnn::VRNN_ISA {

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
