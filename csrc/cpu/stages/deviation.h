// How a standard deviation comes from the raw output of its head.
#pragma once

#include "../../core/program.h"
#include "../math.h"

namespace vrnn::VRNN_ISA {

// A standard deviation from its raw value, and d times its derivative there.
template <class T, StdKind kind>
struct Deviation {
    T floor, scale, shift, minimum, low, high;

    explicit Deviation(const Std& s)
        : floor(T(s.floor)),
          scale(T(s.scale)),
          shift(T(s.shift)),
          minimum(T(s.minimum)),
          low(T(s.low)),
          high(T(s.high)) {}
    Vec<T> operator()(Vec<T> raw) const {
        if constexpr (kind == StdKind::plain) return softplus(raw) + floor;
        const Vec<T> s = unbounded(argument(raw)) + floor;
        return s < minimum ? all(minimum) : s;
    }
    Vec<T> backward(Vec<T> raw, Vec<T> d) const {
        if constexpr (kind == StdKind::plain) return unless_zero<T>(d, d * sigmoid(raw));
        const Vec<T> u = argument(raw), slope = kind == StdKind::softplus ? sigmoid(u) : exp(u) * scale;
        const Vec<T> free = unbounded(u) + floor >= minimum ? unless_zero<T>(d, d * slope) : Vec<T>{};
        return raw >= low ? (raw <= high ? free : Vec<T>{}) : Vec<T>{};
    }

  private:
    Vec<T> argument(Vec<T> raw) const {
        const Vec<T> above = raw < low ? all(low) : raw;
        return ((above > high ? all(high) : above) + shift) * scale;
    }
    Vec<T> unbounded(Vec<T> u) const { return kind == StdKind::softplus ? softplus(u) / scale : exp(u); }
};

// Calls f with the deviation of a run-time kind.
template <class T, class F>
VRNN_INLINE void with_deviation(const Std& s, F f) {
    switch (s.kind) {
        case StdKind::plain: return f(Deviation<T, StdKind::plain>(s));
        case StdKind::softplus: return f(Deviation<T, StdKind::softplus>(s));
        case StdKind::exponential: return f(Deviation<T, StdKind::exponential>(s));
    }
}

}  // namespace vrnn::VRNN_ISA
