// How several blocks, the ranks that share a tile of rows, each with some columns of what its units compute, exchange
// what products read, which is whole in every block. vrnn_fast/executors/cuda/exchange.py says where, and why nobody
// comes too early. An exchange has
//
//   rank                     which of the blocks this one is
//   open, close              before anything is pushed, and behind the last step
//   push                     a tile of a part and a turn, that this warp has put into its own shared memory
//   publish, publish_first   what a visit has pushed, and what is there before the first one
//   await                    what a visit reads first
namespace vrnn {

// The numbers of waits and barriers of an exchange, for device::present, begin here.
constexpr int first_exchange = first_visit + program::visits_in_all;

// A tile of operands, which is pushed 16 bytes of a row at a time.
constexpr int tile_row_bytes = tile_width * program::operand_bytes, tile_bytes = rows * tile_row_bytes,
              tile_pieces = tile_bytes / 16;

template <int part>
VRNN_DEVICE Words16* piece(const Context& c, int turn, int tile, int i) {
    char* const own = operands<part>(c, turn) + tile * tile_row_bytes;
    return reinterpret_cast<Words16*>(own + i % rows * row_stride<part>() + i / rows * 16);
}

}  // namespace vrnn

#include "memory.h"
#include "peers.h"

namespace vrnn {

template <bool through_memory>
struct ExchangeBy {
    using Type = Peers;
};
template <>
struct ExchangeBy<true> {
    using Type = Memory;
};
using Exchange = ExchangeBy<program::through_memory>::Type;

template <int part>
VRNN_DEVICE void push(const Context& c, int tile) {
    device::sync_warp();
    Exchange::push<part>(c, c.turn + program::parts[part].for_next, tile);
}

}  // namespace vrnn
