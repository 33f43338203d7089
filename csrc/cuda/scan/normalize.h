// Layer normalisation (Ba et al. 2016, "Layer Normalization"): what the tiles of a part give of each row, two numbers,
// and what all of them together are. Behind a barrier, for other warps have the other tiles.
namespace vrnn {

struct TwoNumbers {
    float v[2];
};
VRNN_DEVICE TwoNumbers* given_by(const Context& c, int bytes, int tile, int i) {
    return reinterpret_cast<TwoNumbers*>(c.own() + bytes) + tile * rows + lanes::sums(device::lane(), i).row;
}

// The four lanes that have a row add up.
VRNN_DEVICE float of_lanes(float value) {
    value += device::shuffle_xor(value, 1);
    return value + device::shuffle_xor(value, 2);
}

// Columns of a tile that are not padding.
template <int part>
VRNN_DEVICE int real_columns(int tile) {
    const int left = program::parts[part].width - tile * tile_width;
    return left < tile_width ? left : tile_width;
}

// body(the two numbers, tile) for every fourth tile of a part that is not all padding: those of this lane.
template <int part, class Body>
VRNN_DEVICE void own_shares(const Context& c, int bytes, int half, Body body) {
    constexpr int tiles = (program::parts[part].width + tile_width - 1) / tile_width;
    for (int tile = device::lane() % 4; tile < tiles; tile += 4) body(*given_by(c, bytes, tile, 2 * half), tile);
}

// Of a lane's two rows: the mean of their columns, and 1 / sqrt(variance + eps).
struct Moments {
    float mean[2], inverse[2];
};

// A tile gives the sum of its columns, and the sum of their squared distances from its own mean.
template <int unit>
VRNN_DEVICE void give_moments(const Context& c, const Tile& x, int tile) {
    constexpr Unit u = program::units[unit];
    const int count = real_columns<u.normalizes>(tile);
    for (int half = 0; half < 2; ++half) {
        float sum = 0, squares = 0;
        for (int i = 2 * half; i < 2 * half + 2; ++i)
            if (real<u.normalizes>(column_of(tile, i))) sum += x[i];
        sum = of_lanes(sum);
        const float mean = sum / static_cast<float>(count > 0 ? count : 1);
        for (int i = 2 * half; i < 2 * half + 2; ++i)
            if (real<u.normalizes>(column_of(tile, i))) squares += (x[i] - mean) * (x[i] - mean);
        squares = of_lanes(squares);
        if (lanes::sums(device::lane(), 2 * half).column == 0) *given_by(c, u.moments, tile, 2 * half) = {sum, squares};
    }
}

template <int unit>
VRNN_DEVICE Moments moments_of(const Context& c) {
    constexpr Unit u = program::units[unit];
    constexpr float width = program::parts[u.normalizes].width;
    Moments found;
    for (int half = 0; half < 2; ++half) {
        float sum = 0, squares = 0;
        own_shares<u.normalizes>(c, u.moments, half, [&](const TwoNumbers& of, int) { sum += of.v[0]; });
        const float mean = of_lanes(sum) / width;
        own_shares<u.normalizes>(c, u.moments, half, [&](const TwoNumbers& of, int tile) {
            const float count = static_cast<float>(real_columns<u.normalizes>(tile));
            const float apart = of.v[0] / count - mean;
            squares += of.v[1] + count * apart * apart;
        });
        found.mean[half] = mean;
        found.inverse[half] = 1 / device::sqrt(of_lanes(squares) / width + u.eps);
    }
    return found;
}

template <int unit>
VRNN_DEVICE Tile normalized(const Context& c, const Moments& of, int tile) {
    Tile x = held<program::units[unit].normalizes>(c, tile);
    for (int i = 0; i < 4; ++i) x[i] = (x[i] - of.mean[i >> 1]) * of.inverse[i >> 1];
    return x;
}

// Of a lane's two rows: the mean of the gradient, and of the gradient times what is normalised.
struct Slopes {
    float mean[2], slope[2];
};

template <int unit>
VRNN_DEVICE void give_slopes(const Context& c, const Tile& d, const Tile& normal, int tile) {
    constexpr Unit u = program::units[unit];
    for (int half = 0; half < 2; ++half) {
        float sum = 0, along = 0;
        for (int i = 2 * half; i < 2 * half + 2; ++i)
            if (real<u.normalizes>(column_of(tile, i))) sum += d[i], along += d[i] * normal[i];
        sum = of_lanes(sum), along = of_lanes(along);
        if (lanes::sums(device::lane(), 2 * half).column == 0) *given_by(c, u.slopes, tile, 2 * half) = {sum, along};
    }
}

template <int unit>
VRNN_DEVICE Slopes slopes_of(const Context& c) {
    constexpr Unit u = program::units[unit];
    constexpr float width = program::parts[u.normalizes].width;
    Slopes found;
    for (int half = 0; half < 2; ++half) {
        float sum = 0, along = 0;
        own_shares<u.normalizes>(c, u.slopes, half,
                                 [&](const TwoNumbers& of, int) { sum += of.v[0], along += of.v[1]; });
        found.mean[half] = of_lanes(sum) / width;
        found.slope[half] = of_lanes(along) / width;
    }
    return found;
}

}  // namespace vrnn
