// Products with the weights where the parameters lie, for a call of so few rows that packing them would take longer,
// and the gradients of the weights written where they go. Parameters end with their last element: nothing behind it is
// read.
#pragma once

#include "gemm.h"
#include "launch.h"
#include "matrix.h"

namespace vrnn::VRNN_ISA {

// What a block takes of its parameter, or of the gradient of it: (rows, source width).
template <class T, class Pointers>
VRNN_INLINE Matrix<T> of_block(const Launch<std::remove_const_t<T>>& launch, Pointers all, const Block& b) {
    const int64_t columns = launch.columns[b.parameter];
    return {all[b.parameter] + b.row * columns + b.column, columns};
}

// Scalar products of x (depth) with `lanes` rows of w.
template <class T>
VRNN_INLINE Vec<T> dots(int64_t depth, const T* x, Matrix<const T> w) {
    constexpr int64_t W = lanes<T>;
    Vec<T> sums[W]{};
    for_vectors<T>(depth, [&](int64_t k, int64_t n) {
        const Vec<T> element = load(x + k, n);
#pragma GCC unroll 16
        for (int64_t i = 0; i < W; ++i) sums[i] += load(w[i] + k, n) * element;
    });
    transpose<T>(sums);
    for (int64_t width = W / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
    return sums[0];
}

// target (rows, target width) = bias, or what it holds, + source (rows, source width) times the transposed weights.
template <class T>
static void unpacked_product(const Launch<T>& launch, const Stage& s, int64_t rows, Matrix<T> source, Matrix<T> target,
                             const T* bias) {
    constexpr int64_t W = lanes<T>;
    const int64_t depth = s.source.width;
    if (!s.accumulate) fill_rows<T>(rows, s.target.width, bias, target);
    for (const Block& b : s.blocks) {
        const Matrix<const T> w = of_block<const T>(launch, launch.parameters, b);
        int64_t i = 0;
        for (; i + W <= b.rows; i += W)
            for (int64_t row = 0; row < rows; ++row) {
                T* const to = target[row] + b.at + i;
                store(to, load(to) + dots(depth, source[row], w.rows(i)));
            }
        for (; i < b.rows; ++i)
            for (int64_t row = 0; row < rows; ++row) {
                Vec<T> total{};
                for_vectors<T>(depth,
                               [&](int64_t k, int64_t n) { total += load(w[i] + k, n) * load(source[row] + k, n); });
                target[row][b.at + i] += sum<T>(total);
            }
    }
}

// d_source (rows, source width) = zeros, or what it holds, + d_target (rows, target width) times the weights.
template <class T>
static void unpacked_input_gradient(const Launch<T>& launch, const Stage& s, int64_t rows, Matrix<T> d_target,
                                    Matrix<T> d_source) {
    constexpr int64_t W = lanes<T>, NR = Tile<T>::columns;
    const int64_t whole = s.source.width / W * W, rest = s.source.width - whole;
    if (s.first_gradient)
        for (int64_t row = 0; row < rows; ++row) set_zero(d_source[row], s.source.width);
    for (const Block& b : s.blocks) {
        const Matrix<const T> w = of_block<const T>(launch, launch.parameters, b);
        const Matrix<T> d = d_target.columns(b.at);
        product<T>(rows, whole,
                   {b.rows, d.data, d.stride, 1, w.data, NR, w.stride, d_source.data, d_source.stride, Start::keep,
                    nullptr, b.rows});
        if (rest == 0) continue;
        for (int64_t row = 0; row < rows; ++row) {
            Vec<T> sums[4]{};
            int64_t i = 0;
            for (; i + 4 <= b.rows; i += 4)
                for (int64_t k = 0; k < 4; ++k) sums[k] += all(d[row][i + k]) * load(w[i + k] + whole, rest);
            for (; i < b.rows; ++i) sums[0] += all(d[row][i]) * load(w[i] + whole, rest);
            T* const to = d_source[row] + whole;
            store(to, load(to, rest) + ((sums[0] + sums[1]) + (sums[2] + sums[3])), rest);
        }
    }
}

// to (outputs, inputs) = d_target^T source, of as many rows
template <class T, int rows>
static void outer_products(int64_t outputs, int64_t inputs, Matrix<T> d_target, Matrix<T> source, Matrix<T> to) {
    for (int64_t i = 0; i < outputs; ++i) {
        Vec<T> d[rows + 1];
        for (int row = 0; row < rows; ++row) d[row] = all(d_target[row][i]);
        for_vectors<T>(inputs, [&](int64_t j, int64_t n) {
            Vec<T> total{};
            for (int row = 0; row < rows; ++row) total += d[row] * load(source[row] + j, n);
            store(to[i] + j, total, n);
        });
    }
}

template <class T, int most = tuning::unpacked_rows>
VRNN_INLINE void outer_products_of(int64_t rows, int64_t outputs, int64_t inputs, Matrix<T> d_target, Matrix<T> source,
                                   Matrix<T> to) {
    if constexpr (most > 0)
        if (rows < most) return outer_products_of<T, most - 1>(rows, outputs, inputs, d_target, source, to);
    outer_products<T, most>(outputs, inputs, d_target, source, to);
}

// The gradients of a stage's weights, of all rows that the call has: d_target^T source. Zeros of no rows, and where no
// gradient arrives.
template <class T>
static void write_weight_gradient(const Launch<T>& launch, const Stage& s, int64_t rows, Matrix<T> d_target,
                                  Matrix<T> source) {
    if (!launch.reached[s.target.buffer]) rows = 0;
    for (const Block& b : s.blocks)
        outer_products_of<T>(rows, b.rows, s.source.width, d_target.columns(b.at), source,
                             of_block<T>(launch, launch.d_parameters, b));
}

}  // namespace vrnn::VRNN_ISA
