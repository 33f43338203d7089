// What becomes of a unit's sums on the way back: gradients of results to gradients of what products made. Rows that do
// not run have zeros there, and keep the gradient of their state.
namespace vrnn::reverse {

// d times the derivative, from the result; of silu and gelu from what it was computed from.
template <Activation kind>
VRNN_DEVICE float slope(float at, float d) {
    if constexpr (kind == Activation::relu) return at <= 0 ? 0 : d;
    if constexpr (kind == Activation::leaky_relu) return at > 0 ? d : d * 0.01f;
    if constexpr (kind == Activation::tanh) return d * (1 - at * at);
    if constexpr (kind == Activation::elu) return at > 0 ? d : d * (at + 1);
    if constexpr (kind == Activation::silu) {
        const float s = sigmoid(at);
        return d * (s * (1 + at * (1 - s)));
    }
    if constexpr (kind == Activation::gelu)
        return d * (normal_cdf(at) + at * (device::exp(at * at * -0.5f) * 0.398942280f));
    return d;
}

// d times a slope; zero of zero, whatever the slope: where nothing comes from above, torch does not go on, and a state
// that ran away has slopes of infinity and NaN.
VRNN_DEVICE float unless_zero(float d, float product) {
    return d == 0 ? 0 : product;
}

// d times the derivative of deviation. What a clamp holds is selected, for d may be infinite.
VRNN_DEVICE float deviation_slope(const Deviation& of, float raw, float d) {
    const float u = argument(of, raw);
    d *= of.softplus ? sigmoid(u) : device::exp(u) * of.scale;
    if (of.bounded && raw != raw) d = 0;
    if (of.has_minimum && !(unbounded(of, u) + of.floor >= of.minimum)) d = 0;
    if (of.has_low && !(raw >= of.low)) d = 0;
    if (of.has_high && !(raw <= of.high)) d = 0;
    return d;
}

// A part in memory, or zeros.
template <int part>
VRNN_DEVICE Tile read_if(const Context& c, int tile) {
    if constexpr (part != none) return read<part>(c, tile);
    return Tile{};
}

// Others: what the slope comes from, if it has an activation; what else is added to the gradient, if anything: held,
// and in memory; the gradient of the sum, where it is apart.
template <int unit>
VRNN_DEVICE void layer(const Context& c, Tile& d, int tile) {
    constexpr Unit u = program::units[unit];
    if constexpr (u.others[2] != none) {
        const Tile more = read<u.others[2]>(c, tile);
        for (int i = 0; i < 4; ++i) d[i] += more[i];
    }
    if constexpr (u.others[1] != none) {
        const Tile more = held<u.others[1]>(c, tile);
        for (int i = 0; i < 4; ++i) d[i] += more[i];
    }
    if constexpr (u.others[0] != none) {
        const Tile at = read<u.others[0]>(c, tile);
        for (int i = 0; i < 4; ++i) d[i] = slope<u.activation>(at[i], d[i]);
    }
    put<u.others[3] != none ? u.others[3] : u.sums[0]>(c, tile, d);
}

// Sums: d of a normalised layer's result, its scale. Others: what the slope comes from, if it has an activation; what
// else is added to d, if anything; d behind the activation, which is that of the shift; the same times the scale, which
// goes on to the sums; and times what is scaled, which is d of the scale.
template <int unit>
VRNN_DEVICE void normalize(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    Tile &d = sums[0], scaled, of_scale;
    const Tile more = read_if<u.others[1]>(c, tile), at = read_if<u.others[0]>(c, tile);
    const Tile normal = normalized<unit>(c, moments_of<unit>(c), tile);
    for (int i = 0; i < 4; ++i) {
        d[i] = slope<u.activation>(at[i], d[i] + more[i]);
        scaled[i] = d[i] * sums[1][i];
        of_scale[i] = d[i] * normal[i];
    }
    put<u.others[2]>(c, tile, d);
    put<u.others[3]>(c, tile, scaled);
    put<u.others[4]>(c, tile, of_scale);
    give_slopes<unit>(c, scaled, normal, tile);
}

// Sum: d of the sums that are normalised. Others: d of what is scaled.
template <int unit>
VRNN_DEVICE void center(const Context& c, Tile& d, int tile) {
    constexpr Unit u = program::units[unit];
    const Moments of = moments_of<unit>(c);
    const Slopes slopes = slopes_of<unit>(c);
    const Tile normal = normalized<unit>(c, of, tile), from = held<u.others[0]>(c, tile);
    for (int i = 0; i < 4; ++i) {
        const int half = i >> 1;
        d[i] += ((from[i] - slopes.mean[half]) - normal[i] * slopes.slope[half]) * of.inverse[half];
        if (!real<u.sums[0]>(column_of(tile, i))) d[i] = 0;
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
        const Tile more = given<u.others[4]>(c, tile);
        for (int i = 0; i < 4; ++i) d[i] = d[i] * deviation(u.deviation, raw[i]) + more[i];
        put<u.others[4]>(c, tile, d);
    }
}

// The gradient of the divergence, and what is wanted of its two distributions from outside. Sums: the prior's mean and
// raw deviation. Others: the posterior's mean and raw deviation; z and eps, where the divergence is an estimate; d of
// the posterior's mean, d of its std, d of the prior's mean, d of its raw deviation; d z and d eps, where it is; then
// from outside d of the posterior's mean and std, of the prior's mean and std.
template <int unit>
VRNN_DEVICE void divergence(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    constexpr bool estimated = u.others[2] != none;
    const Tile &p_mean = sums[0], &p_raw = sums[1];
    const Tile q_mean = held<u.others[0]>(c, tile), q_raw = held<u.others[1]>(c, tile);
    const Tile z = read_if<u.others[2]>(c, tile), eps = read_if<u.others[3]>(c, tile);
    Tile d_q_mean = read_if<u.others[10]>(c, tile), d_q_std = read_if<u.others[11]>(c, tile);
    Tile d_p_mean = read_if<u.others[12]>(c, tile), d_p_raw = read_if<u.others[13]>(c, tile), d_z{}, d_eps{};
    for (int i = 0; i < 4; ++i) {
        const float p_std = deviation(u.deviation, p_raw[i]), q_std = deviation(u.posterior, q_raw[i]);
        if constexpr (u.total != none) {
            const float g = upstream(c, u.total, i), distance = ((estimated ? z[i] : q_mean[i]) - p_mean[i]) / p_std;
            const float ratio = estimated ? 0 : q_std / p_std, at = g * distance / p_std;
            (estimated ? d_z : d_q_mean)[i] += at;
            d_q_std[i] += g * (ratio / p_std - 1 / q_std);
            d_p_mean[i] -= at;
            d_p_raw[i] += g / p_std * (1 - ratio * ratio - distance * distance);
            d_eps[i] = -g * eps[i];
        }
        d_p_raw[i] = deviation_slope(u.deviation, p_raw[i], d_p_raw[i]);
    }
    put<u.others[4]>(c, tile, d_q_mean);
    put<u.others[5]>(c, tile, d_q_std);
    put<u.others[6]>(c, tile, d_p_mean);
    put<u.others[7]>(c, tile, d_p_raw);
    put<u.others[8]>(c, tile, d_z);
    put<u.others[9]>(c, tile, d_eps);
}

// The gradient of -log p(x), and what is wanted of the decoder's output from outside. Sums: the logit, or the mean and
// the raw deviation. Others: x; d of each sum; d x, if somebody wants it; from outside d of each sum.
template <int unit>
VRNN_DEVICE void likelihood(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    Tile d_mean = read_if<u.others[4]>(c, tile), d_raw = read_if<u.others[5]>(c, tile), d_x{};
    if constexpr (u.total != none) {
        const Tile x = read<u.others[0]>(c, tile);
        for (int i = 0; i < 4; ++i) {
            if (!observed<u.others[0]>(c, column_of(tile, i), i)) continue;
            const float g = upstream(c, u.total, i);
            if constexpr (u.count == 1) {
                d_mean[i] += g * ((1 - x[i]) * sigmoid(sums[0][i]) - x[i] * sigmoid(-sums[0][i]));
                d_x[i] = -g * sums[0][i];
            } else {
                const float std = deviation(u.deviation, sums[1][i]), distance = (x[i] - sums[0][i]) / std;
                d_x[i] = g * distance / std;
                d_mean[i] -= d_x[i];
                d_raw[i] += deviation_slope(u.deviation, sums[1][i], g / std * (1 - distance * distance));
            }
        }
    }
    put<u.others[1]>(c, tile, d_mean);
    put<u.others[2]>(c, tile, d_raw);
    put<u.others[3]>(c, tile, d_x);
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
        d_n[i] = unless_zero(d[i], d[i] * (1 - z[i]) * (1 - n[i] * n[i]));
        d_z[i] = unless_zero(d[i], d[i] * (h[i] - n[i]) * z[i] * (1 - z[i]));
        past[i] = unless_zero(d[i], d[i] * z[i]);
    }
    put<u.others[1]>(c, tile, d_z);
    put<u.others[2]>(c, tile, d_n);
    const Tile r = read<u.others[4]>(c, tile), n_h = read<u.others[7]>(c, tile);
    Tile d_r{}, d_n_h{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        d_r[i] = unless_zero(d_n[i], d_n[i] * n_h[i] * r[i] * (1 - r[i]));
        d_n_h[i] = unless_zero(d_n[i], d_n[i] * r[i]);
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
        const float d_c = d_cell[i] + unless_zero(d[i], d[i] * o[i] * (1 - squashed * squashed));
        d_o[i] = unless_zero(d[i], d[i] * squashed * o[i] * (1 - o[i]));
        d_in[i] = unless_zero(d_c, d_c * g[i] * in[i] * (1 - in[i]));
        d_f[i] = unless_zero(d_c, d_c * old[i] * f[i] * (1 - f[i]));
        d_g[i] = unless_zero(d_c, d_c * in[i] * (1 - g[i] * g[i]));
        past[i] = 0;
        d_cell[i] = unless_zero(d_c, d_c * f[i]);
    }
    put<u.others[0]>(c, tile, d_in);
    put<u.others[1]>(c, tile, d_f);
    put<u.others[2]>(c, tile, d_g);
    put<u.others[3]>(c, tile, d_o);
}

// Sum d h_t; others: d a, then a or, where its activation needs only the result, h_t.
template <int unit>
VRNN_DEVICE void rnn(const Context& c, const Tile& d, int tile, Tile& past) {
    constexpr Unit u = program::units[unit];
    const Tile a = read<u.others[1]>(c, tile);
    Tile d_a{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        d_a[i] = unless_zero(d[i], slope<u.activation>(a[i], d[i]));
        past[i] = 0;
    }
    put<u.others[0]>(c, tile, d_a);
}

// The gradient of h_{t-1} or c_{t-1}, which the step before goes on with; where this one began a sequence anew, it is
// that of the initial state, another part.
template <int initial>
VRNN_DEVICE void state(const Context& c, int tile, const Tile& d, Tile& past) {
    Tile begun{};
    for (int i = 0; i < 4; ++i) {
        if (!c.runs(i)) continue;
        const bool begins = c.call.resets && c.call.resets[c.row(i)];
        begun[i] = begins ? d[i] : 0;
        past[i] = begins ? 0 : d[i];  // which may be d
    }
    put<initial>(c, tile, begun);
}

// The gradients of a tile's rows from those of the rows that took them over, which are added up in their order. Part is
// that of a state.
template <int part>
VRNN_DEVICE void give_back(const Context& c, int tile, Tile& past) {
    for (int half = 0; half < 2; ++half) {
        const int row = lanes::sums(device::lane(), 2 * half).row, first = first_particle(c, row);
        if (!c.runs(2 * half)) continue;
        float low = 0, high = 0;
        for (int n = 0; n < c.call.particles; ++n) {
            const i64 ancestor = heirs(c).ancestors[c.t & 1][first + n];
            if ((ancestor < 0 ? n : ancestor) != row - first) continue;
            low += held_of<part>(c, tile, first + n, 2 * half);
            high += held_of<part>(c, tile, first + n, 2 * half + 1);
        }
        past[2 * half] = low, past[2 * half + 1] = high;
    }
}

// What it reads of the next step.
template <int unit>
VRNN_DEVICE void fetch_heirs(const Context& c) {
    if (device::warp() == program::units[unit].first_warp)
        own_particles(c, [&](int half, int row) { fetch_ancestor(c, half, row); });
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
