// Layer normalisation (Ba et al. 2016, "Layer Normalization"): y = (x - mean) / deviation * scale + shift, where mean
// and deviation are those of a row.
#pragma once

#include "../matrix.h"

namespace vrnn::VRNN_ISA {

// Of a row: the mean, and 1 / sqrt(variance + epsilon).
template <class T>
struct Moments {
    T mean, inverse;

    static Moments of(int64_t width, const T* x, double epsilon) {
        Vec<T> total{}, squares{};
        for_vectors<T>(width, [&](int64_t j, int64_t n) { total += load(x + j, n); });
        const T mean = sum<T>(total) / T(width);
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> apart = first<T>(load(x + j, n) - mean, n);
            squares += apart * apart;
        });
        return {mean, T(1) / T(__builtin_sqrt(sum<T>(squares) / T(width) + T(epsilon)))};
    }
};

// x, y (rows, width); scaling is [scale | shift]
template <class T>
static void normalize_forward(int64_t rows, int64_t width, double epsilon, const T* scaling, Matrix<T> x, Matrix<T> y) {
    for (int64_t i = 0; i < rows; ++i) {
        const Moments<T> of = Moments<T>::of(width, x[i], epsilon);
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> normal = (load(x[i] + j, n) - of.mean) * of.inverse;
            store(y[i] + j, normal * load(scaling + j, n) + load(scaling + width + j, n), n);
        });
    }
}

// dx is written
template <class T>
static void normalize_backward(int64_t rows, int64_t width, double epsilon, const T* scaling, Matrix<T> x, Matrix<T> dy,
                               Matrix<T> dx) {
    for (int64_t i = 0; i < rows; ++i) {
        const Moments<T> of = Moments<T>::of(width, x[i], epsilon);
        Vec<T> total{}, along{};
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> d = load(dy[i] + j, n) * load(scaling + j, n);
            store(dx[i] + j, d, n);  // rounded: fused into the difference below, it would not cancel where it must
            total += d;
            along += d * ((load(x[i] + j, n) - of.mean) * of.inverse);
        });
        const T mean = sum<T>(total) / T(width), slope = sum<T>(along) / T(width);
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> normal = (load(x[i] + j, n) - of.mean) * of.inverse;
            store(dx[i] + j, ((load(dx[i] + j, n) - mean) - normal * slope) * of.inverse, n);
        });
    }
}

// d_scaling [d scale | d shift] (or zeros) + the sums over rows
template <class T>
static void add_scaling_gradients(int64_t rows, int64_t width, double epsilon, Matrix<T> x, Matrix<T> dy,
                                  bool from_zero, T* d_scaling) {
    constexpr int64_t block = 64;
    Moments<T> of[block];
    if (from_zero) set_zero(d_scaling, width);
    for (int64_t begin = 0; begin < rows; begin += block) {
        const int64_t count = rows - begin < block ? rows - begin : block;
        for (int64_t i = 0; i < count; ++i) of[i] = Moments<T>::of(width, x[begin + i], epsilon);
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            Vec<T> sums[4]{};
            for (int64_t i = 0; i < count; ++i)
                sums[i % 4] += load(dy[begin + i] + j, n) * ((load(x[begin + i] + j, n) - of[i].mean) * of[i].inverse);
            store(d_scaling + j, load(d_scaling + j, n) + ((sums[0] + sums[1]) + (sums[2] + sums[3])), n);
        });
    }
    add_column_sums<T>(rows, width, dy, from_zero, d_scaling + width);
}

}  // namespace vrnn::VRNN_ISA
