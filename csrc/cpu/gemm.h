// One register-blocked micro-kernel for all products: forward, input gradient and weight gradient.
//
// It computes a tile C[M][panels of NR] (+)= sum_k A(i, k) * B(k, j). A is read one element at a time and broadcast,
// so both of its strides are free: rows of activations (forward and input gradient) or columns (weight gradient).
// B is read in whole vectors: weights packed in panels of NR columns, or unpacked activations.
#pragma once

#include "tuning.h"
#include "vec.h"

namespace vrnn::VRNN_ISA {

enum class Start { zero, bias, keep };  // what C holds before the products are added

template <class T>
struct Tile {
    static constexpr int64_t columns = tuning::panel_vectors * lanes<T>;  // NR
    static constexpr int64_t rows = tuning::tile_rows;                    // MR
};

// a (M, depth) by (row, step); b: P panels, `panel` apart, each (depth, V vectors) with row stride b_step;
// c (M, P * V vectors); bias (P * V vectors), read only for Start::bias.
template <class T, int M, int V, int P>
static inline __attribute__((always_inline)) void micro_kernel(int64_t depth, const T* __restrict a, int64_t a_row,
                                                               int64_t a_step, const T* __restrict b, int64_t panel,
                                                               int64_t b_step, T* __restrict c, int64_t c_row,
                                                               Start start, const T* bias) {
    constexpr int64_t W = lanes<T>;
    Vec<T> sum[M][P * V] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> row[P * V];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
            for (int j = 0; j < V; ++j) row[p * V + j] = load(b + p * panel + j * W);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            const Vec<T> element = all<T>(a[i * a_row]);
#pragma GCC unroll 16
            for (int j = 0; j < P * V; ++j) sum[i][j] += element * row[j];
        }
        a += a_step;
        b += b_step;
    }
    // What C starts from is added last: the products are summed at their own magnitude, which rounds less.
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < P * V; ++j) {
            T* to = c + i * c_row + j * W;
            if (start == Start::keep) sum[i][j] += load(to);
            if (start == Start::bias) sum[i][j] += load(bias + j * W);
            store(to, sum[i][j]);
        }
}

// The operands of one strip: `vectors` vectors in each of `panels` panels.
template <class T>
struct Strip {
    int64_t depth;
    const T* a;
    int64_t a_row, a_step;
    const T* b;
    int64_t panel, b_step;
    T* c;
    int64_t c_row;
    Start start;
    const T* bias;
    int64_t longest;  // steps of k summed one after the other; longer sums are summed piece by piece, to round less
};

template <class T, int M, int V, int P>
static __attribute__((noinline)) void tile(const Strip<T>& s, int64_t row) {
    constexpr int64_t width = P * V * lanes<T>;
    const T* const a = s.a + row * s.a_row;
    T* const c = s.c + row * s.c_row;
    const int64_t pieces = (s.depth + s.longest - 1) / s.longest;
    alignas(64) T partial[M * width];
    for (int64_t i = 0; i < pieces; ++i) {
        const int64_t k = s.depth * i / pieces, end = s.depth * (i + 1) / pieces;
        micro_kernel<T, M, V, P>(end - k, a + k * s.a_step, s.a_row, s.a_step, s.b + k * s.b_step, s.panel, s.b_step,
                                 pieces > 1 ? partial : c, pieces > 1 ? width : s.c_row,
                                 pieces == 1 ? s.start
                                 : i         ? Start::keep
                                             : Start::zero,
                                 s.bias);
    }
    if (pieces == 1) return;
    for (int i = 0; i < M; ++i)
        for (int64_t j = 0; j < width; j += lanes<T>) {
            T* to = c + i * s.c_row + j;
            const Vec<T> sum = load(partial + i * width + j);
            store(to, s.start == Start::keep ? load(to) + sum : s.start == Start::bias ? load(s.bias + j) + sum : sum);
        }
}

// Calls tile<T, m, V, P> for a run-time 0 <= m <= M.
template <class T, int V, int P, int M>
VRNN_INLINE void tile_of(int64_t m, const Strip<T>& s, int64_t row) {
    if constexpr (M > 0) {
        if (m == M) return tile<T, M, V, P>(s, row);
        return tile_of<T, V, P, M - 1>(m, s, row);
    }
}

// Rows are dealt evenly to as few tiles as they need: 8 rows are 4 + 4, not 6 + 2.
template <class T, class F>
VRNN_INLINE void for_tiles(int64_t rows, F f) {
    const int64_t tiles = (rows + Tile<T>::rows - 1) / Tile<T>::rows, each = rows / tiles, larger = rows % tiles;
    int64_t row = 0;
    for (int64_t i = 0; i < larger; ++i, row += each + 1) f(row, each + 1);
    for (int64_t i = larger; i < tiles; ++i, row += each) f(row, each);
}

template <class T, int V>
static void strip(int64_t rows, const Strip<T>& s) {
    for_tiles<T>(rows, [&](int64_t row, int64_t m) { tile_of<T, V, 1, Tile<T>::rows>(m, s, row); });
}

// A last strip narrower than its vectors works on a copy, so that nothing beyond C's own columns is touched.
template <class T, int V>
static void narrow_strip(int64_t rows, const Strip<T>& s, int64_t width) {
    alignas(64) T copy[Tile<T>::rows * Tile<T>::columns];
    for_tiles<T>(rows, [&](int64_t row, int64_t m) {
        T* c = s.c + row * s.c_row;
        if (s.start == Start::keep)
            for (int64_t i = 0; i < m; ++i)
                for (int64_t j = 0; j < width; ++j) copy[i * Tile<T>::columns + j] = c[i * s.c_row + j];
        Strip<T> local = s;
        local.a += row * s.a_row;
        local.c = copy;
        local.c_row = Tile<T>::columns;
        tile_of<T, V, 1, Tile<T>::rows>(m, local, 0);
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < width; ++j) c[i * s.c_row + j] = copy[i * Tile<T>::columns + j];
    });
}

template <class T, int V>
VRNN_INLINE void strip_of(int64_t vectors, int64_t rows, const Strip<T>& s, int64_t width) {
    if constexpr (V > 0) {
        if (vectors != V) return strip_of<T, V - 1>(vectors, rows, s, width);
        if (width == V * lanes<T>) return strip<T, V>(rows, s);
        return narrow_strip<T, V>(rows, s, width);
    }
}

// Few rows leave too few independent sums to hide the latency of an FMA: walk several panels at once.
template <class T, int M, int P>
static int64_t wide(const Strip<T>& s, int64_t columns) {
    constexpr int64_t NR = Tile<T>::columns;
    int64_t column = 0;
    for (; column + P * NR <= columns; column += P * NR) {
        Strip<T> part = s;
        part.b += column / NR * s.panel;
        part.c += column;
        part.bias += column;
        tile<T, M, tuning::panel_vectors, P>(part, 0);
    }
    return column;
}

// C (rows, columns) (+)= A (rows, depth) * B (depth, columns); B's panels are `panel` elements apart. `padded` allows
// stores up to the next whole vector of C.
template <class T>
static void product(int64_t rows, int64_t columns, Strip<T> s, bool padded = false) {
    constexpr int64_t NR = Tile<T>::columns, W = lanes<T>;
    if (rows <= 0 || columns <= 0) return;
    int64_t column = 0;
    if (rows == 1) column = wide<T, 1, tuning::panels_for_one_row>(s, columns);
    if (rows == 2) column = wide<T, 2, tuning::panels_for_two_rows>(s, columns);
    for (; column < columns; column += NR) {
        const int64_t width = columns - column < NR ? columns - column : NR;
        Strip<T> part = s;
        part.b += column / NR * s.panel;
        part.c += column;
        part.bias += column;
        const int64_t vectors = (width + W - 1) / W;
        strip_of<T, tuning::panel_vectors>(vectors, rows, part, padded ? vectors * W : width);
    }
}

// B packed by pack(): panel p holds columns [p NR, (p + 1) NR) for all of `depth`, the last one only the vectors it
// needs. Long sums are cut so that a panel's piece stays in the first-level cache.
template <class T>
static void packed_product(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, const T* b, T* c,
                           int64_t c_row, Start start, const T* bias) {
    constexpr int64_t NR = Tile<T>::columns, W = lanes<T>, piece = tuning::depth_bytes / (NR * sizeof(T));
    const int64_t pieces = (depth + piece - 1) / piece;
    const int64_t full = columns / NR * NR, rest = columns - full, rest_stride = (rest + W - 1) / W * W;
    for (int64_t i = 0; i < pieces; ++i) {
        const int64_t k = depth * i / pieces, k_end = depth * (i + 1) / pieces;
        Strip<T> s{k_end - k, a + k, a_row, 1, b + k * NR, depth * NR, NR, c, c_row, i ? Start::keep : start,
                   bias,      depth};
        product(rows, full, s);
        s.b = b + full * depth + k * rest_stride;
        s.b_step = rest_stride;
        s.c += full;
        s.bias += full;
        product(rows, rest, s);
    }
}

// Where a block of weights goes inside a packed matrix (depth, columns).
struct Region {
    int64_t column, columns, depth, depths;
};

// Writes W rows of w, `w_row` apart, as W adjacent columns.
template <class T>
static void pack_columns(T* to, int64_t stride, const T* w, int64_t w_row, int64_t depth) {
    constexpr int64_t W = lanes<T>;
    int64_t k = 0;
    for (; k + W <= depth; k += W) {
        Vec<T> square[W];
        for (int64_t i = 0; i < W; ++i) square[i] = load(w + i * w_row + k);
        transpose<T>(square);
        for (int64_t i = 0; i < W; ++i) store(to + (k + i) * stride, square[i]);
    }
    for (; k < depth; ++k)
        for (int64_t i = 0; i < W; ++i) to[k * stride + i] = w[i * w_row + k];
}

// Writes one block w, element (k, j) at w[k * w_depth + j * w_column], into panels as packed_product reads them. One
// of the two strides is 1.
template <class T>
static void pack(T* out, int64_t columns, int64_t depth, Region region, const T* w, int64_t w_column, int64_t w_depth) {
    constexpr int64_t NR = Tile<T>::columns, W = lanes<T>;
    const int64_t full = columns / NR * NR, rest_stride = (columns - full + W - 1) / W * W;
    const int64_t end = region.column + region.columns;
    for (int64_t column = region.column; column < end;) {
        const int64_t panel = column / NR * NR, stride = panel < full ? NR : rest_stride;
        const int64_t count = (end < panel + NR ? end : panel + NR) - column;
        T* to = out + panel * depth + region.depth * stride + column - panel;
        const T* from = w + (column - region.column) * w_column;
        if (w_column == 1) {
            for (int64_t k = 0; k < region.depths; ++k) {
                int64_t j = 0;
                for (; j + W <= count; j += W) store(to + k * stride + j, load(from + k * w_depth + j));
                for (; j < count; ++j) to[k * stride + j] = from[k * w_depth + j];
            }
        } else {
            int64_t j = 0;
            for (; j + W <= count; j += W) pack_columns(to + j, stride, from + j * w_column, w_column, region.depths);
            for (; j < count; ++j)
                for (int64_t k = 0; k < region.depths; ++k) to[k * stride + j] = from[k + j * w_column];
        }
        if (column + count == columns)  // what lies behind the last column is multiplied, never stored
            for (int64_t k = 0; k < region.depths; ++k)
                for (int64_t j = count; column - panel + j < stride; ++j) to[k * stride + j] = 0;
        column += count;
    }
}

}  // namespace vrnn::VRNN_ISA
