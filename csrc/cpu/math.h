// Elementary functions on vectors. float: within 2 ulp (exp, log) or 3 ulp (the others), by tables that AVX-512 holds
// in registers, or else by polynomials (coefficients of S. Moshier's Cephes library); double: the C library lane by
// lane, since float64 serves checking, not speed. Every function lets NaN through.
#pragma once

#include "tables.h"
#include "vec.h"

namespace vrnn::VRNN_ISA {

template <class T, class F>
VRNN_INLINE Vec<T> lane_by_lane(Vec<T> x, F f) {
    for (int64_t i = 0; i < lanes<T>; ++i) x[i] = f(x[i]);
    return x;
}

using F32 = Vec<float>;
using I32 = IntVec<float>;
using F64 = Vec<double>;

inline constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer

#if VRNN_VECTOR_BYTES == 64

inline constexpr __mmask16 every_lane = 0xffff;  // the forms without a mask warn in GCC 12

VRNN_INLINE F32 lookup(const Table<16>& table, I32 index) {
    return (F32)_mm512_maskz_permutexvar_ps(every_lane, (__m512i)index, _mm512_load_ps(table.at));
}

VRNN_INLINE F32 lookup(const Table<32>& table, I32 index) {
    return (F32)_mm512_permutex2var_ps(_mm512_load_ps(table.at), (__m512i)index, _mm512_load_ps(table.at + 16));
}

// x = n log 2 + r for n the nearest 16th to x / log 2, of which `place` has the fraction's last bits; and e^r - 1, of
// which three terms are left: the second one's coefficient is such that the error's mean is 0. Beyond the range of n r
// is noise, and e^r - 1 shall be nothing that keeps vscalefps from saturating.
struct Power {
    F32 n, more;
    I32 place;

    VRNN_INLINE Power of(F32 x) {
        const F32 k = x * 1.44269504088896341f + to_integer / 16, n = k - to_integer / 16;
        const F32 r = (x - n * 0.693147182f) - n * -1.90465421e-9f, z = r * r;
        return {n, z < 1.0f ? z * (r * 0.166666667f + 0.500011735f) + r : F32{}, (I32)k};
    }
};

inline constexpr Powers powers = tabulate_powers();

VRNN_INLINE F32 exp(F32 x) {
    const Power e = Power::of(x);
    const F32 fraction = lookup(powers.high, e.place), y = fraction * e.more + fraction;
    return (F32)_mm512_maskz_scalef_ps(every_lane, (__m512)y, (__m512)e.n);
}

// For sums over many x: no 16th of an octave has an error of its own.
VRNN_INLINE F32 unbiased_exp(F32 x) {
    const Power e = Power::of(x);
    const F32 fraction = lookup(powers.high, e.place);
    const F32 y = fraction * e.more + lookup(powers.low, e.place) + fraction;
    return (F32)_mm512_maskz_scalef_ps(every_lane, (__m512)y, (__m512)e.n);
}

// a + log(1 + u) for u in [0, 1], which is log c + log(1 + r): of least relative error for |r| < 1/30 (by Lawson's
// algorithm)
VRNN_INLINE F32 plus_log1p(F32 a, F32 u) {
    static constexpr Logarithms tables = tabulate_logarithms();
    const I32 index = (I32)(u * 15.0f + to_integer);
    const F32 inverse = lookup(tables.inverse, index), r = u * inverse + (inverse - 1.0f);
    return (r * r * ((r * -0.2502622f + 0.333517558f) * r - 0.499999915f) + r) + (a + lookup(tables.log, index));
}

// vgetexpps and vgetmantps know subnormal numbers, and make 0, infinity and negative numbers what they should be
VRNN_INLINE F32 log(F32 x) {
    const __m512 m = _mm512_maskz_getmant_ps(every_lane, (__m512)x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_nan);
    const F32 e = (F32)_mm512_maskz_getexp_ps(every_lane, (__m512)x);
    return plus_log1p(e * log_2, (F32)m - 1.0f);
}

// 1 / (1 + e) by 14 bits and a step of Newton's, which doubles them, and in which 1 + e is not rounded
VRNN_INLINE F32 sigmoid(F32 x) {
    const F32 e = unbiased_exp(-x), y = (F32)_mm512_maskz_rcp14_ps(every_lane, (__m512)(1.0f + e));
    return e == __builtin_inff() ? F32{} : y + y * ((1.0f - y) - e * y);
}

// vminps gives its second operand where one is NaN; lookups see five bits of a place
VRNN_INLINE F32 tanh(F32 x) {
    static constexpr TanhPieces pieces = tabulate_tanh();
    const F32 a = absolute<float>(x);
    const F32 bounded = (F32)_mm512_maskz_min_ps(every_lane, (__m512)all(pieces.end), (__m512)a);
    const I32 place = (I32)(bounded + pieces.shift) >> 20;
    const F32 r = bounded - lookup(pieces.centre, place);
    F32 p = lookup(pieces.coefficient[pieces.degree], place);
#    pragma GCC unroll 4
    for (int k = pieces.degree - 1; k >= 0; --k) p = p * r + lookup(pieces.coefficient[k], place);
    return (F32)((I32)p | sign<float>(x));
}

#else

// 2^n for integer-valued n in [-126, 127]
VRNN_INLINE F32 power_of_two(F32 n) {
    return (F32)((__builtin_convertvector(n, I32) + 127) << 23);
}

VRNN_INLINE F32 scale(F32 y, F32 n) {
    const F32 half = (n * 0.5f + to_integer) - to_integer;  // in two factors: n reaches 128 and -150
    return y * power_of_two(half) * power_of_two(n - half);
}

VRNN_INLINE F32 exp(F32 x) {
    x = x > 89.0f ? all(89.0f) : x;
    x = x < -104.0f ? all(-104.0f) : x;
    const F32 n = (x * 1.44269504088896341f + to_integer) - to_integer;
    const F32 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return scale(p * (r * r) + r + 1.0f, n);
}

// log(m * 2^e) for m in [sqrt(1/2), sqrt(2))
VRNN_INLINE F32 log_of(F32 m, F32 e) {
    const F32 f = m - 1.0f, z = f * f;
    F32 p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const F32 y = p * f * z + e * -2.12194440e-4f - 0.5f * z;
    return (f + y) + e * 0.693359375f;
}

VRNN_INLINE F32 log(F32 x) {
    const I32 tiny = x < 1.17549435e-38f;
    const F32 scaled = tiny ? x * 8388608.0f : x;
    const I32 bits = (I32)scaled;
    F32 e = __builtin_convertvector((bits >> 23) - 126, F32);
    e = tiny ? e - 23.0f : e;
    F32 m = (F32)((bits & 0x007fffff) | 0x3f000000);
    const I32 low = m < 0.707106781186547524f;
    e = low ? e - 1.0f : e;
    m = low ? m + m : m;
    F32 y = log_of(m, e);
    const F32 infinity = all(__builtin_inff());
    y = x == infinity ? infinity : y;
    y = x == 0.0f ? -infinity : y;
    return x < 0.0f || x != x ? all(__builtin_nanf("")) : y;
}

// a + log(1 + u) for u in [0, 1], corrected to first order for the rounding of 1 + u
VRNN_INLINE F32 plus_log1p(F32 a, F32 u) {
    const F32 w = 1.0f + u;
    const I32 high = w > 1.41421356f;
    return a + (log_of(high ? w * 0.5f : w, high ? all(1.0f) : F32{}) + (u - (w - 1.0f)) / w);
}

VRNN_INLINE F32 tanh(F32 x) {
    const F32 a = absolute<float>(x), z = x * x;
    F32 p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const F32 small = p * z * x + x;
    const F32 bounded = a > 20.0f ? all(20.0f) : a;  // where tanh is 1
    const F32 large = 1.0f - 2.0f / (exp(bounded + bounded) + 1.0f);
    return a < 0.625f ? small : (F32)((I32)large | sign<float>(x));
}

VRNN_INLINE F32 sigmoid(F32 x) {
    return 1.0f / (1.0f + exp(-x));
}

#endif

VRNN_INLINE F32 softplus(F32 x) {
    return plus_log1p(x < 0.0f ? F32{} : x, exp(-absolute<float>(x)));
}

VRNN_INLINE F32 expm1(F32 x) {
    F32 p = x * (1.0f / 40320) + 1.0f / 5040;
    p = p * x + 1.0f / 720;
    p = p * x + 1.0f / 120;
    p = p * x + 1.0f / 24;
    p = p * x + 1.0f / 6;
    p = p * x + 0.5f;
    return absolute<float>(x) < 0.5f ? p * x * x + x : exp(x) - 1.0f;
}

// The normal distribution function: near 0 an odd polynomial, farther out exp(-x^2 / 2) times one in 1 / (|x| + 2), the
// relative error of which grows with x^2 (by Lawson's algorithm)
VRNN_INLINE F32 normal_cdf(F32 x) {
    const F32 a = absolute<float>(x), z = x * x, t = 1.0f / (a + 2.0f);
    F32 p = z * -6.644860605e-6f + 1.103274626e-4f;
    p = p * z - 1.1827095877e-3f;
    p = p * z + 9.9715003744e-3f;
    p = p * z - 6.6489987075e-2f;
    p = p * z + 3.9894226193e-1f;
    F32 q = t * -3.5796813965e1f + 5.1824279785e1f;
    q = q * t - 2.3901477814e1f;
    q = q * t + 7.622390985e-1f;
    q = q * t + 5.257686377e-1f;
    q = q * t + 1.2127138376f;
    q = q * t + 7.973827124e-1f;
    q = q * t + 3.989488184e-1f;
    const F32 tail = exp(z * -0.5f) * (q * t);
    return a < 1.25f ? p * x + 0.5f : x < 0.0f ? tail : 1.0f - tail;
}

// its derivative
VRNN_INLINE F32 normal_density(F32 x) {
    return exp(x * x * -0.5f) * 0.398942280f;
}

VRNN_INLINE F64 exp(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return __builtin_exp(v); });
}
VRNN_INLINE F64 log(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return __builtin_log(v); });
}
VRNN_INLINE F64 sigmoid(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return 1.0 / (1.0 + __builtin_exp(-v)); });
}
VRNN_INLINE F64 tanh(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return __builtin_tanh(v); });
}
VRNN_INLINE F64 plus_log1p(F64 a, F64 u) {
    return a + lane_by_lane<double>(u, [](double v) { return __builtin_log1p(v); });
}
VRNN_INLINE F64 softplus(F64 x) {
    return plus_log1p(x < 0.0 ? F64{} : x, exp(-absolute<double>(x)));
}
VRNN_INLINE F64 expm1(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return __builtin_expm1(v); });
}
VRNN_INLINE F64 normal_cdf(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return 0.5 * __builtin_erfc(v * -0.70710678118654752440); });
}
VRNN_INLINE F64 normal_density(F64 x) {
    return exp(x * x * -0.5) * 0.39894228040143267794;
}

// d times a slope; zero of zero, whatever the slope: where nothing comes from above, torch does not go on, and a state
// that ran away has slopes of infinity and NaN.
template <class T>
VRNN_INLINE Vec<T> unless_zero(Vec<T> d, Vec<T> product) {
    return d == 0 ? Vec<T>{} : product;
}

}  // namespace vrnn::VRNN_ISA
