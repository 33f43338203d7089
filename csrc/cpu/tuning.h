// Every tuning decision of the CPU executor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vrnn::tuning {

#if VRNN_VECTOR_BYTES == 64
inline constexpr int tile_rows = 12;  // 12 x 2 sums, 2 vectors of B: 26 of 32 registers, A broadcast from memory
#elif VRNN_VECTOR_BYTES == 32
inline constexpr int tile_rows = 6;  // 6 x 2 sums, 2 vectors of B, 1 of A: 15 of 16 registers
#else
inline constexpr int tile_rows = 4;  // 4 x 2 sums and no fused multiply-add, which needs a register for the product
#endif
inline constexpr int panel_vectors = 2;
inline constexpr int sums = 8;  // independent ones that a tile wants, to hide the latency of an FMA

inline constexpr int64_t depth_bytes = 24 * 1024;  // of a packed panel between two passes over C

inline constexpr int64_t longest_sum = 48;  // rows of a weight gradient in one sum: the fewer, the less rounding

inline constexpr int64_t gradient_rows = 3 * longest_sum;  // of activations that a weight gradient takes in at a time
inline constexpr int64_t gradient_panels = 4;              // of inputs, and
inline constexpr int64_t gradient_tiles = 20;              // of outputs, up to which it reads them where they lie

inline constexpr int64_t rows_ahead = 12;  // fetched while rows are copied: each is on another page

inline constexpr int64_t chunk_rows = 128;       // (time step, sequence) rows that a thread handles at a time
inline constexpr double flops_per_thread = 4e6;  // below this much work for each, fewer threads
inline constexpr int64_t summed_by_one = 2;      // shards, up to which one thread adds up all gradients
inline constexpr int64_t unpacked_rows = 4;      // of a call, up to which packing takes longer than it spares

inline constexpr int64_t most_kept_bytes = int64_t{16} << 20;  // of scratch that outlives a call

inline constexpr size_t least_recycled_bytes = size_t{1} << 20;   // of what forward saves: the next call uses it again,
inline constexpr size_t most_recycled_bytes = size_t{512} << 20;  // and up to so much stays meanwhile

}  // namespace vrnn::tuning
