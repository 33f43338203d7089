// Ranks that are any blocks which run at once, as the host has seen to: each pushes its columns into memory, turn by
// turn into one of two buffers, and publishes how many visits are behind all of its warps. The others wait for that and
// copy them into their own shared memory.
namespace vrnn {

// The numbers for device::present, each of them and a visit's; behind those of visits, what comes before the first one.
constexpr int of_visits = program::visits_in_all + 1, first_copied = first_exchange + of_visits,
              first_pushed = first_copied + of_visits, first_published = first_pushed + of_visits;

struct Memory {
    static VRNN_DEVICE int rank() { return device::block() % program::ranks; }

    static VRNN_DEVICE void open(const Context&) {}
    static VRNN_DEVICE void close(const Context&) {}

    // What a rank of this tile publishes.
    static VRNN_DEVICE int* flag_of(const Context& c, int rank) {
        return c.call.flags + tile_of_block() * program::ranks + rank;
    }

    // A tile of a part in memory: its rows' first 16 bytes, then the next.
    template <int part>
    static VRNN_DEVICE Words16* pushed(const Context& c, int turn, int tile) {
        constexpr Part p = program::parts[part];
        char* const own = static_cast<char*>(c.call.pushed) + static_cast<i64>(tile_of_block()) * program::pushed_bytes;
        const int at = (turn % program::exchange_buffers * p.tiles + tile) * tile_bytes;
        return reinterpret_cast<Words16*>(own + p.pushed + at);
    }

    template <int part>
    static VRNN_DEVICE void push(const Context& c, int turn, int tile) {
        for (int i = device::lane(); i < tile_pieces; i += 32)
            pushed<part>(c, turn, tile)[i] = *piece<part>(c, turn, tile, i);
    }

    // Behind all warps, which one thread speaks for.
    static VRNN_DEVICE void publish(const Context& c, int number, int count) {
        if (device::present(first_pushed + number)) device::barrier();
        if (device::thread() == 0 && device::present(first_published + number))
            device::publish(flag_of(c, c.rank), count);
    }

    // The visits of all steps up to one of this turn, those of a step before the first included.
    static VRNN_DEVICE int visits_up_to(int turn, int index) { return (turn + 1) * program::visits_in_all + index + 1; }

    template <int index>
    static VRNN_DEVICE void publish(const Context& c) {
        if constexpr (program::visits[index].publishes) publish(c, index, visits_up_to(c.turn, index));
    }

    // Whether the first step reads what is there before it.
    static VRNN_DEVICE constexpr bool has_first() {
        for (int n = 0; n < program::waits_in_all; ++n)
            if (program::parts[program::waits[n]].for_next) return true;
        return false;
    }
    static VRNN_DEVICE void publish_first(const Context& c) {
        constexpr int behind = program::visits_in_all;
        if constexpr (has_first()) publish(c, behind, visits_up_to(-1, behind - 1));
    }

    // The visit that makes the last of what another one waits for; of the step before, with a number below zero.
    template <int index>
    static VRNN_DEVICE constexpr int last_maker() {
        constexpr Visit v = program::visits[index];
        int last = -program::visits_in_all;
        for (int n = v.first_wait; n < v.first_wait + v.waits; ++n) {
            const Part p = program::parts[program::waits[n]];
            const int own = p.maker - (p.for_next ? program::visits_in_all : 0);
            last = own > last ? own : last;
        }
        return last;
    }

    template <int index>
    static VRNN_DEVICE void await(const Context& c) {
        constexpr Visit v = program::visits[index];
        if constexpr (v.waits > 0) {
            if (device::present(first_exchange + index))
                for (int peer = device::lane(); peer < program::ranks; peer += 32)
                    if (peer != c.rank)
                        device::wait_shortly_for(flag_of(c, peer), visits_up_to(c.turn, last_maker<index>()));
            device::sync_warp();
            unroll<v.first_wait, v.first_wait + v.waits>([&](auto n) { copy<program::waits[n]>(c); });
            if (device::present(first_copied + index)) device::barrier();
        }
    }

    // The tiles of the other ranks.
    template <int part>
    static VRNN_DEVICE void copy(const Context& c) {
        constexpr Part p = program::parts[part];
        const int first = first_tile<part>(c), end = first + count_tiles<part>(c);
        for (int i = device::thread(); i < p.tiles * tile_pieces; i += device::threads()) {
            const int tile = i / tile_pieces, own = i % tile_pieces;
            if (tile < first || tile >= end) *piece<part>(c, c.turn, tile, own) = pushed<part>(c, c.turn, tile)[own];
        }
    }
};

}  // namespace vrnn
