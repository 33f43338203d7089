// Elementary functions on vectors. float: polynomials (coefficients of S. Moshier's Cephes library), within 2 ulp
// (exp, log) or 3 ulp (the others); double: the C library lane by lane, since float64 serves checking, not speed.
// Every function lets NaN through.
#pragma once

#if VRNN_VECTOR_BYTES == 64
#    include <immintrin.h>
#endif

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

#if VRNN_VECTOR_BYTES == 64

inline constexpr __mmask16 every_lane = 0xffff;  // the forms without a mask warn in GCC 12

// y * 2^n for integer-valued n
VRNN_INLINE F32 scale(F32 y, F32 n) {
    return (F32)_mm512_maskz_scalef_ps(every_lane, (__m512)y, (__m512)n);
}

// 1 / x to half an ulp and a little, for |x| in [2^-126, 2^126]: 14 bits, doubled by a step of Newton's
VRNN_INLINE F32 reciprocal(F32 x) {
    const F32 y = (F32)_mm512_maskz_rcp14_ps(every_lane, (__m512)x);
    return y + y * (1.0f - x * y);
}

#else

// 2^n for integer-valued n in [-126, 127]
VRNN_INLINE F32 power_of_two(F32 n) {
    return (F32)((__builtin_convertvector(n, I32) + 127) << 23);
}

VRNN_INLINE F32 scale(F32 y, F32 n) {
    const float to_integer = 12582912.0f;
    const F32 half = (n * 0.5f + to_integer) - to_integer;  // in two factors: n reaches 128 and -150
    return y * power_of_two(half) * power_of_two(n - half);
}

VRNN_INLINE F32 reciprocal(F32 x) {
    return 1.0f / x;
}

#endif

VRNN_INLINE F32 exp(F32 x) {
    x = x > 89.0f ? all(89.0f) : x;
    x = x < -104.0f ? all(-104.0f) : x;
    const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
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

// log(1 + u) for u in [0, 1], corrected to first order for the rounding of 1 + u
VRNN_INLINE F32 log1p_unit(F32 u) {
    const F32 w = 1.0f + u;
    const I32 high = w > 1.41421356f;
    return log_of(high ? w * 0.5f : w, high ? all(1.0f) : F32{}) + (u - (w - 1.0f)) * reciprocal(w);
}

VRNN_INLINE F32 sigmoid(F32 x) {
    const F32 y = reciprocal(1.0f + exp(-x));
    return x < -88.0f ? F32{} : y;  // where the exponential overflows
}

VRNN_INLINE F32 tanh(F32 x) {
    const F32 a = absolute<float>(x), z = x * x;
    F32 p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const F32 small = p * z * x + x;
    const F32 bounded = a > 20.0f ? all(20.0f) : a;  // where tanh is 1
    const F32 large = 1.0f - 2.0f * reciprocal(exp(bounded + bounded) + 1.0f);
    return a < 0.625f ? small : (F32)((I32)large | sign<float>(x));
}

VRNN_INLINE F32 softplus(F32 x) {
    return (x < 0.0f ? F32{} : x) + log1p_unit(exp(-absolute<float>(x)));
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
VRNN_INLINE F64 softplus(F64 x) {
    return lane_by_lane<double>(
        x, [](double v) { return (v < 0 ? 0.0 : v) + __builtin_log1p(__builtin_exp(-__builtin_fabs(v))); });
}
VRNN_INLINE F64 expm1(F64 x) {
    return lane_by_lane<double>(x, [](double v) { return __builtin_expm1(v); });
}

}  // namespace vrnn::VRNN_ISA
