// One register-blocked micro-kernel for all products: forward, input gradient and weight gradient.
//
// It computes a tile C[M][panels of NR] (+)= sum_k A(i, k) * B(k, j). A is read one element at a time and broadcast,
// so both of its strides are free: rows of activations (forward and input gradient) or columns (weight gradient).
// B is read in whole vectors: weights packed in panels of NR columns, or unpacked activations.
#pragma once

#include "matrix.h"
#include "tuning.h"
#include "vec.h"

namespace vrnn::VRNN_ISA {

enum class Start { zero, bias, keep };  // what C holds before the products are added

template <class T>
struct Tile {
    static constexpr int64_t columns = tuning::panel_vectors * lanes<T>;                // NR
    static constexpr int64_t rows = tuning::tile_rows;                                  // MR
    static constexpr int64_t row_stride = (rows + lanes<T> - 1) / lanes<T> * lanes<T>;  // of a copy of its rows' A
};

// The operands of a product, or of one strip of it: the columns of one panel.
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
    int64_t longest;          // steps of k in one sum; longer ones are summed piece by piece, to round less
    const T* next = nullptr;  // fetched meanwhile into the first-level cache, `next_step` a step of k
    int64_t next_step = 0, next_tile = 0;
};

// Keeps the compiler from expressing one address by another: it would spill a dozen of them around every tile.
template <class P>
VRNN_INLINE void own_register(P*& pointer) {
    asm volatile("" : "+r"(pointer));
}

// `count` tiles below one another, from `row` on. a (count * M, depth) by (row, step); b (depth, V vectors) with row
// stride b_step; c (count * M, V vectors); bias (V vectors), read only for Start::bias.
template <class T, int M, int V>
static __attribute__((noinline)) void tiles(const Strip<T>& s, int64_t row, int64_t count) {
    constexpr int64_t W = lanes<T>;
    constexpr int groups = (M + 2) / 3;  // three rows of A are reached from one pointer by scaling a_row
    constexpr int strands = M * V < tuning::sums ? (tuning::sums + M * V - 1) / (M * V) : 1;  // of k, side by side
    const int64_t a_row = s.a_row, a_step = s.a_step, b_step = s.b_step, c_row = s.c_row, next_step = s.next_step;
    const T* const bias = s.bias;
    const T* a_tile = s.a + row * a_row;
    T* c_tile = s.c + row * c_row;
    const T* next_tile = s.next + row / M * s.next_tile;
    for (; count > 0; --count, a_tile += M * a_row, c_tile += M * c_row, next_tile += s.next_tile) {
        T* to = c_tile;
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i, to += c_row) {
            own_register(to);
#pragma GCC unroll 16
            for (int j = 0; j < V; ++j) __builtin_prefetch(to + j * W, 1, 2);
        }
        const T *a[groups], *b = s.b, *next = next_tile;
#pragma GCC unroll 16
        for (int g = 0; g < groups; ++g) a[g] = a_tile + 3 * g * a_row;
        Start start = s.start;
        for (int64_t left = s.depth; left > 0;) {
            int64_t k = left < s.longest ? left : s.longest;
            left -= k;
            Vec<T> sum[strands][M][V] = {};
            for (; k > 0; k -= strands) {
                __builtin_prefetch(next);
                next += next_step;
#pragma GCC unroll 16
                for (int strand = 0; strand < strands; ++strand) {
                    if (strand >= k) break;
                    Vec<T> columns[V];
#pragma GCC unroll 16
                    for (int j = 0; j < V; ++j) columns[j] = load(b + j * W);
                    b += b_step;
#pragma GCC unroll 16
                    for (int i = 0; i < M; ++i) {
                        const Vec<T> element = all<T>(a[i / 3][i % 3 * a_row]);
#pragma GCC unroll 16
                        for (int j = 0; j < V; ++j) sum[strand][i][j] += element * columns[j];
                    }
#pragma GCC unroll 16
                    for (int g = 0; g < groups; ++g) {
                        a[g] += a_step;
                        own_register(a[g]);
                    }
                }
            }
            // What C starts from is added last: the products are summed at their own magnitude, which rounds less.
            to = c_tile;
#pragma GCC unroll 16
            for (int i = 0; i < M; ++i, to += c_row) {
                own_register(to);
#pragma GCC unroll 16
                for (int j = 0; j < V; ++j) {
                    Vec<T> total = sum[0][i][j];
#pragma GCC unroll 16
                    for (int strand = 1; strand < strands; ++strand) total += sum[strand][i][j];
                    if (start == Start::keep) total += load(to + j * W);
                    if (start == Start::bias) total += load(bias + j * W);
                    store(to + j * W, total);
                }
            }
            start = Start::keep;
        }
    }
}

// Calls tiles<T, m, V> for a run-time 0 <= m <= M.
template <class T, int V, int M = tuning::tile_rows>
VRNN_INLINE void tiles_of(int64_t m, const Strip<T>& s, int64_t row, int64_t count) {
    if constexpr (M > 0) {
        if (m == M) return tiles<T, M, V>(s, row, count);
        return tiles_of<T, V, M - 1>(m, s, row, count);
    }
}

// Rows are dealt evenly to as few tiles as they need: 8 rows are 4 + 4, not 6 + 2. Calls f(first row, rows of a tile,
// tiles) for the larger and the smaller ones.
template <class T, class F>
VRNN_INLINE void for_tiles(int64_t rows, F f) {
    const int64_t count = (rows + Tile<T>::rows - 1) / Tile<T>::rows, each = rows / count, larger = rows % count;
    if (larger) f(0, each + 1, larger);
    f(larger * (each + 1), each, count - larger);
}

template <class T, int V>
static void strip(int64_t rows, const Strip<T>& s) {
    for_tiles<T>(rows, [&](int64_t row, int64_t m, int64_t n) { tiles_of<T, V>(m, s, row, n); });
}

// A last strip narrower than its vectors works on a copy, so that nothing beyond C's own columns is touched.
template <class T, int V>
static void narrow_strip(int64_t rows, const Strip<T>& s, int64_t width) {
    constexpr int64_t most = Tile<T>::rows, stride = V * lanes<T>;
    alignas(64) T copy[most * stride];
    for (int64_t row = 0; row < rows; row += most) {
        const int64_t m = rows - row < most ? rows - row : most;
        T* c = s.c + row * s.c_row;
        if (s.start == Start::keep)
            for (int64_t i = 0; i < m; ++i)
                for (int64_t j = 0; j < width; ++j) copy[i * stride + j] = c[i * s.c_row + j];
        Strip<T> local = s;
        local.a += row * s.a_row;
        local.c = copy;
        local.c_row = stride;
        tiles_of<T, V>(m, local, 0, 1);
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < width; ++j) c[i * s.c_row + j] = copy[i * stride + j];
    }
}

template <class T, int V>
VRNN_INLINE void strip_of(int64_t vectors, int64_t rows, const Strip<T>& s, int64_t width) {
    if constexpr (V > 0) {
        if (vectors != V) return strip_of<T, V - 1>(vectors, rows, s, width);
        if (width == V * lanes<T>) return strip<T, V>(rows, s);
        return narrow_strip<T, V>(rows, s, width);
    }
}

// C (rows, columns) (+)= A (rows, depth) * B (depth, columns); B's panels are `panel` elements apart. `padded` allows
// stores up to the next whole vector of C.
template <class T>
static void product(int64_t rows, int64_t columns, Strip<T> s, bool padded = false) {
    constexpr int64_t NR = Tile<T>::columns, W = lanes<T>;
    if (rows <= 0 || columns <= 0) return;
    for (int64_t column = 0; column < columns; column += NR) {
        const int64_t width = columns - column < NR ? columns - column : NR;
        Strip<T> part = s;
        part.b += column / NR * s.panel;
        part.c += column;
        part.bias += column;
        const int64_t vectors = (width + W - 1) / W;
        if (s.a_row != 1 && rows > 2 * Tile<T>::rows) {
            part.next = part.b + s.panel;
            part.next_step = Tile<T>::rows * s.b_step / rows;
            part.next_tile = part.next_step * s.depth;
        }
        strip_of<T, tuning::panel_vectors>(vectors, rows, part, padded ? vectors * W : width);
    }
}

// Of a product: C (rows, columns), whose every element is a sum of `depth` products.
struct Sizes {
    int64_t rows, columns, depth;
};

// B packed by pack(): panel p holds columns [p NR, (p + 1) NR) for all of `depth`, the last one only the vectors it
// needs. Long sums are cut so that a panel's piece stays in the first-level cache.
template <class T>
static void packed_product(Sizes size, Matrix<T> a, const T* b, Matrix<T> c, Start start, const T* bias, bool padded) {
    const auto [rows, columns, depth] = size;
    constexpr int64_t NR = Tile<T>::columns, W = lanes<T>, piece = tuning::depth_bytes / (NR * sizeof(T));
    const int64_t pieces = (depth + piece - 1) / piece;
    const int64_t full = columns / NR * NR, rest = columns - full, rest_stride = (rest + W - 1) / W * W;
    for (int64_t i = 0; i < pieces; ++i) {
        const int64_t k = depth * i / pieces, k_end = depth * (i + 1) / pieces;
        Strip<T> s{k_end - k,  a.data + k, a.stride, 1,        b + k * NR,
                   depth * NR, NR,         c.data,   c.stride, i ? Start::keep : start,
                   bias,       depth};
        product(rows, full, s);
        s.b = b + full * depth + k * rest_stride;
        s.b_step = rest_stride;
        s.c += full;
        s.bias += full;
        product(rows, rest, s, padded);
    }
}

// Elements that weight_gradient() wants as scratch, for a target of `outputs` columns.
template <class T>
constexpr int64_t weight_gradient_scratch(int64_t outputs) {
    const int64_t tiles = (outputs + Tile<T>::rows - 1) / Tile<T>::rows;
    return tiles * tuning::gradient_rows * Tile<T>::row_stride;
}

// C (rows, columns) (+)= dY^T X for dY (depth, rows) and X (depth, columns). Stores up to the next whole vector of
// C's rows, and reads as far of X's and dY's. Rows of activations are pages apart: what is read once for each tile (dY)
// or for each panel (X) is copied together first, where there are enough of them to pay for it.
template <class T>
static void weight_gradient(Sizes size, Matrix<T> dy, Matrix<T> x, Matrix<T> c, Start start, T* scratch) {
    const auto [outputs, inputs, rows] = size;
    constexpr int64_t NR = Tile<T>::columns, MR = Tile<T>::rows, stride = Tile<T>::row_stride, W = lanes<T>;
    if (inputs <= tuning::gradient_panels * NR || outputs < tuning::gradient_tiles * MR) {
        const Strip<T> whole{rows,     dy.data, 1,        dy.stride, x.data,  NR,
                             x.stride, c.data,  c.stride, start,     nullptr, tuning::longest_sum};
        return product<T>(outputs, inputs, whole, true);
    }
    alignas(64) T panel[tuning::gradient_rows * NR];
    const int64_t blocks = (rows + tuning::gradient_rows - 1) / tuning::gradient_rows;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t from = rows * block / blocks, n = rows * (block + 1) / blocks - from;
        const int64_t tile_size = n * stride;
        for (int64_t output = 0; output < outputs; output += 8 * MR)  // some tiles at a time: each row is another page
            for (int64_t i = 0; i < n; ++i) {
                const T* row = dy[from + i];
                for (int64_t at = output; at < outputs && at < output + 8 * MR; at += MR) {
                    __builtin_prefetch(row + tuning::rows_ahead * dy.stride + at);
                    for (int64_t j = 0; j < stride; j += W)
                        store(scratch + at / MR * tile_size + i * stride + j, load(row + at + j));
                }
            }
        for (int64_t input = 0; input < inputs; input += NR) {
            const int64_t vectors = (inputs - input < NR ? inputs - input + W - 1 : NR) / W;
            for (int64_t i = 0; i < n; ++i) {
                const T* row = x[from + i] + input;
                for (int64_t j = 0; j < vectors * W; j += W) {
                    __builtin_prefetch(row + tuning::rows_ahead * x.stride + j);
                    store(panel + i * NR + j, load(row + j));
                }
            }
            for (int64_t output = 0; output < outputs; output += MR) {
                const Start from_what = block ? Start::keep : start;
                const T* a = scratch + output / MR * tile_size;
                Strip<T> s{n,        a,         1,       stride,
                           panel,    0,         NR,      c[output] + input,
                           c.stride, from_what, nullptr, tuning::longest_sum};
                s.next = a + tile_size;
                s.next_step = stride;
                const int64_t m = outputs - output < MR ? outputs - output : MR;
                if (vectors == tuning::panel_vectors)
                    tiles_of<T, tuning::panel_vectors>(m, s, 0, 1);
                else
                    tiles_of<T, 1>(m, s, 0, 1);
            }
        }
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
