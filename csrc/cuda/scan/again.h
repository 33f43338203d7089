// What a recurrent layer's sums become where all states are in memory: its gates, which a backward pass did not keep,
// and what the layer above has read. No step waits for another.
namespace vrnn::again {

// Sums r, u, n_x, n_h; others: h_{t-1}, what the layer above reads.
template <int unit>
VRNN_DEVICE void gru(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    Tile &r = sums[0], &z = sums[1], &n = sums[2], &candidate = sums[3], h = read<u.others[0]>(c, tile);
    for (int i = 0; i < 4; ++i) {
        r[i] = sigmoid(r[i]);
        z[i] = sigmoid(z[i]);
        n[i] = device::tanh(n[i] + r[i] * candidate[i]);
        h[i] = n[i] + z[i] * (h[i] - n[i]);
    }
    unroll<0, 4>([&](auto k) { put<program::units[unit].sums[k]>(c, tile, sums[k]); });
    put<u.others[1]>(c, tile, h);
}

// Sums i, f, g, o; others: c_{t-1}, what the layer above reads.
template <int unit>
VRNN_DEVICE void lstm(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    const Tile old = read<u.others[0]>(c, tile);
    Tile h;
    for (int i = 0; i < 4; ++i) {
        sums[0][i] = sigmoid(sums[0][i]), sums[1][i] = sigmoid(sums[1][i]), sums[3][i] = sigmoid(sums[3][i]);
        sums[2][i] = device::tanh(sums[2][i]);
        h[i] = sums[3][i] * device::tanh(sums[1][i] * old[i] + sums[0][i] * sums[2][i]);
    }
    unroll<0, 4>([&](auto k) { put<program::units[unit].sums[k]>(c, tile, sums[k]); });
    put<u.others[1]>(c, tile, h);
}

// Sum a; others: none, what the layer above reads, the result, where it is apart.
template <int unit>
VRNN_DEVICE void rnn(const Context& c, Tile* sums, int tile) {
    constexpr Unit u = program::units[unit];
    forward::activated<unit, 2>(c, sums[0], tile);
    put<u.others[1]>(c, tile, sums[0]);
}

}  // namespace vrnn::again
