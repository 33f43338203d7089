// Ranks that are a cluster: each pushes its columns into the shared memory of all others, turn by turn into one of two
// buffers, and waits at a gate of its own for theirs.
namespace vrnn {

// The number of the barrier before the first push, for device::present; before it come those of waits, in the order of
// program::waits.
constexpr int peers_are_there = first_exchange + program::waits_in_all;

struct Peers {
    static VRNN_DEVICE int rank() {
        if constexpr (program::ranks > 1) return device::rank();
        return 0;
    }

    // The gate of the turns of one parity, whose phases are over one after the other.
    template <int part>
    static VRNN_DEVICE Gate* gate_of(const Context& c, int turn) {
        return reinterpret_cast<Gate*>(c.shared + program::gates) +
               program::parts[part].exchange * program::exchange_buffers + turn % program::exchange_buffers;
    }

    // Bytes that the peers push of a part in each turn.
    template <int part>
    static VRNN_DEVICE int bytes_to_come(const Context& c) {
        return (program::parts[part].tiles - count_tiles<part>(c)) * tile_bytes;
    }

    // The phase of a gate that is over with a turn of this number.
    static VRNN_DEVICE int parity_of(int turn) { return turn / program::exchange_buffers % 2; }

    template <int part>
    static VRNN_DEVICE void expect(const Context& c, int turn) {
        device::arrive_and_expect(gate_of<part>(c, turn), bytes_to_come<part>(c));
    }

    // Make all gates, before the first push of any block reaches them.
    static VRNN_DEVICE void open(const Context& c) {
        if constexpr (program::ranks > 1) {
            if (device::thread() == 0) {
                unroll<0, program::waits_in_all>([&](auto n) {
                    constexpr int part = program::waits[n];
                    for (int turn = 0; turn < program::exchange_buffers; ++turn) {
                        device::make_gate(gate_of<part>(c, turn), 1);
                        if (bytes_to_come<part>(c) > 0) expect<part>(c, turn);
                    }
                });
                device::show_gates();
            }
            if (device::present(peers_are_there)) device::cluster_barrier();
        }
    }

    template <int part>
    static VRNN_DEVICE void push(const Context& c, int turn, int tile) {
        constexpr int peers = program::ranks - 1;
        for (int i = device::lane(); i < tile_pieces * peers; i += 32) {
            const int to = (c.rank + 1 + i / tile_pieces) % program::ranks;
            Words16* const at = piece<part>(c, turn, tile, i % tile_pieces);
            const Words16 words = *at;
            device::store_async(at, to, words.w, gate_of<part>(c, turn));
        }
    }

    // Gates count what comes.
    static VRNN_DEVICE void publish_first(const Context&) {}
    template <int index>
    static VRNN_DEVICE void publish(const Context&) {}

    // Wait until all columns of a part are there; the gate then expects those of the turn that has it next.
    template <int wait>
    static VRNN_DEVICE void await_part(const Context& c) {
        constexpr int part = program::waits[wait];
        if (bytes_to_come<part>(c) == 0) return;  // a phase that expects nothing is over before anybody waits for it
        if (device::present(first_exchange + wait)) device::wait_at(gate_of<part>(c, c.turn), parity_of(c.turn));
        if (device::thread() == 0) expect<part>(c, c.turn + program::exchange_buffers);
    }
    template <int index>
    static VRNN_DEVICE void await(const Context& c) {
        constexpr Visit v = program::visits[index];
        unroll<v.first_wait, v.first_wait + v.waits>([&](auto n) { await_part<n>(c); });
    }

    // Behind the last step: what it has made for the next one comes as well, and nobody leaves before it has.
    static VRNN_DEVICE void close(const Context& c) {
        if constexpr (program::ranks > 1) {
            unroll<0, program::waits_in_all>([&](auto n) {
                constexpr int part = program::waits[n];
                if constexpr (program::parts[part].for_next)
                    if (bytes_to_come<part>(c) > 0) device::wait_at(gate_of<part>(c, c.turn), parity_of(c.turn));
            });
            device::cluster_barrier();
        }
    }
};

}  // namespace vrnn
