// The scan of one tile of 16 rows over all time steps, in one block; or a pass, one step of which is another tile of 16
// or 32 rows, without a state between them. base.h and what defines vrnn::program come first.
//
// A launch may have several programs: this header is included once for each, inside of a namespace of its own, as are
// those below, by this one alone.
//
// A step is a list of visits. In a visit the warps share the tiles of a unit: they begin its sums, add products to
// them, and finish them, or leave them in registers for a later visit. A barrier stands before a visit that reads what
// others have written since the last one, or writes what others may still read.
#include "access.h"
// then
#include "normalize.h"
#include "particles.h"
#include "products.h"
// then
#include "forward.h"
// then
#include "again.h"
#include "exchange.h"
#include "reverse.h"
#include "tuning.h"

namespace vrnn {

static_assert(program::shared_bytes <= program::shared_limit, "a block asks for more shared memory than the chip has");

// A unit's tiles that one warp has, at most.
VRNN_DEVICE constexpr int rounds(const Unit& u) {
    return (u.share + program::warps - 1) / program::warps;
}

// body(tile, round) for each of the unit's tiles that this warp has, from a round on.
template <int unit, int begin = 0, class Body>
VRNN_DEVICE void own_tiles(const Context& c, Body body) {
    constexpr int warps = program::warps, every = program::units[unit].every;
    const int first = (device::warp() + warps - program::units[unit].first_warp) % warps, count = count_own<unit>(c);
    unroll<begin, rounds(program::units[unit])>([&](auto round) {
        const int own = first + round * warps;
        if (round < every || own < count) body(first_own<unit>(c) + own, round);
    });
}

// body(group) for the same, those that are multiplied abreast at a time.
template <int unit, class Body>
VRNN_DEVICE void own_groups(const Context& c, Body body) {
    constexpr int every = program::units[unit].every, abreast = program::units[unit].abreast;
    const int warp = (device::warp() + program::warps - program::units[unit].first_warp) % program::warps;
    unroll<0, (every + abreast - 1) / abreast>([&](auto n) {
        constexpr int round = n * abreast, count = every - round < abreast ? every - round : abreast;
        body(Group<count>{first_own<unit>(c) + warp + round * program::warps, round});
    });
    own_tiles<unit, every>(c, [&](int tile, int round) { body(Group<1>{tile, round}); });
}

// What a part's sums begin with.
template <int part, bool resumes>
VRNN_DEVICE Tile begun(const Context& c, int tile) {
    constexpr Part p = program::parts[part];
    Tile value{};
    if constexpr (resumes) return held<part>(c, tile);
    if constexpr (p.given) value = read<part>(c, tile);
    if constexpr (p.bias != none) {
        const Tile own = bias<part>(c, tile);
        for (int i = 0; i < 4; ++i) value[i] += own[i];
    }
    return value;
}

template <int unit>
VRNN_DEVICE void begin(const Context& c, const Registers& r, Tile* sums, int tile, int round) {
    constexpr Unit u = program::units[unit];
    unroll<0, u.count>(
        [&](auto n) { sums[n] = begun<program::units[unit].sums[n], program::units[unit].resumes>(c, tile); });
    if constexpr (u.from_state)
        for (int i = 0; i < 4; ++i) sums[0][i] += r.state[u.state + round][i];
}

template <int unit>
VRNN_DEVICE void finish(const Context& c, Registers& r, Tile* sums, int tile, int round) {
    constexpr Unit u = program::units[unit];
    if constexpr (u.kind == Kind::layer) forward::layer<unit>(c, sums[0], tile);
    if constexpr (u.kind == Kind::moments) forward::moments<unit>(c, sums[0], tile);
    if constexpr (u.kind == Kind::normalize) forward::normalize<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::sample) forward::sample<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::divergence) forward::divergence<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::likelihood) forward::likelihood<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::draw) forward::draw<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::gru) forward::gru<unit>(c, sums, tile, r.state[u.state + round]);
    if constexpr (u.kind == Kind::lstm) forward::lstm<unit>(c, sums, tile, r.state[u.state + round]);
    if constexpr (u.kind == Kind::rnn) forward::rnn<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::take) {
        const Tile state = forward::take<unit>(c, tile);
        if constexpr (u.state != none) r.state[u.state + round] = state;
    }
    if constexpr (u.kind == Kind::gru_again) again::gru<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::lstm_again) again::lstm<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::rnn_again) again::rnn<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::layer_back) reverse::layer<unit>(c, sums[0], tile);
    if constexpr (u.kind == Kind::normalize_back) reverse::normalize<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::center_back) reverse::center<unit>(c, sums[0], tile);
    if constexpr (u.kind == Kind::sample_back) reverse::sample<unit>(c, sums[0], tile);
    if constexpr (u.kind == Kind::divergence_back) reverse::divergence<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::likelihood_back) reverse::likelihood<unit>(c, sums, tile);
    if constexpr (u.kind == Kind::gru_back) reverse::gru<unit>(c, sums[0], tile, r.state[u.state + round]);
    if constexpr (u.kind == Kind::lstm_back)
        reverse::lstm<unit>(c, sums[0], tile, r.state[u.state + round], r.state[u.state + rounds(u) + round]);
    if constexpr (u.kind == Kind::rnn_back) reverse::rnn<unit>(c, sums[0], tile, r.state[u.state + round]);
    if constexpr (u.kind == Kind::state_back) {
        reverse::state<u.others[1]>(c, tile, sums[0], r.state[u.state + round]);
        put_in_shared<u.sums[0]>(c, tile, r.state[u.state + round]);
        if constexpr (u.others[0] != none) {
            Tile& cell = r.state[u.state + rounds(u) + round];
            reverse::state<u.others[2]>(c, tile, cell, cell);
            put_in_shared<u.others[0]>(c, tile, cell);
        }
    }
    if constexpr (u.kind == Kind::give_back) {
        reverse::give_back<u.others[0]>(c, tile, r.state[u.state + round]);
        if constexpr (u.others[1] != none)
            reverse::give_back<u.others[1]>(c, tile, r.state[u.state + rounds(u) + round]);
    }
}

// What a visit does to tiles abreast.
template <int index, int abreast>
VRNN_DEVICE void work(const Stack& c, Registers& r, Tile* sums, Group<abreast> own) {
    constexpr Visit v = program::visits[index];
    constexpr int count = program::units[v.unit].count, stacked = program::stacked;
    if constexpr (v.begins)
        unroll<0, abreast * stacked>([&](auto n) {
            begin<program::visits[index].unit>(c.of[n % stacked], r, sums + n * count, own.tile(n / stacked),
                                               own.round + n / stacked);
        });
    multiply<v.first, v.first + v.products>(c, r, sums, own);
    if constexpr (v.finishes)
        unroll<0, abreast * stacked>([&](auto n) {
            finish<program::visits[index].unit>(c.of[n % stacked], r, sums + n * count, own.tile(n / stacked),
                                                own.round + n / stacked);
        });
}

// The same, on sums that live no longer than that, or until a later visit.
template <int index, int abreast>
VRNN_DEVICE void work_on_own(const Stack& c, Registers& r, Group<abreast> own) {
    constexpr Unit u = program::units[program::visits[index].unit];
    if constexpr (u.kept == none) {
        Tile sums[abreast * program::stacked * u.count];
        work<index>(c, r, sums, own);
    } else {
        work<index>(c, r, r.kept + (u.kept + own.round * u.count) * program::stacked, own);
    }
}

template <int index>
VRNN_DEVICE void visit(const Stack& c, Registers& r) {
    constexpr Visit v = program::visits[index];
    const Context& first = c.of[0];
    if constexpr (v.barrier)
        if (device::present(first_visit + index)) device::barrier();
    Exchange::await<index>(first);
    constexpr Kind kind = program::units[v.unit].kind;
    if constexpr (kind == Kind::total)
        each(c, [](const Context& own) { forward::total<program::visits[index].unit>(own); });
    else if constexpr (kind == Kind::resample)
        resample<v.unit>(first);
    else
        own_groups<v.unit>(first, [&](auto own) { work_on_own<index>(c, r, own); });
    if constexpr (kind == Kind::give_back) reverse::fetch_heirs<v.unit>(first);
    Exchange::publish<index>(first);
}

// The states before the first step, as if the step before it had made them; of a reverse scan, their gradients.
template <int unit>
VRNN_DEVICE void start_tile(const Context& c, Registers& r, int tile, int round) {
    constexpr Unit u = program::units[unit];
    if constexpr (u.kind == Kind::state_back) {
        r.state[u.state + round] = read_state<u.sums[0]>(c, tile);
        put_in_shared<u.sums[0]>(c, tile, r.state[u.state + round]);
        if constexpr (u.others[0] != none) {
            r.state[u.state + rounds(u) + round] = read_state<u.others[0]>(c, tile);
            put_in_shared<u.others[0]>(c, tile, r.state[u.state + rounds(u) + round]);
        }
    } else {
        Tile h = read_state<u.others[0]>(c, tile);
        forward::advance<u.others[0]>(c, tile, h);
        if constexpr (u.others[2] != none) {
            Tile cell = read_state<u.others[2]>(c, tile);
            forward::advance<u.others[2]>(c, tile, cell);
            r.state[u.state + round] = cell;
        } else if constexpr (u.state != none) {
            r.state[u.state + round] = h;
        }
    }
}
template <int unit>
VRNN_DEVICE void start(const Context& c, Registers& r) {
    constexpr Unit u = program::units[unit];
    constexpr bool updates = u.kind == Kind::gru || u.kind == Kind::lstm || u.kind == Kind::rnn || u.kind == Kind::take;
    if constexpr ((updates && u.others[0] != none) || u.kind == Kind::state_back)
        own_tiles<unit>(c, [&](int tile, int round) { start_tile<unit>(c, r, tile, round); });
    if constexpr (u.kind == Kind::resample) start_particles<unit>(c);
    if constexpr (u.kind == Kind::give_back) reverse::fetch_heirs<unit>(c);
}

// Behind the last step of a reverse scan. Forward, each row leaves its state where it ends.
template <int unit>
VRNN_DEVICE void end_tile(const Context& c, const Registers& r, int tile, int round) {
    constexpr Unit u = program::units[unit];
    reverse::end<u.sums[0]>(c, tile, r.state[u.state + round]);
    if constexpr (u.others[0] != none) reverse::end<u.others[0]>(c, tile, r.state[u.state + rounds(u) + round]);
}
template <int unit>
VRNN_DEVICE void end(const Context& c, const Registers& r) {
    if constexpr (program::units[unit].kind == Kind::state_back)
        own_tiles<unit>(c, [&](int tile, int round) { end_tile<unit>(c, r, tile, round); });
}

// What the first step reads.
template <int unit>
VRNN_DEVICE void fetch_tile(const Context& c, int tile) {
    constexpr Unit u = program::units[unit];
    unroll<0, (u.resumes ? 0 : u.count)>([&](auto n) { fetch<program::units[unit].sums[n]>(c, tile); });
    unroll<0, others>([&](auto n) { fetch<program::units[unit].others[n]>(c, tile); });
}
template <int unit>
VRNN_DEVICE void fetch_first(const Stack& c) {
    constexpr Kind kind = program::units[unit].kind;
    if constexpr (kind != Kind::total && kind != Kind::resample && kind != Kind::give_back)
        each(c, [](const Context& own) { own_tiles<unit>(own, [&](int tile, int) { fetch_tile<unit>(own, tile); }); });
}

// The weights that stay in registers.
template <int product>
VRNN_DEVICE void load_resident_tile(const Context& c, Registers& r, int tile, int round) {
    constexpr Product p = program::products[product];
    constexpr int count = chunks<p.source>();
    VRNN_UNROLL
    for (int k = 0; k < count; ++k) r.resident[p.resident + round * count + k] = streamed<product>(c, tile, k);
}
template <int product>
VRNN_DEVICE void load_resident(const Context& c, Registers& r) {
    if constexpr (program::products[product].place == Place::registers)
        own_tiles<program::products[product].unit>(
            c, [&](int tile, int round) { load_resident_tile<product>(c, r, tile, round); });
}

// Bring in what stays in shared memory: the weights, then the biases.
VRNN_DEVICE void copy_weights(const Context& c) {
    constexpr int bytes = program::shared_weights, biases = program::biases * 4;
    const auto* const from = static_cast<const char*>(c.call.weights) + static_cast<i64>(c.rank) * bytes;
    const auto* const added = reinterpret_cast<const char*>(c.call.biases) + static_cast<i64>(c.rank) * biases;
    for (int i = device::thread() * 16; i < bytes; i += device::threads() * 16)
        device::copy_async<16>(c.shared + i, from + i);
    for (int i = device::thread() * 16; i < biases; i += device::threads() * 16)
        device::copy_async<16>(c.shared + program::shared_biases + i, added + i);
}

// The rows of this block that a lane's elements are in.
VRNN_DEVICE Rows own_rows(const Call& call) {
    Rows found;
    for (int half = 0; half < 2; ++half) {
        const int row = lanes::sums(device::lane(), 2 * half).row, place = tile_of_block() * rows_in_use(call) + row;
        const bool there = row < rows_in_use(call) && place < call.batch;
        found.index[half] = there ? (call.order ? static_cast<int>(call.order[place]) : place) : 0;
        found.length[half] = !there         ? -1
                             : call.lengths ? static_cast<int>(call.lengths[found.index[half]])
                                            : call.steps;
    }
    return found;
}

// Steps of this block's longest row, which is its first one.
VRNN_DEVICE int longest(const Call& call) {
    const int first = tile_of_block() * rows_in_use(call);
    return call.lengths ? static_cast<int>(call.lengths[call.order[first]]) : call.steps;
}

// Zeros where results have padding, in rows none of which runs.
template <int part>
VRNN_DEVICE void pad_part(const Context& c) {
    constexpr Part p = program::parts[part];
    if constexpr (p.result)
        for (int tile = device::warp(); tile < p.tiles; tile += program::warps) write<part>(c, tile, Tile{});
}
VRNN_DEVICE void pad(const Context& c) {
    unroll<0, program::parts_in_all>([&](auto part) { pad_part<part>(c); });
    unroll<0, program::units_in_all>([&](auto unit) {
        if constexpr (program::units[unit].kind == Kind::total) forward::total<unit>(c);
        if constexpr (program::units[unit].kind == Kind::resample) pad_ancestors<unit>(c);
    });
}

// Bring in weights, states, and what the first step reads.
VRNN_DEVICE void prepare(const Stack& c, Registers& r) {
    const Context& first = c.of[0];
    copy_weights(first);
    Exchange::open(first);
    unroll<0, program::products_in_all>([&](auto product) { load_resident<product>(first, r); });
    unroll<0, program::units_in_all>([&](auto unit) {
        if constexpr (!program::pass) start<unit>(first, r);
        fetch_first<unit>(c);
    });
    Exchange::publish_first(first);
    device::copy_commit();
    if constexpr (program::barrier_first) {
        if (device::present(weights_wait)) device::copy_wait<0>();
        if (device::present(first_barrier)) device::barrier();
    }
}

VRNN_DEVICE void step(const Stack& c, Registers& r) {
    if (device::present(step_wait)) device::copy_wait<0>();
    unroll<0, program::visits_in_all>([&](auto index) { visit<index>(c, r); });
    device::copy_commit();
}

// A scan all by itself: what its steps read is there, and nobody waits for what they make.
struct Alone {
    VRNN_DEVICE void await(int) const {}
    VRNN_DEVICE void publish(int) const {}
};

// Pace: of how many of the block's steps, in its order, all that they read must be there, and how many are done.
template <class Pace>
VRNN_DEVICE void scan(const Call& call, Pace pace) {
    const int steps = longest(call);
    if (steps > 0) pace.await(1);
    const int before = program::reverse ? steps : -1;
    Stack stack{{{call, static_cast<char*>(device::shared()), own_rows(call), before, {}, Exchange::rank(), -1}}};
    Context& c = stack.of[0];
    Registers r;
    prepare(stack, r);
    for (int i = 0; i < steps; ++i) {
        c.t = program::reverse ? steps - 1 - i : i;
        c.turn = i;
        if (i + 1 < steps) pace.await(i + 2);  // a step fetches what the next one reads
        step(stack, r);
        pace.publish(i + 1);
    }
    c.turn = steps;
    Exchange::close(c);
    unroll<0, program::units_in_all>([&](auto unit) { end<unit>(c, r); });
    if (c.rank == 0)
        for (c.t = steps; c.t < call.steps; ++c.t) pad(c);
}

// ---- a pass, whose places are t * batch + a row's place in the batch

constexpr int taken = rows * program::stacked;  // rows of its tiles

VRNN_DEVICE int tiles_in_all(const Call& call) {
    return (call.steps * call.batch + taken - 1) / taken;
}

// The rows that a lane's elements are in, of 16 of a pass.
VRNN_DEVICE Rows rows_of(const Call& call, int number) {
    Rows found;
    for (int half = 0; half < 2; ++half) {
        const int place = number * rows + lanes::sums(device::lane(), 2 * half).row;
        const int t = place / call.batch, b = place % call.batch;
        const int own = call.order ? static_cast<int>(call.order[b]) : b;
        found.index[half] = t * call.batch + own;
        found.length[half] = t >= call.steps ? -1 : call.lengths ? t < call.lengths[own] : 1;
    }
    return found;
}

// Whether some row of a tile is real: those of a step come first.
VRNN_DEVICE bool any_real(const Call& call, int tile) {
    if (!call.lengths) return true;
    const int t = tile * taken / call.batch, b = tile * taken % call.batch;
    if (t < call.lengths[call.order[b]]) return true;
    return b + taken > call.batch && t + 1 < call.lengths[call.order[0]];
}

// Zeros at the padding of a tile that is nothing else.
VRNN_DEVICE void pad_tile(const Call& call, int tile) {
    for (int i = 0; i < program::stacked; ++i) {
        const Rows own = rows_of(call, tile * program::stacked + i);
        pad({call, static_cast<char*>(device::shared()), own, 0, {}, 0, 0, i});
    }
}

// The next of this block's tiles, from this one on, with a real row; those before it are padding.
VRNN_DEVICE int real_tile(const Call& call, int tile) {
    for (; tile < tiles_in_all(call) && !any_real(call, tile); tile += device::blocks()) pad_tile(call, tile);
    return tile;
}

// What comes next is this tile.
VRNN_DEVICE void look_ahead(Stack& c, int tile) {
    each(c, [&](Context& own) { own.next = rows_of(own.call, tile * program::stacked + own.stack); });
}
VRNN_DEVICE void go_on(Stack& c) {
    each(c, [](Context& own) { own.rows = own.next; });
}
VRNN_DEVICE Stack stack_of_pass(const Call& call) {
    return stack_of([&](int i) { return Context{call, static_cast<char*>(device::shared()), {}, 0, {}, 0, 0, i}; });
}

VRNN_DEVICE void pass(const Call& call) {
    Stack c = stack_of_pass(call);
    int tile = real_tile(call, device::block());
    if (tile >= tiles_in_all(call)) return;
    look_ahead(c, tile);
    Registers r;
    prepare(c, r);
    while (tile < tiles_in_all(call)) {
        tile = real_tile(call, tile + device::blocks());
        go_on(c);
        look_ahead(c, tile);
        step(c, r);
    }
}

// A pass whose tiles come one at a time, each when what it reads is there: ahead of a scan, or behind it.
struct Tiles {
    const Call& call;
    Registers r;
    bool prepared = false;

    VRNN_DEVICE void run(int tile) {
        if (!any_real(call, tile)) return pad_tile(call, tile);
        Stack c = stack_of_pass(call);
        look_ahead(c, tile);
        if (prepared) {
            unroll<0, program::units_in_all>([&](auto unit) { fetch_first<unit>(c); });
            device::copy_commit();
        } else {
            prepare(c, r);
        }
        prepared = true;
        go_on(c);
        each(c, [](Context& own) {
            own.next.length[0] = own.next.length[1] = -1;  // nobody knows yet whether another tile is there
        });
        step(c, r);
    }
};

struct Kernel {
    static constexpr int threads = program::warps * 32, blocks = tuning::blocks;
    static constexpr int shared = program::shared_bytes, limit = program::shared_limit;
    static VRNN_DEVICE void run(const Call& call) {
        if constexpr (program::pass)
            vrnn::pass(call);
        else
            vrnn::scan(call, Alone());
    }

    // The same as parts of a larger launch: rows/crew.h.
    using ByTurns = Tiles;
    static constexpr int rows_taken = taken;
    static VRNN_DEVICE int tiles(const Call& call) { return tiles_in_all(call); }
    static VRNN_DEVICE int rows_of_a_tile(const Call& call) { return rows_in_use(call); }
    static VRNN_DEVICE int steps_of_block(const Call& call) { return longest(call); }
    template <class Pace>
    static VRNN_DEVICE void scan(const Call& call, Pace pace) {
        vrnn::scan(call, pace);
    }
};

}  // namespace vrnn
