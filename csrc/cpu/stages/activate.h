// Activations, in place. Their gradient comes from their result.
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
        case Activation::tanh: return unless_zero<T>(d, d * (one - y * y));
        case Activation::elu: return y > 0 ? d : unless_zero<T>(d, d * (y + one));
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

}  // namespace vrnn::VRNN_ISA
