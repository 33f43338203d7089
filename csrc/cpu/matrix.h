// Matrices of rows, and what is done to whole rows of them. Each is row-major with its own stride.
#pragma once

#include "vec.h"

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

// to = from; without a source, zeros
template <class T>
static void copy(T* to, const T* from, int64_t n) {
    if (from)
        __builtin_memcpy(to, from, n * sizeof(T));
    else
        __builtin_memset(to, 0, n * sizeof(T));
}

template <class T>
static void set_zero(T* to, int64_t n) {
    __builtin_memset(to, 0, n * sizeof(T));
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

// target = source; without a source, zeros
template <class T>
static void copy_rows(int64_t rows, int64_t width, Matrix<T> source, Matrix<T> target) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(
            width, [&](int64_t j, int64_t n) { store(target[i] + j, source ? load(source[i] + j, n) : Vec<T>{}, n); });
}

}  // namespace vrnn::VRNN_ISA
