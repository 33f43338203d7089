// What becomes of a unit's sums on the way forward. Each function below is called once a unit's sums are complete, for
// one of its tiles.
namespace vrnn::forward {

// The state that the next step starts from, and that a row ends in: where the next step begins a sequence anew, the
// state to begin with.
template <int part>
VRNN_DEVICE void advance(const Context& c, int tile, Tile& value) {
    for (int i = 0; i < 4; ++i) {
        const int column = column_of(tile, i);
        if (!real<part>(column)) continue;
        if (c.t + 1 == c.rows.length[i >> 1]) write_state<part>(c, column, i, value[i]);
        if (!c.goes_on(i)) continue;
        if (c.call.resets && c.call.resets[c.next_row(i)]) value[i] = initial_state<part>(c, column);
        if constexpr (program::parts[part].stored) device::write(in_memory<part>(c, c.next_row(i), column), value[i]);
    }
    put_in_shared<part>(c, tile, value);
}

// A state where a step has led; of a particle filter, for the rows that take it over. Others of a cell update: h, what
// the layer above reads, c, and for these rows h and c.
template <int unit, int state>
VRNN_DEVICE void reach(const Context& c, int tile, Tile& value) {
    constexpr Unit u = program::units[unit];
    if constexpr (u.others[state] != none) advance<u.others[state]>(c, tile, value);
    if constexpr (u.others[3 + state / 2] != none) put_in_shared<u.others[3 + state / 2]>(c, tile, value);
}

// The sum of a layer becomes its result, in its place or, where a slope needs the sum, in a part of its own.
template <int unit, int result>
VRNN_DEVICE void activated(const Context& c, Tile& sum, int tile) {
    constexpr Unit u = program::units[unit];
    constexpr bool apart = u.others[result] != none;
    if constexpr (apart) put<u.sums[0]>(c, tile, sum);
    for (int i = 0; i < 4; ++i) sum[i] = activate<u.activation>(sum[i]);
    put<apart ? u.others[result] : u.sums[0]>(c, tile, sum);
}

// Others: what is added to the sum, if anything; the result, where it is apart.
template <int unit>
VRNN_DEVICE void layer(const Context& c, Tile& sum, int tile) {
    constexpr Unit u = program::units[unit];
    if constexpr (u.others[0] != none) {
        const Tile more = held<u.others[0]>(c, tile);
        for (int i = 0; i < 4; ++i) sum[i] += more[i];
    }
    activated<unit, 1>(c, sum, tile);
}

// The sums of a layer that is normalised, and what this tile gives of a row's moments. Others: none.
template <int unit>
VRNN_DEVICE void moments(const Context& c, const Tile& sum, int tile) {
    put<program::units[unit].sums[0]>(c, tile, sum);
    give_moments<unit>(c, sum, tile);
}

// Sums: the shift, the scale. Others: none; the result, where it is apart.
template <int unit>
VRNN_DEVICE void normalize(const Context& c, Tile* sums, int tile) {
    const Tile normal = normalized<unit>(c, moments_of<unit>(c), tile);
    for (int i = 0; i < 4; ++i) sums[0][i] += normal[i] * sums[1][i];
    activated<unit, 1>(c, sums[0], tile);
}

// z = mean + std * eps. Others: eps, std, z, the prior's mean where that of the posterior starts from it, the mean as a
// result.
template <int unit>
VRNN_DEVICE void sample(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    Tile &mean = sums[0], &raw = sums[1], std, z;
    if constexpr (u.others[3] != none) {
        const Tile prior = held<u.others[3]>(c, tile);
        for (int i = 0; i < 4; ++i) mean[i] += prior[i];
    }
    const Tile eps = read<u.others[0]>(c, tile);
    for (int i = 0; i < 4; ++i) {
        std[i] = deviation(u.deviation, raw[i]);
        z[i] = mean[i] + std[i] * eps[i];
    }
    put<u.sums[0]>(c, tile, mean);
    put<u.sums[1]>(c, tile, raw);
    put<u.others[1]>(c, tile, std);
    put<u.others[2]>(c, tile, z);
    put<u.others[4]>(c, tile, mean);
}

// A tile's share of a number of each row: its lanes add up what each has in its two rows.
template <int unit>
VRNN_DEVICE void share(const Context& c, const float (&of)[2], int tile) {
    for (int half = 0; half < 2; ++half) {
        float total = of[half];
        total += device::shuffle_xor(total, 1);
        total += device::shuffle_xor(total, 2);
        const lanes::Place own = lanes::sums(device::lane(), 2 * half);
        if (own.column == 0)
            reinterpret_cast<float*>(c.own() + program::units[unit].totals)[tile * rows + own.row] = total;
    }
}

// The divergence of a tile's columns from the prior, summed by row, for total to add up.
// Others: the posterior's mean, std, z and eps (z or none), the prior's std, and its mean as a result.
template <int unit>
VRNN_DEVICE void divergence(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    Tile &mean = sums[0], &raw = sums[1], std;
    for (int i = 0; i < 4; ++i) std[i] = deviation(u.deviation, raw[i]);
    if constexpr (!u.resumes) {
        put<u.sums[0]>(c, tile, mean);
        put<u.sums[1]>(c, tile, raw);
    }
    put<u.others[4]>(c, tile, std);
    put<u.others[5]>(c, tile, mean);
    const Tile own_std = held<u.others[1]>(c, tile);
    Tile at, eps{};
    if constexpr (u.others[2] == none) {
        at = held<u.others[0]>(c, tile);
    } else {
        at = held<u.others[2]>(c, tile);
        eps = read<u.others[3]>(c, tile);
    }
    float total[2] = {};
    for (int i = 0; i < 4; ++i) {
        if (!real<u.sums[0]>(column_of(tile, i))) continue;
        total[i >> 1] += u.others[2] == none ? ::vrnn::divergence(at[i], own_std[i], mean[i], std[i])
                                             : log_ratio(at[i], eps[i], own_std[i], mean[i], std[i]);
    }
    share<unit>(c, total, tile);
}

// -log p(x) of a tile's columns from the logit, or the mean and the raw deviation, summed by row, for total to add up.
// Others: x.
template <int unit>
VRNN_DEVICE void likelihood(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    unroll<0, u.count>([&](auto k) { put<program::units[unit].sums[k]>(c, tile, sums[k]); });
    const Tile x = read<u.others[0]>(c, tile);
    float total[2] = {};
    for (int i = 0; i < 4; ++i) {
        if (!observed<u.others[0]>(c, column_of(tile, i), i)) continue;
        if constexpr (u.count == 1)
            total[i >> 1] += bernoulli(x[i], sums[0][i]);
        else
            total[i >> 1] += normal(x[i], sums[0][i], deviation(u.deviation, sums[1][i]));
    }
    share<unit>(c, total, tile);
}

// A number of each row: its tiles' shares, in their order.
template <int unit>
VRNN_DEVICE void total(const Context& c) {
    constexpr Unit u = program::units[unit];
    const float* const shares = reinterpret_cast<const float*>(c.own() + u.totals);
    if (device::warp() != u.first_warp) return;
    for (int half = 0; half < 2; ++half) {
        const lanes::Place own = lanes::sums(device::lane(), 2 * half);
        if (own.column != 0 || c.rows.length[half] < 0) continue;
        float sum = 0;
        for (int tile = 0; tile < u.tiles; ++tile) sum += shares[tile * rows + own.row];
        if constexpr (program::filter != none)
            if (c.runs(2 * half)) particles(c).since[own.row] -= sum;
        device::write(c.call.totals[u.total] + c.row(2 * half), c.runs(2 * half) ? sum : 0);
    }
}

// What a cell that runs on its own sees next, from the logit, or the mean and the raw deviation. Others: noise, x.
template <int unit>
VRNN_DEVICE void draw(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    Tile x = sums[0];
    if constexpr (u.means) {
        if constexpr (u.count == 1)
            for (int i = 0; i < 4; ++i) x[i] = sigmoid(x[i]);
    } else {
        const Tile noise = read<u.others[0]>(c, tile);
        for (int i = 0; i < 4; ++i) {
            if constexpr (u.count == 1)
                x[i] = x[i] != x[i] ? x[i] : x[i] > noise[i] ? 1 : 0;
            else
                x[i] += deviation(u.deviation, sums[1][i]) * noise[i];
        }
    }
    for (int i = 0; i < 4; ++i)
        if (!real<u.sums[0]>(column_of(tile, i))) x[i] = 0;  // the mean of no logit is not
    put<u.others[1]>(c, tile, x);
}

// Sums r, u, n_x, n_h; others: see reach.
template <int unit>
VRNN_DEVICE void gru(const Context& c, Tile* sums, int tile, Tile& h) {
    constexpr Unit u = program::units[unit];
    Tile &r = sums[0], &z = sums[1], &n = sums[2], &candidate = sums[3];
    for (int i = 0; i < 4; ++i) {
        r[i] = sigmoid(r[i]);
        z[i] = sigmoid(z[i]);
        n[i] = device::tanh(n[i] + r[i] * candidate[i]);
        h[i] = n[i] + z[i] * (h[i] - n[i]);
    }
    unroll<0, 4>([&](auto k) { put<program::units[unit].sums[k]>(c, tile, sums[k]); });
    put<u.others[1]>(c, tile, h);
    reach<unit, 0>(c, tile, h);
}

// Sums i, f, g, o; others: see reach.
template <int unit>
VRNN_DEVICE void lstm(const Context& c, Tile* sums, int tile, Tile& cell) {
    constexpr Unit u = program::units[unit];
    Tile h;
    for (int i = 0; i < 4; ++i) {
        sums[0][i] = sigmoid(sums[0][i]), sums[1][i] = sigmoid(sums[1][i]), sums[3][i] = sigmoid(sums[3][i]);
        sums[2][i] = device::tanh(sums[2][i]);
        cell[i] = sums[1][i] * cell[i] + sums[0][i] * sums[2][i];
        h[i] = sums[3][i] * device::tanh(cell[i]);
    }
    unroll<0, 4>([&](auto k) { put<program::units[unit].sums[k]>(c, tile, sums[k]); });
    put<u.others[1]>(c, tile, h);
    reach<unit, 0>(c, tile, h);
    reach<unit, 2>(c, tile, cell);
}

// Sum a; others: see reach, and the result, where it is apart.
template <int unit>
VRNN_DEVICE void rnn(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    activated<unit, 5>(c, sums[0], tile);
    put<u.others[1]>(c, tile, sums[0]);
    reach<unit, 0>(c, tile, sums[0]);
}

// The states that the rows of a particle filter go on from; what is the cell's in registers. Others: h, none, c, and h
// and c where rows have come to.
template <int part>
VRNN_DEVICE Tile taken(const Context& c, int tile) {
    Tile found;
    for (int i = 0; i < 4; ++i)
        found[i] = held_of<part>(c, tile, particles(c).chosen[lanes::sums(device::lane(), i).row], i);
    return found;
}
template <int unit>
VRNN_DEVICE Tile take(const Context& c, int tile) {
    constexpr Unit u = program::units[unit];
    Tile h = taken<u.others[3]>(c, tile);
    advance<u.others[0]>(c, tile, h);
    if constexpr (u.others[2] == none) {
        return h;
    } else {
        Tile cell = taken<u.others[4]>(c, tile);
        advance<u.others[2]>(c, tile, cell);
        return cell;
    }
}

}  // namespace vrnn::forward
