// Activations. Where the gradient comes from the result they are in place; else what they read is kept apart.
#pragma once

#include "../../core/program.h"
#include "../math.h"
#include "../matrix.h"

namespace vrnn::VRNN_ISA {

template <class T>
VRNN_INLINE Vec<T> activate(Activation kind, Vec<T> x) {
    switch (kind) {
        case Activation::relu: return x < 0 ? Vec<T>{} : x;
        case Activation::leaky_relu: return x < 0 ? x * T(0.01) : x;
        case Activation::tanh: return tanh(x);
        case Activation::elu: return x < 0 ? expm1(x) : x;
        case Activation::silu: return x * sigmoid(x);
        case Activation::gelu: return x * normal_cdf(x);
        case Activation::identity: break;
    }
    return x;
}

// d times the derivative, from the result y; of silu and gelu from x. What a mask stops is selected, here and below: it
// may be infinite.
template <class T>
VRNN_INLINE Vec<T> activate_backward(Activation kind, Vec<T> at, Vec<T> d) {
    const Vec<T> one = all<T>(1), x = at, y = at;
    switch (kind) {
        case Activation::relu: return y <= 0 ? Vec<T>{} : d;
        case Activation::leaky_relu: return y > 0 ? d : d * T(0.01);
        case Activation::tanh: return unless_zero<T>(d, d * (one - y * y));
        case Activation::elu: return y > 0 ? d : unless_zero<T>(d, d * (y + one));
        case Activation::silu: {
            const Vec<T> s = sigmoid(x);
            return unless_zero<T>(d, d * (s * (one + x * (one - s))));
        }
        case Activation::gelu: return unless_zero<T>(d, d * (normal_cdf(x) + x * normal_density(x)));
        case Activation::identity: break;
    }
    return d;
}

template <class T, Activation kind>
static void activate_rows(int64_t rows, int64_t width, Matrix<T> x, Matrix<T> y) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) { store(y[i] + j, activate<T>(kind, load(x[i] + j, n)), n); });
}

template <class T, Activation kind>
static void activate_rows_backward(int64_t rows, int64_t width, Matrix<T> at, Matrix<T> dy, Matrix<T> dx) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            store(dx[i] + j, activate_backward<T>(kind, load(at[i] + j, n), load(dy[i] + j, n)), n);
        });
}

// y (rows, width) = f(x), which may be the same memory
template <class T>
static void activate_forward(Activation kind, int64_t rows, int64_t width, Matrix<T> x, Matrix<T> y) {
    switch (kind) {
        case Activation::relu: return activate_rows<T, Activation::relu>(rows, width, x, y);
        case Activation::leaky_relu: return activate_rows<T, Activation::leaky_relu>(rows, width, x, y);
        case Activation::tanh: return activate_rows<T, Activation::tanh>(rows, width, x, y);
        case Activation::elu: return activate_rows<T, Activation::elu>(rows, width, x, y);
        case Activation::silu: return activate_rows<T, Activation::silu>(rows, width, x, y);
        case Activation::gelu: return activate_rows<T, Activation::gelu>(rows, width, x, y);
        case Activation::identity: return;
    }
}

// at (rows, width) is what the memory of x holds after forward; dx is written, and may be that of dy
template <class T>
static void activate_backward(Activation kind, int64_t rows, int64_t width, Matrix<T> at, Matrix<T> dy, Matrix<T> dx) {
    switch (kind) {
        case Activation::relu: return activate_rows_backward<T, Activation::relu>(rows, width, at, dy, dx);
        case Activation::leaky_relu: return activate_rows_backward<T, Activation::leaky_relu>(rows, width, at, dy, dx);
        case Activation::tanh: return activate_rows_backward<T, Activation::tanh>(rows, width, at, dy, dx);
        case Activation::elu: return activate_rows_backward<T, Activation::elu>(rows, width, at, dy, dx);
        case Activation::silu: return activate_rows_backward<T, Activation::silu>(rows, width, at, dy, dx);
        case Activation::gelu: return activate_rows_backward<T, Activation::gelu>(rows, width, at, dy, dx);
        case Activation::identity: return;
    }
}

}  // namespace vrnn::VRNN_ISA
