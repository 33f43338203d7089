// How a lane reaches its own elements of parts: in memory, and in shared memory.
namespace vrnn {

// What a lane holds of a tile of 16 rows x 8 columns: lanes::sums.
struct alignas(16) Tile {
    float v[4];
    VRNN_DEVICE float& operator[](int i) { return v[i]; }
    VRNN_DEVICE float operator[](int i) const { return v[i]; }
};

// One launch. A row of a buffer is t * batch + b; there are fewer than 2^31 of them.
struct Call {
    program::Value* buffers[program::buffers + 1];     // (steps * batch, stride), what Part::buffer numbers
    const program::Value* start[program::states + 1];  // (batch, width) states before the first step, or null: zeros,
    program::Value* last[program::states + 1];         // and after the last one of each row
    const void* weights;                               // program::shared_weights bytes as shared memory holds them,
    const void* streamed;                              // those in the order of lanes
    const float* biases;                               // (program::biases)
    program::Value* totals[2];                         // (steps, batch) of each Total
    const program::Value* upstream[2];                 // and their gradients, at t * stride[0] + b * stride[1]
    const i64* lengths;                                // (batch), or null: every row has all steps
    const i64* order;                                  // (batch) rows, the longest first, or null: as they lie
    const signed char* resets;                         // (steps, batch), or null
    const signed char* mask;                           // (steps, batch, columns of x), or null: all was observed
    const float* uniforms;                             // (steps, batch) of a particle filter, what it draws with,
    i64* ancestors;                                    // and whom it drew
    void* pushed;                                      // (tiles, program::pushed_bytes) of operands between ranks,
    int* flags;                                        // (tiles, ranks) visits behind each, zeros at first
    int blocks, steps, batch, strides[2][2];
    int particles;  // of a sequence: rows side by side, which one tile has
    float enough;   // of them, that a filter lets be
};

// The two rows of a lane's elements: 0 and 1 of a tile are in the first, 2 and 3 in the second.
struct Rows {
    int index[2];   // in the batch; of a pass, in a buffer
    int length[2];  // steps; -1 where there is no such row. Of a pass, 1 or, at padding, 0
};

// Where a scan is in time, or a pass among its tiles: of 16 rows.
struct Context {
    const Call& call;
    char* shared;
    Rows rows;
    int t;          // of a pass, 0
    Rows next;      // of a pass: of the tile after this one
    int rank = 0;   // of the blocks that share a tile, which one this is
    int turn = 0;   // of those: how many steps there have been, -1 before the first one
    int stack = 0;  // of a pass: which of the 16 rows that a step takes

    // What these rows have in shared memory: places of parts begin there.
    VRNN_DEVICE char* own() const { return shared + stack * program::stacked_bytes; }

    // Whether a row has this step, and the one that comes after it in the order of the scan.
    VRNN_DEVICE bool runs(int i) const { return t < rows.length[i >> 1]; }
    VRNN_DEVICE bool goes_on(int i) const {
        if constexpr (program::pass) return next.length[i >> 1] > 0;
        if constexpr (program::reverse) return t >= 1 && t - 1 < rows.length[i >> 1];
        return t + 1 < rows.length[i >> 1];
    }
    // Whether it is padding, where results are zero.
    VRNN_DEVICE bool pads(int i) const { return rows.length[i >> 1] >= 0 && !runs(i); }

    VRNN_DEVICE int row(int i) const { return t * call.batch + rows.index[i >> 1]; }
    VRNN_DEVICE int next_row(int i) const {
        if constexpr (program::pass) return next.index[i >> 1];
        return row(i) + (program::reverse ? -call.batch : call.batch);
    }
};

// All rows that a step takes, 16 by 16.
struct Stack {
    Context of[program::stacked];
};
static_assert(program::stacked == 1 || (program::stacked == 2 && program::pass), "a scan takes 16 rows");

// body(context) for each of them, whose number the compiler knows.
template <class Rows, class Body>
VRNN_DEVICE void each(Rows& stack, Body body) {
    unroll<0, program::stacked>([&](auto i) { body(stack.of[i]); });
}

// body(0), ... make the contexts of a step's rows.
template <class Body>
VRNN_DEVICE Stack stack_of(Body body) {
    if constexpr (program::stacked == 1)
        return {{body(0)}};
    else
        return {{body(0), body(1)}};
}

// The tile of a scan's rows that a block has, alone or with others.
VRNN_DEVICE int tile_of_block() {
    return device::block() / program::ranks;
}

VRNN_DEVICE int column_of(int tile, int i) {
    return tile * tile_width + lanes::sums(device::lane(), i).column;
}

// The first of the tiles that a rank has, and how many. Ranks share them as evenly as can be, so that where there are
// as many tiles as ranks each has one.
VRNN_DEVICE constexpr int first_of_rank(int rank, int tiles) {
    return rank * tiles / program::ranks;
}
VRNN_DEVICE constexpr int count_of_rank(int rank, int tiles) {
    return first_of_rank(rank + 1, tiles) - first_of_rank(rank, tiles);
}

// The first of a part's tiles that a block has, and how many: of a part that ranks share, its own.
template <int part>
VRNN_DEVICE int first_tile(const Context& c) {
    constexpr Part p = program::parts[part];
    return p.split ? first_of_rank(c.rank, p.tiles) : 0;
}
template <int part>
VRNN_DEVICE int count_tiles(const Context& c) {
    constexpr Part p = program::parts[part];
    return p.split ? count_of_rank(c.rank, p.tiles) : p.tiles;
}

// Whether a column of a part is not padding; known to the compiler where a part has none.
template <int part>
VRNN_DEVICE bool real(int column) {
    constexpr Part p = program::parts[part];
    return p.width == p.tiles * tile_width || column < p.width;
}

// An element of a part in memory, of a row.
template <int part>
VRNN_DEVICE program::Value* in_memory(const Context& c, int row, int column) {
    constexpr Part p = program::parts[part];
    return c.call.buffers[p.buffer] + static_cast<i64>(row) * p.stride + p.column + column;
}

// What a lane has of a tile, as it is in memory.
struct alignas(4 * sizeof(program::Value)) Own {
    program::Value v[4];
};
template <int part>
VRNN_DEVICE Own* own_ahead(const Context& c, int tile) {
    return reinterpret_cast<Own*>(c.own() + program::parts[part].ahead) + (tile - first_tile<part>(c)) * 32 +
           device::lane();
}

// Begin to copy what this lane will read of a tile in the step after this one. Nobody else reads it, so that no barrier
// is needed: the lane waits for its own copies.
template <int part>
VRNN_DEVICE void fetch(const Context& c, int tile) {
    if constexpr (part != none)
        if constexpr (program::parts[part].ahead != none) {
            constexpr int size = sizeof(program::Value);
            for (int i = 0; i < 4; i += 2) {
                if (!c.goes_on(i)) continue;
                const int column = column_of(tile, i);
                const program::Value* const from = in_memory<part>(c, c.next_row(i), column);
                program::Value* const to = own_ahead<part>(c, tile)->v + i;
                if constexpr (program::parts[part].pairs) {
                    if (real<part>(column)) device::copy_async<2 * size>(to, from);
                } else {
                    if (real<part>(column)) device::copy_async<size>(to, from);
                    if (real<part>(column + 1)) device::copy_async<size>(to + 1, from + 1);
                }
            }
        }
}

// A tile in memory of the step's rows; zeros where there is none.
template <int part>
VRNN_DEVICE Tile read(const Context& c, int tile) {
    constexpr Part p = program::parts[part];
    Tile found{};
    if constexpr (p.ahead != none) {
        const Own own = *own_ahead<part>(c, tile);
        for (int i = 0; i < 4; ++i)
            if (c.runs(i) && real<part>(column_of(tile, i))) found[i] = device::read(&own.v[i]);
        fetch<part>(c, tile);
    } else {
        for (int i = 0; i < 4; ++i) {
            const int column = column_of(tile, i);
            if (c.runs(i) && real<part>(column)) found[i] = device::read(in_memory<part>(c, c.row(i), column));
        }
    }
    return found;
}

template <int part>
VRNN_DEVICE void write(const Context& c, int tile, const Tile& value) {
    if constexpr (program::ranks > 1 && !program::parts[part].split)
        if (c.rank != 0) return;  // each rank has computed the same
    for (int i = 0; i < 4; ++i) {
        const int column = column_of(tile, i);
        if (!real<part>(column)) continue;
        if (c.runs(i)) device::write(in_memory<part>(c, c.row(i), column), value[i]);
        if constexpr (program::parts[part].result)
            if (c.pads(i)) device::write(in_memory<part>(c, c.row(i), column), 0.0f);
    }
}

// Whether an element of x is there and was observed.
template <int part>
VRNN_DEVICE bool observed(const Context& c, int column, int i) {
    constexpr Part p = program::parts[part];
    if (!c.runs(i) || !real<part>(column)) return false;
    return !c.call.mask || c.call.mask[static_cast<i64>(c.row(i)) * p.stride + p.column + column];
}

// The gradient of a number of each row, of one of the two rows.
VRNN_DEVICE float upstream(const Context& c, int total, int i) {
    if (!c.runs(i)) return 0;
    const i64 t = c.row(i) / c.call.batch, b = c.row(i) % c.call.batch;
    return device::read(c.call.upstream[total] + t * c.call.strides[total][0] + b * c.call.strides[total][1]);
}

// A tile of the states before the first step, or of the gradients behind the last one.
template <int part>
VRNN_DEVICE Tile read_state(const Context& c, int tile) {
    constexpr Part p = program::parts[part];
    Tile found{};
    if (!c.call.start[p.state]) return found;
    for (int i = 0; i < 4; ++i) {
        const int column = column_of(tile, i), index = c.rows.index[i >> 1];
        if (c.rows.length[i >> 1] >= 0 && real<part>(column))
            found[i] = device::read(c.call.start[p.state] + static_cast<i64>(index) * p.width + column);
    }
    return found;
}
template <int part>
VRNN_DEVICE void write_state(const Context& c, int column, int i, float value) {
    constexpr Part p = program::parts[part];
    device::write(c.call.last[p.state] + static_cast<i64>(c.rows.index[i >> 1]) * p.width + column, value);
}

// What a state begins with where a sequence begins anew: its bias, or zero. Rare, so that it is read in memory.
template <int part>
VRNN_DEVICE float initial_state(const Context& c, int column) {
    constexpr Part p = program::parts[part];
    if constexpr (p.bias == none) return 0;
    return c.call.biases[c.rank * program::biases + p.bias + column - first_tile<part>(c) * tile_width];
}

// Bytes of a row of a part's operands, and from one row to the next.
template <int part>
VRNN_DEVICE constexpr int row_bytes() {
    return program::parts[part].tiles * tile_width * program::operand_bytes;
}
template <int part>
VRNN_DEVICE constexpr int row_stride() {
    return row_bytes<part>() + row_padding;
}

struct alignas(16) Words16 {
    u32 w[4];
};

// Two neighbours as operands.
struct Pair {
    float low, high;
};
VRNN_DEVICE void write_operands(char* to, float low, float high) {
    constexpr Operand kind = program::operand;
    if constexpr (kind == Operand::bf16 || kind == Operand::f16)
        *reinterpret_cast<u32*>(to) = device::pack<kind>(low, high);
    else if constexpr (kind == Operand::tf32)
        *reinterpret_cast<Pair*>(to) = {device::round_tf32(low), device::round_tf32(high)};
    else
        *reinterpret_cast<Pair*>(to) = {low, high};
}

// Where a part's operands of a turn are: the same place for all, but of those that peers push here.
template <int part>
VRNN_DEVICE char* operands(const Context& c, int turn) {
    constexpr Part p = program::parts[part];
    if constexpr (p.exchange == none) return c.own() + p.operand;
    return c.own() + p.operand + turn % program::operand_buffers * rows * row_stride<part>();
}

template <int part>
VRNN_DEVICE Tile* held_tile(const Context& c, int tile) {
    return reinterpret_cast<Tile*>(c.own() + program::parts[part].held) + (tile - first_tile<part>(c)) * 32 +
           device::lane();
}

// Push a tile that this warp has put into its own shared memory to the other ranks: exchange.h.
template <int part>
VRNN_DEVICE void push(const Context& c, int tile);

// The result of a part, wherever somebody wants it.
template <int part>
VRNN_DEVICE void put_in_shared(const Context& c, int tile, const Tile& value) {
    constexpr Part p = program::parts[part];
    if constexpr (p.operand != none)
        for (int i = 0; i < 4; i += 2) {
            const int row = lanes::sums(device::lane(), i).row;
            char* const to = operands<part>(c, c.turn + p.for_next) + row * row_stride<part>();
            write_operands(to + column_of(tile, i) * program::operand_bytes, value[i], value[i + 1]);
        }
    if constexpr (p.exchange != none) push<part>(c, tile);
    if constexpr (p.held != none) *held_tile<part>(c, tile) = value;
}
template <int part>
VRNN_DEVICE void put(const Context& c, int tile, const Tile& value) {
    if constexpr (part != none) {
        if constexpr (program::parts[part].stored) write<part>(c, tile, value);
        put_in_shared<part>(c, tile, value);
    }
}

template <int part>
VRNN_DEVICE Tile held(const Context& c, int tile) {
    return *held_tile<part>(c, tile);
}

// An element of it that another lane has put there: of this row of the tile, in the column of a lane's element i.
template <int part>
VRNN_DEVICE float held_of(const Context& c, int tile, int row, int i) {
    const lanes::Place at{row, lanes::sums(device::lane(), i).column};
    const Tile* const from = reinterpret_cast<const Tile*>(c.own() + program::parts[part].held) + tile * 32;
    return from[lanes::sums_lane(at)][lanes::sums_element(at)];
}

template <int part>
VRNN_DEVICE Tile bias(const Context& c, int tile) {
    const float* const from = reinterpret_cast<const float*>(c.shared + program::shared_biases);
    Tile found;
    for (int i = 0; i < 4; ++i) found[i] = from[program::parts[part].bias + column_of(tile - first_tile<part>(c), i)];
    return found;
}

}  // namespace vrnn
