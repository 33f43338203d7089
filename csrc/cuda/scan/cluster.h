// A cluster of blocks that share a tile of rows, each with some columns of what its units compute. What a product reads
// is whole in every block: each pushes its own columns to all others, turn by turn into one of two buffers, and waits
// at a gate of its own for theirs. vrnn_fast/executors/cuda/exchange.py says where, and why nobody comes too early.
namespace vrnn {

// The numbers of waits, for device::present: for the exchanges in the order of program::waits, for all peers at first.
constexpr int first_exchange = first_visit + program::visits_in_all,
              peers_are_there = first_exchange + program::waits_in_all;

VRNN_DEVICE int own_rank() {
    if constexpr (program::ranks > 1) return device::rank();
    return 0;
}

// Bytes that the peers push of a part in each turn.
template <int part>
VRNN_DEVICE int bytes_to_come(const Context& c) {
    constexpr Part p = program::parts[part];
    const int left = p.tiles - first_tile<part>(c), own = left < 0 ? 0 : left < p.share ? left : p.share;
    return rows * (p.tiles - own) * tile_width * program::operand_bytes;
}

// The phase of a gate that is over with a turn of this number.
VRNN_DEVICE int parity_of(int turn) {
    return turn / program::exchange_buffers % 2;
}

template <int part>
VRNN_DEVICE void expect(const Context& c, int turn) {
    device::arrive_and_expect(gate_of<part>(c, turn), bytes_to_come<part>(c));
}

// Wait until all columns of a part are there; the gate then expects those of the turn that has it next.
template <int wait>
VRNN_DEVICE void wait_for_peers(const Context& c) {
    constexpr int part = program::waits[wait];
    if (bytes_to_come<part>(c) == 0) return;  // a phase that expects nothing is over before anybody waits for it
    if (device::present(first_exchange + wait)) device::wait_at(gate_of<part>(c, c.turn), parity_of(c.turn));
    if (device::thread() == 0) expect<part>(c, c.turn + program::exchange_buffers);
}

// Make all gates, before the first push of any block reaches them.
VRNN_DEVICE void open_gates(const Context& c) {
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

// Behind the last step: what it has made for the next one comes as well, and nobody leaves before it has.
VRNN_DEVICE void close_gates(const Context& c) {
    if constexpr (program::ranks > 1) {
        unroll<0, program::waits_in_all>([&](auto n) {
            constexpr int part = program::waits[n];
            if constexpr (program::parts[part].for_next)
                if (bytes_to_come<part>(c) > 0) device::wait_at(gate_of<part>(c, c.turn), parity_of(c.turn));
        });
        device::cluster_barrier();
    }
}

}  // namespace vrnn
