// The update of a cell's state, from the sums that its gates are the functions of.
#pragma once

#include "../math.h"
#include "../matrix.h"

namespace vrnn::VRNN_ISA {

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
            const Vec<T> dn = unless_zero<T>(d, d * (one - u) * (one - candidate * candidate)),
                         past = load(dh[i] + j, n);
            store(dg + j, unless_zero<T>(dn, dn * load(n_h[i] + j, n) * r * (one - r)), n);
            store(dg + width + j, unless_zero<T>(d, d * (load(h[i] + j, n) - candidate) * u * (one - u)), n);
            store(dg + 2 * width + j, dn, n);
            store(dn_h[i] + j, unless_zero<T>(dn, dn * r), n);
            store(dh[i] + j, d == 0 ? past : past + d * u, n);
        });
    }
}

// An LSTM's c is a sum of two products, of which the compiler fuses one and rounds the other: which, depends on the
// code around. Its functions are not inlined, so that a change elsewhere changes no bit.

// gates [i | f | g | o] (rows, 4 width) become their activations; c (rows, width); next_h, next_c or null
template <class T>
static __attribute__((noinline)) void lstm_forward(int64_t rows, int64_t width, Matrix<T> gates, Matrix<T> c,
                                                   Matrix<T> next_h, Matrix<T> next_c) {
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
static __attribute__((noinline)) void lstm_backward(int64_t rows, int64_t width, Matrix<T> gates, Matrix<T> c,
                                                    Matrix<T> dnext_h, Matrix<T> dnext_c, Matrix<T> dgates,
                                                    Matrix<T> dc) {
    for (int64_t k = 0; k < rows; ++k) {
        const T* g = gates[k];
        T* dg = dgates[k];
        for_vectors<T>(width, [&](int64_t j, int64_t n) {
            const Vec<T> one = all<T>(1);
            const Vec<T> input = load(g + j, n), forget = load(g + width + j, n);
            const Vec<T> candidate = load(g + 2 * width + j, n), output = load(g + 3 * width + j, n);
            const Vec<T> before = load(c[k] + j, n), squashed = tanh(forget * before + input * candidate);
            const Vec<T> dh = dnext_h ? load(dnext_h[k] + j, n) : Vec<T>{};
            const Vec<T> later = dnext_c ? load(dnext_c[k] + j, n) : Vec<T>{};
            const Vec<T> dcell = dh == 0 ? later : later + dh * output * (one - squashed * squashed);
            store(dg + j, unless_zero<T>(dcell, dcell * candidate * input * (one - input)), n);
            store(dg + width + j, unless_zero<T>(dcell, dcell * before * forget * (one - forget)), n);
            store(dg + 2 * width + j, unless_zero<T>(dcell, dcell * input * (one - candidate * candidate)), n);
            store(dg + 3 * width + j, unless_zero<T>(dh, dh * squashed * output * (one - output)), n);
            store(dc[k] + j, unless_zero<T>(dcell, dcell * forget), n);
        });
    }
}

}  // namespace vrnn::VRNN_ISA
