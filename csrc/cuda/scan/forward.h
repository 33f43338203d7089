// What becomes of a unit's sums on the way forward. Each function below is called once a unit's sums are complete, for
// one of its tiles.
#pragma once

#include "elementwise.h"
#include "products.h"

namespace vrnn::forward {

// The state that the next step starts from, and that a row ends in: zero where the next step begins a sequence anew.
template <int part>
VRNN_DEVICE void advance(const Context& c, int tile, Tile& value) {
    for (int i = 0; i < 4; ++i) {
        const int column = column_of(tile, i);
        if (!real<part>(column)) continue;
        if (c.t + 1 == c.rows.length[i >> 1]) write_state<part>(c, column, i, value[i]);
        if (!c.goes_on(i)) continue;
        if (c.call.resets && c.call.resets[c.next_row(i)]) value[i] = 0;
        if constexpr (program::parts[part].stored) device::write(in_memory<part>(c, c.next_row(i), column), value[i]);
    }
    put_in_shared<part>(c, tile, value);
}

template <int unit>
VRNN_DEVICE void layer(const Context& c, Tile& sum, int tile) {
    constexpr Unit u = program::units[unit];
    for (int i = 0; i < 4; ++i) sum[i] = activate<u.activation>(sum[i]);
    put<u.sums[0]>(c, tile, sum);
}

// z = mean + std * eps. Others: eps, std, z, the prior's mean where that of the posterior starts from it, and, where
// the divergence is computed here, the prior's std.
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
}

// The divergence of a tile's columns from the prior, summed by row, for total to add up.
// Others: the posterior's mean, std, z and eps (z or none), and the prior's std.
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
        total[i >> 1] += u.others[2] == none ? vrnn::divergence(at[i], own_std[i], mean[i], std[i])
                                             : log_ratio(at[i], eps[i], own_std[i], mean[i], std[i]);
    }
    for (int half = 0; half < 2; ++half) {
        total[half] += device::shuffle_xor(total[half], 1);
        total[half] += device::shuffle_xor(total[half], 2);
        const lanes::Place own = lanes::sums(device::lane(), 2 * half);
        if (own.column == 0)
            reinterpret_cast<float*>(c.shared + program::shared_totals)[tile * rows + own.row] = total[half];
    }
}

// The divergence of each row: its tiles' shares, in their order.
template <int unit>
VRNN_DEVICE void total(const Context& c) {
    const float* const shares = reinterpret_cast<const float*>(c.shared + program::shared_totals);
    if (device::warp() != program::units[unit].first_warp) return;
    for (int half = 0; half < 2; ++half) {
        const lanes::Place own = lanes::sums(device::lane(), 2 * half);
        if (own.column != 0 || !c.runs(2 * half)) continue;
        float sum = 0;
        for (int tile = 0; tile < program::units[unit].tiles; ++tile) sum += shares[tile * rows + own.row];
        c.call.kl[c.row(2 * half)] = sum;
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

// Sums r, u, n_x, n_h; others: h, what the layer above reads.
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
    advance<u.others[0]>(c, tile, h);
}

// Sums i, f, g, o; others: h, what the layer above reads, c.
template <int unit>
VRNN_DEVICE void lstm(const Context& c, Tile* sums, int tile, Tile& cell) {
    constexpr Unit u = program::units[unit];
    Tile h;
    for (int i = 0; i < 4; ++i) {
        for (int gate : {0, 1, 3}) sums[gate][i] = sigmoid(sums[gate][i]);
        sums[2][i] = device::tanh(sums[2][i]);
        cell[i] = sums[1][i] * cell[i] + sums[0][i] * sums[2][i];
        h[i] = sums[3][i] * device::tanh(cell[i]);
    }
    unroll<0, 4>([&](auto k) { put<program::units[unit].sums[k]>(c, tile, sums[k]); });
    put<u.others[1]>(c, tile, h);
    advance<u.others[0]>(c, tile, h);
    advance<u.others[2]>(c, tile, cell);
}

// Sum a; others: h, what the layer above reads.
template <int unit>
VRNN_DEVICE void rnn(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    for (int i = 0; i < 4; ++i) sums[0][i] = activate<u.activation>(sums[0][i]);
    put<u.sums[0]>(c, tile, sums[0]);
    put<u.others[1]>(c, tile, sums[0]);
    advance<u.others[0]>(c, tile, sums[0]);
}

}  // namespace vrnn::forward
