// Tables of elementary functions, computed by the compiler. Sixteen floats are one register of AVX-512, where the
// lowest bits of each lane look them up.
#pragma once

namespace vrnn {

template <int n>
struct alignas(64) Table {
    float at[n]{};
};

// Of 512 numbers around x, a step apart, the one whose f is nearest to a float.
template <class F>
constexpr double almost_exact(double x, double step, F f) {
    double best = x, least = 1;
    for (int i = -256; i < 256; ++i) {
        const double value = f(x + i * step), error = value - float(value);
        if (error * error >= least) continue;
        least = error * error;
        best = x + i * step;
    }
    return best;
}

// 2^(i / 16), the fractions of exp's power of two, and what is beyond a float of them
struct Powers {
    Table<16> high, low;
};

constexpr Powers tabulate_powers() {
    Powers powers;
    for (int i = 0; i < 16; ++i) {
        const double power = __builtin_exp2(i / 16.0);
        powers.high.at[i] = float(power);
        powers.low.at[i] = float(power - powers.high.at[i]);
    }
    return powers;
}

inline constexpr float log_2 = 0.693147181f;

// 1 / c and log c for c near 1 + i / 15. The larger half will meet -log_2, and shares that float's error.
struct Logarithms {
    Table<16> inverse, log;
};

constexpr Logarithms tabulate_logarithms() {
    Logarithms tables;
    for (int i = 0; i < 16; ++i) {
        const auto log_c = [=](double inverse) {
            return i < 8 ? -__builtin_log(inverse) : log_2 - __builtin_log(2 * inverse);
        };
        const double inverse = almost_exact(float(15.0 / (15 + i)), 0x1p-24, log_c);
        tables.inverse.at[i] = float(inverse);
        tables.log.at[i] = float(log_c(inverse));
    }
    return tables;
}

// tanh on [0, 9.375) in 32 pieces, an eighth of an octave of x + 0.625 each, whose exponent and first three bits behind
// the point are a piece's place. A piece is a polynomial in x - centre through the centre and Chebyshev's other points.
// The first one's centre is 0, so that tanh x is x there; the last ones, having an exact centre, end at 1.
struct TanhPieces {
    static constexpr float shift = 0.625f, end = 9.37f;
    static constexpr int degree = 4;
    Table<32> centre, coefficient[degree + 1];
};

constexpr TanhPieces tabulate_tanh() {
    const double chebyshev[] = {0, 0.951056516295154, 0.587785252292473, -0.587785252292473, -0.951056516295154};
    constexpr int degree = TanhPieces::degree;
    const auto tanh = [](double x) { return __builtin_tanh(x); };
    TanhPieces pieces;
    for (int i = 10; i < 42; ++i) {  // i / 8: octaves from 1/4 on
        const double width = (1 << i / 8) / 32.0, middle = (8.5 + i % 8) * width - TanhPieces::shift;
        const float centre = i == 10 ? 0 : float(almost_exact(middle, width / 2048, tanh));
        double node[degree + 1]{}, c[degree + 1]{}, p[degree + 1]{};  // c: Newton's divided differences
        for (int k = 0; k <= degree; ++k) {
            node[k] = k == 0 ? 0 : middle + width / 2 * chebyshev[k] - centre;
            c[k] = tanh(centre + node[k]);
        }
        for (int k = 1; k <= degree; ++k)
            for (int j = degree; j >= k; --j) c[j] = (c[j] - c[j - 1]) / (node[j] - node[j - k]);
        for (int k = degree; k >= 0; --k) {
            for (int j = degree; j > 0; --j) p[j] = p[j - 1] - node[k] * p[j];
            p[0] = c[k] - node[k] * p[0];
        }
        const int place = (i + 8) % 32;
        pieces.centre.at[place] = centre;
        for (int k = 0; k <= degree; ++k) pieces.coefficient[k].at[place] = float(p[k]);
    }
    return pieces;
}

}  // namespace vrnn
