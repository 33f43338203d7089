// sums += source times weights, for a tile of each of some sums, or for several such tiles of a warp abreast: the
// source's operands are loaded once for all of them, and the weights once for all rows of a step.
// Of a wide source, two sums take turns, and are one when the product is whole: so a unit's sums have the same bits in
// whichever visit it is.
namespace vrnn {

struct alignas(16) Words {  // of the weights for 64 bytes of a source's rows: two mma, or one and a half of nothing
    u32 w[4];
};

// Tiles, and words of weights, that live in registers as long as the scan runs.
struct Registers {
    Tile state[program::state_tiles + 1];
    Tile kept[program::stacked * program::kept_tiles + 1];
    Words resident[program::resident_words + 1];
};

constexpr int chunk = 64;    // bytes of a row that one load of weights serves
constexpr int unrolled = 4;  // such chunks that a pass multiplies between two branches

template <int part>
VRNN_DEVICE constexpr int chunks() {
    return (row_bytes<part>() + chunk - 1) / chunk;
}

// The sum of a product, of this tile of those of a warp: of the rows of a step one behind the other, then abreast.
template <int product>
VRNN_DEVICE Tile& sum_of(Tile* sums, int n) {
    constexpr Product p = program::products[product];
    return sums[n * program::units[p.unit].count + p.sum];
}

// How many products from this one on have the same source.
VRNN_DEVICE constexpr int alike(int first, int end) {
    int count = 1;
    while (first + count < end && program::products[first + count].source == program::products[first].source) ++count;
    return count;
}

// The first of a unit's tiles that this block has.
template <int unit>
VRNN_DEVICE int first_own(const Context& c) {
    constexpr Unit u = program::units[unit];
    return u.split ? first_of_rank(c.rank, u.tiles) : 0;
}

// ... and how many.
template <int unit>
VRNN_DEVICE int count_own(const Context& c) {
    constexpr Unit u = program::units[unit];
    return u.split ? count_of_rank(c.rank, u.tiles) : u.tiles;
}

VRNN_DEVICE const char* streamed_weights(const Context& c) {
    return static_cast<const char*>(c.call.streamed) + static_cast<i64>(c.rank) * program::streamed_bytes;
}

// The words of a streamed or resident product in memory, in the order of lanes: (tiles, chunks, 32 lanes).
template <int product>
VRNN_DEVICE Words streamed(const Context& c, int tile, int k) {
    constexpr Product p = program::products[product];
    const auto* const from = reinterpret_cast<const Words*>(streamed_weights(c) + p.weights);
    tile -= first_own<p.unit>(c);
    return from[(tile * chunks<p.source>() + k) * 32 + device::lane()];
}

// The weights of a tile for chunk k, as two B of an mma; of what stays in registers, k is a constant.
template <int product, bool both, class Chunk>
VRNN_DEVICE Words right(const Context& c, const Registers& r, int tile, int round, Chunk k) {
    constexpr Product p = program::products[product];
    if constexpr (p.place == Place::memory) return streamed<product>(c, tile, k);
    if constexpr (p.place == Place::registers) return r.resident[p.resident + round * chunks<p.source>() + k];
    const int lane = device::lane(), own = tile - first_own<p.unit>(c);
    const char* const row = c.shared + p.weights + (own * tile_width + lane % 8) * row_stride<p.source>();
    Words found{};
    if constexpr (both) {
        device::load_matrices(found.w, row + lane / 8 * 16 + k * chunk);
    } else {
        u32 half[2];
        device::load_matrices(half, row + lane / 8 % 2 * 16 + k * chunk);
        found.w[0] = half[0], found.w[1] = half[1];
    }
    return found;
}

// The tiles that a warp multiplies abreast: so many from this one on, in rounds of all warps; sums of all of one before
// those of the next.
template <int abreast>
struct Group {
    int first, round;
    VRNN_DEVICE int tile(int n) const { return first + n * program::warps; }
};

// One chunk of a source's rows, as two A of an mma.
template <int source, bool both>
VRNN_DEVICE void load_left(const Context& c, u32 (&left)[2][4], int k) {
    const int lane = device::lane();
    const char* const row = operands<source>(c, c.turn) + lane % 16 * row_stride<source>();
    device::load_matrices(left[0], row + lane / 16 * 16 + k * chunk);
    if constexpr (both) device::load_matrices(left[1], row + lane / 16 * 16 + k * chunk + 32);
}

// Sums += one chunk of a source's rows, of all that a step has, times the weights of a product for it; odd of those in
// two.
template <int product, bool both>
VRNN_DEVICE void multiply_words(const u32 (&left)[program::stacked][2][4], const Words& words, Tile* sums, Tile* odd,
                                int n, int count) {
    constexpr int stacked = program::stacked;
    unroll<0, stacked>([&](auto s) {
        device::mma<program::operand>(sum_of<product>(sums, n * stacked + s).v, left[s][0], {words.w[0], words.w[1]});
    });
    if constexpr (both)
        unroll<0, stacked>([&](auto s) {
            Tile& even = sum_of<product>(sums, n * stacked + s);
            Tile& more = program::products[product].in_two ? odd[(n * stacked + s) * count] : even;
            device::mma<program::operand>(more.v, left[s][1], {words.w[2], words.w[3]});
        });
}

// The same of count products with the same source, and of tiles abreast.
template <int first, int count, bool both, int abreast, class Chunk>
VRNN_DEVICE void multiply_chunks(const Stack& c, const Registers& r, Tile* sums, Tile* odd, Group<abreast> own,
                                 Chunk k) {
    constexpr int source = program::products[first].source;
    u32 left[program::stacked][2][4];
    unroll<0, program::stacked>([&](auto s) { load_left<source, both>(c.of[s], left[s], k); });
    unroll<0, abreast>([&](auto n) {
        unroll<first, first + count>([&](auto p) {
            const Words words = right<p, both>(c.of[0], r, own.tile(n), own.round + n, k);
            multiply_words<p, both>(left, words, sums, odd + p - first, n, count);
        });
    });
}

template <int first, int count, int abreast>
VRNN_DEVICE void multiply_by_tensor_cores(const Stack& c, const Registers& r, Tile* sums, Group<abreast> own) {
    constexpr int tiles = abreast * program::stacked;
    Tile odd[tiles * count]{};
    constexpr int source = program::products[first].source, whole = row_bytes<source>() / chunk;
    // Unrolled as a whole a wide pass spills: the assembler asks for too many weights ahead of time. Of a scan some are
    // in registers, whose numbers are constants.
    constexpr int looped = program::pass ? whole / unrolled * unrolled : 0;
    VRNN_UNROLL_NOT
    for (int k = 0; k < looped; k += unrolled)
        unroll<0, unrolled>([&](auto i) { multiply_chunks<first, count, true>(c, r, sums, odd, own, k + i); });
    unroll<looped, whole>([&](auto k) { multiply_chunks<first, count, true>(c, r, sums, odd, own, k); });
    if constexpr (whole < chunks<source>()) multiply_chunks<first, count, false>(c, r, sums, odd, own, Index<whole>());
    if constexpr (program::products[first].in_two)
        unroll<0, tiles * count>([&](auto n) {
            Tile& even = sum_of<first + n % count>(sums, n / count);
            for (int i = 0; i < 4; ++i) even[i] += odd[n][i];
        });
}

struct alignas(16) Four {
    float v[4];
};
VRNN_DEVICE void add_products(float& sum, const Four& a, const Four& b) {
    for (int i = 0; i < 4; ++i) sum += a.v[i] * b.v[i];
}

struct TwoRows {
    Four low, high;
};

// In full float32: a lane multiplies its two rows of the source, or of each 16 rows of it, by its two columns of the
// weights, 16 bytes at a time.
template <int product>
VRNN_DEVICE void multiply_four(const Context& c, const TwoRows (&rows)[program::stacked], Tile* sums, int tile,
                               int at) {
    constexpr Product p = program::products[product];
    constexpr int stride = row_stride<p.source>();
    const int column = lanes::sums(device::lane(), 0).column;
    tile -= first_own<p.unit>(c);
    const char* from = c.shared + p.weights + (tile * tile_width + column) * stride + at;
    int next = stride;
    if constexpr (p.place == Place::memory) {  // (tiles, K / 4, 8 columns), four floats each
        from = streamed_weights(c) + p.weights +
               ((tile * (row_bytes<p.source>() / 16) + at / 16) * tile_width + column) * 16;
        next = 16;
    }
    const Four a = *reinterpret_cast<const Four*>(from), b = *reinterpret_cast<const Four*>(from + next);
    VRNN_UNROLL
    for (int s = 0; s < program::stacked; ++s) {
        Tile& into = sum_of<product>(sums, s);
        add_products(into[0], rows[s].low, a);
        add_products(into[1], rows[s].low, b);
        add_products(into[2], rows[s].high, a);
        add_products(into[3], rows[s].high, b);
    }
}
template <int first, int count>
VRNN_DEVICE void multiply_by_lanes(const Stack& c, Tile* sums, int tile) {
    constexpr int source = program::products[first].source, stride = row_stride<source>();
    const int row = lanes::sums(device::lane(), 0).row * stride;
    // Unrolled as a whole it spills.
    VRNN_UNROLL_BY_2
    for (int at = 0; at < row_bytes<source>(); at += 16) {
        TwoRows rows[program::stacked];
        VRNN_UNROLL
        for (int s = 0; s < program::stacked; ++s) {
            const char* const own = operands<source>(c.of[s], c.of[s].turn) + row + at;
            rows[s].low = *reinterpret_cast<const Four*>(own);
            rows[s].high = *reinterpret_cast<const Four*>(own + 8 * stride);
        }
        unroll<first, first + count>([&](auto n) { multiply_four<n>(c.of[0], rows, sums, tile, at); });
    }
}

// All products from first to end.
template <int first, int end, int abreast>
VRNN_DEVICE void multiply(const Stack& c, const Registers& r, Tile* sums, Group<abreast> own) {
    if constexpr (first < end) {
        constexpr int count = alike(first, end);
        if constexpr (program::operand == Operand::f32)
            multiply_by_lanes<first, count>(c, sums, own.first);
        else
            multiply_by_tensor_cores<first, count>(c, r, sums, own);
        multiply<first + count, end>(c, r, sums, own);
    }
}

}  // namespace vrnn
