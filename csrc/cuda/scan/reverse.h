// What becomes of a unit's sums on the way back: gradients of results to gradients of what products made. Rows that do
// not run have zeros there, and keep the gradient of their state.
#pragma once

#include "elementwise.h"
#include "products.h"

namespace vrnn::reverse {

// d times the derivative, from the result y.
template <Activation kind>
VRNN_DEVICE float slope(float y, float d) {
    if constexpr (kind == Activation::relu) return y <= 0 ? 0 : d;
    if constexpr (kind == Activation::leaky_relu) return y > 0 ? d : d * 0.01f;
    if constexpr (kind == Activation::tanh) return d * (1 - y * y);
    if constexpr (kind == Activation::elu) return y > 0 ? d : d * (y + 1);
    return d;
}

// d times the derivative of deviation. What a clamp holds is selected, for d may be infinite.
VRNN_DEVICE float deviation_slope(const Deviation& of, float raw, float d) {
    const float u = argument(of, raw);
    d *= of.softplus ? sigmoid(u) : device::exp(u) * of.scale;
    if (of.has_minimum && !(unbounded(of, u) + of.floor >= of.minimum)) d = 0;
    if (of.has_low && !(raw >= of.low)) d = 0;
    if (of.has_high && !(raw <= of.high)) d = 0;
    return d;
}

// Others: the result, if it has an activation; what else is added to the gradient, if anything.
template <int unit>
VRNN_DEVICE void layer(const Context& c, Tile& d, int tile) {
    constexpr Unit u = program::units[unit];
    if constexpr (u.others[1] != none) {
        const Tile more = held<u.others[1]>(c, tile);
        for (int i = 0; i < 4; ++i) d[i] += more[i];
    }
    if constexpr (u.others[0] != none) {
        const Tile y = read<u.others[0]>(c, tile);
        for (int i = 0; i < 4; ++i) d[i] = slope<u.activation>(y[i], d[i]);
    }
    put<u.sums[0]>(c, tile, d);
}

// A gradient that begins in memory.
template <int part>
VRNN_DEVICE Tile given(const Context& c, int tile) {
    if constexpr (program::parts[part].given) return read<part>(c, tile);
    return Tile{};
}

// Sum d z; others: raw, eps, d mean, d raw, d eps if somebody wants it.
template <int unit>
VRNN_DEVICE void sample(const Context& c, Tile& d, int tile) {
    constexpr Unit u = program::units[unit];
    const Tile raw = read<u.others[0]>(c, tile), eps = read<u.others[1]>(c, tile);
    Tile d_mean = given<u.others[2]>(c, tile), d_raw = given<u.others[3]>(c, tile);
    for (int i = 0; i < 4; ++i) {
        d_mean[i] += d[i];
        d_raw[i] = deviation_slope(u.deviation, raw[i], d_raw[i] + d[i] * eps[i]);
    }
    put<u.others[2]>(c, tile, d_mean);
    put<u.others[3]>(c, tile, d_raw);
    if constexpr (u.others[4] != none) {
        for (int i = 0; i < 4; ++i) d[i] *= deviation(u.deviation, raw[i]);
        put<u.others[4]>(c, tile, d);
    }
}

// Sum d h_t; others: d r, d u, d n_x, d n_h, then r, u, n, n_h and h_{t-1}. Leaves what passes the gates. Gradients go
// out as soon as they are known, so that few tiles are in registers at a time.
template <int unit>
VRNN_DEVICE void gru(const Context& c, const Tile& d, int tile, Tile& past) {
    constexpr Unit u = program::units[unit];
    const Tile z = read<u.others[5]>(c, tile), n = read<u.others[6]>(c, tile), h = read<u.others[8]>(c, tile);
    Tile d_n{}, d_z{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        d_n[i] = d[i] * (1 - z[i]) * (1 - n[i] * n[i]);
        d_z[i] = d[i] * (h[i] - n[i]) * z[i] * (1 - z[i]);
        past[i] = d[i] * z[i];
    }
    put<u.others[1]>(c, tile, d_z);
    put<u.others[2]>(c, tile, d_n);
    const Tile r = read<u.others[4]>(c, tile), n_h = read<u.others[7]>(c, tile);
    Tile d_r{}, d_n_h{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        d_r[i] = d_n[i] * n_h[i] * r[i] * (1 - r[i]);
        d_n_h[i] = d_n[i] * r[i];
    }
    put<u.others[0]>(c, tile, d_r);
    put<u.others[3]>(c, tile, d_n_h);
}

// Sum d h_t; others: d i, d f, d g, d o, then i, f, g, o and c_{t-1}. Leaves zero of d h, and d c_{t-1}.
template <int unit>
VRNN_DEVICE void lstm(const Context& c, const Tile& d, int tile, Tile& past, Tile& d_cell) {
    constexpr Unit u = program::units[unit];
    const Tile in = read<u.others[4]>(c, tile), f = read<u.others[5]>(c, tile), g = read<u.others[6]>(c, tile);
    const Tile o = read<u.others[7]>(c, tile), old = read<u.others[8]>(c, tile);
    Tile d_in{}, d_f{}, d_g{}, d_o{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        const float squashed = device::tanh(f[i] * old[i] + in[i] * g[i]);
        const float d_c = d_cell[i] + d[i] * o[i] * (1 - squashed * squashed);
        d_o[i] = d[i] * squashed * o[i] * (1 - o[i]);
        d_in[i] = d_c * g[i] * in[i] * (1 - in[i]);
        d_f[i] = d_c * old[i] * f[i] * (1 - f[i]);
        d_g[i] = d_c * in[i] * (1 - g[i] * g[i]);
        past[i] = 0;
        d_cell[i] = d_c * f[i];
    }
    put<u.others[0]>(c, tile, d_in);
    put<u.others[1]>(c, tile, d_f);
    put<u.others[2]>(c, tile, d_g);
    put<u.others[3]>(c, tile, d_o);
}

// Sum d h_t; others: d a, then a, which is h_t.
template <int unit>
VRNN_DEVICE void rnn(const Context& c, const Tile& d, int tile, Tile& past) {
    constexpr Unit u = program::units[unit];
    const Tile a = read<u.others[1]>(c, tile);
    Tile d_a{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        d_a[i] = slope<u.activation>(a[i], d[i]);
        past[i] = 0;
    }
    put<u.others[0]>(c, tile, d_a);
}

// Sum d h_{t-1}: what the step before goes on with, nothing where this one began a sequence anew.
VRNN_DEVICE void state(const Context& c, const Tile& d, Tile& past) {
    for (int i = 0; i < 4; ++i)
        if (c.runs(i)) past[i] = c.call.resets && c.call.resets[c.row(i)] ? 0 : d[i];
}
VRNN_DEVICE void reset(const Context& c, Tile& past) {
    for (int i = 0; i < 4; ++i)
        if (c.runs(i) && c.call.resets && c.call.resets[c.row(i)]) past[i] = 0;
}

// The gradient of the states that the first step started from.
template <int part>
VRNN_DEVICE void end(const Context& c, int tile, const Tile& past) {
    for (int i = 0; i < 4; ++i) {
        const int column = column_of(tile, i);
        if (c.rows.length[i >> 1] >= 0 && real<part>(column)) write_state<part>(c, column, i, past[i]);
    }
}

}  // namespace vrnn::reverse
