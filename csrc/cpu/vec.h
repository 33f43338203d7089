// Vectors of one register, by GCC's vector extensions: the same source for every instruction set.
// Included once per kernel_<isa>.cpp, which sets VRNN_ISA (a namespace) and VRNN_VECTOR_BYTES.
#pragma once

#if VRNN_VECTOR_BYTES >= 32
#    include <immintrin.h>
#endif

#include <cstdint>
#include <utility>

namespace vrnn::VRNN_ISA {

template <class T>
struct Register;

template <>
struct Register<float> {
    typedef float V __attribute__((vector_size(VRNN_VECTOR_BYTES)));
    typedef int32_t I __attribute__((vector_size(VRNN_VECTOR_BYTES)));
    typedef float Unaligned __attribute__((vector_size(VRNN_VECTOR_BYTES), aligned(4), may_alias));
    using Int = int32_t;
};

template <>
struct Register<double> {
    typedef double V __attribute__((vector_size(VRNN_VECTOR_BYTES)));
    typedef int64_t I __attribute__((vector_size(VRNN_VECTOR_BYTES)));
    typedef double Unaligned __attribute__((vector_size(VRNN_VECTOR_BYTES), aligned(8), may_alias));
    using Int = int64_t;
};

template <class T>
using Vec = typename Register<T>::V;
template <class T>
using IntVec = typename Register<T>::I;
template <class T>
inline constexpr int64_t lanes = VRNN_VECTOR_BYTES / sizeof(T);

#define VRNN_INLINE static inline __attribute__((always_inline))

template <class T>
VRNN_INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename Register<T>::Unaligned*>(p);
}

template <class T>
VRNN_INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename Register<T>::Unaligned*>(p) = v;
}

template <class T>
VRNN_INLINE Vec<T> all(T value) {
    return value - Vec<T>{};  // unlike value + 0, exact for -0 and so a plain broadcast
}

// Whether a lane is one of the first n.
template <class T>
VRNN_INLINE IntVec<T> among_first(int64_t n) {
    IntVec<T> lane{};
    for (int64_t i = 0; i < lanes<T>; ++i) lane[i] = i;
    return lane < (typename Register<T>::Int)n;
}

// The first n < lanes<T> lanes of memory, zeros behind them.
template <class T>
VRNN_INLINE Vec<T> load_some(const T* p, int64_t n) {
#if VRNN_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == sizeof(float))
        return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    else
        return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif VRNN_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == sizeof(float))
        return (Vec<T>)_mm256_maskload_ps(p, (__m256i)among_first<T>(n));
    else
        return (Vec<T>)_mm256_maskload_pd(p, (__m256i)among_first<T>(n));
#else
    Vec<T> v{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
#endif
}

template <class T>
VRNN_INLINE void store_some(T* p, Vec<T> v, int64_t n) {
#if VRNN_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == sizeof(float))
        _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
    else
        _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#elif VRNN_VECTOR_BYTES == 32
    // in halves: a masked store of AVX2 takes some forty operations on AMD's processors
    if constexpr (sizeof(T) == sizeof(float)) {
        __m128 rest = _mm256_castps256_ps128((__m256)v);
        if (n & 4) {
            _mm_storeu_ps(p, rest);
            p += 4;
            rest = _mm256_extractf128_ps((__m256)v, 1);
        }
        if (n & 2) {
            _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
            p += 2;
            rest = _mm_movehl_ps(rest, rest);
        }
        if (n & 1) _mm_store_ss(p, rest);
    } else {
        __m128d rest = _mm256_castpd256_pd128((__m256d)v);
        if (n & 2) {
            _mm_storeu_pd(p, rest);
            p += 2;
            rest = _mm256_extractf128_pd((__m256d)v, 1);
        }
        if (n & 1) _mm_store_sd(p, rest);
    }
#else
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

template <class T>
VRNN_INLINE Vec<T> load(const T* p, int64_t n) {
    return n < lanes<T> ? load_some(p, n) : load(p);
}

template <class T>
VRNN_INLINE void store(T* p, Vec<T> v, int64_t n) {
    n < lanes<T> ? store_some(p, v, n) : store(p, v);
}

// The first n lanes, zeros in the place of the others, whatever they hold.
template <class T>
VRNN_INLINE Vec<T> first(Vec<T> v, int64_t n) {
    if (n >= lanes<T>) return v;
    return among_first<T>(n) ? v : Vec<T>{};
}

// The lanes' sign bits alone.
template <class T>
VRNN_INLINE IntVec<T> sign(Vec<T> a) {
    using Int = typename Register<T>::Int;
    return (IntVec<T>)a & (Int(1) << (8 * sizeof(T) - 1));
}

template <class T>
VRNN_INLINE Vec<T> absolute(Vec<T> a) {
    return (Vec<T>)((IntVec<T>)a ^ sign<T>(a));
}

// Lane 2i of the result is lane i of a half, lane 2i + 1 that of b's; the lower or the upper half.
template <class T, bool upper, int... i>
VRNN_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
    constexpr int W = lanes<T>, from = upper ? W / 2 : 0;
    return __builtin_shufflevector(a, b, (i % 2 ? W + from + i / 2 : from + i / 2)...);
}

// In place: row k of the square becomes column k. Each pass is one perfect shuffle of the whole square.
template <class T>
VRNN_INLINE void transpose(Vec<T> (&square)[lanes<T>]) {
    constexpr int W = lanes<T>;
    using Lanes = std::make_integer_sequence<int, W>;
    for (int pass = 1; pass < W; pass *= 2) {
        Vec<T> next[W];
#pragma GCC unroll 16
        for (int i = 0; i < W / 2; ++i) {
            next[2 * i] = interleave<T, false>(square[i], square[i + W / 2], Lanes{});
            next[2 * i + 1] = interleave<T, true>(square[i], square[i + W / 2], Lanes{});
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) square[i] = next[i];
    }
}

// The sum of all lanes, pairwise: the same order on every call.
template <class T>
VRNN_INLINE T sum(Vec<T> v) {
    T lane[lanes<T>];
    store(lane, v);
    for (int64_t width = lanes<T> / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}

}  // namespace vrnn::VRNN_ISA
