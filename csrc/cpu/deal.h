// The deal of a batch's sequences to shards.
#pragma once

#include <cstdint>
#include <vector>

#include "launch.h"

namespace vrnn {

// Into how many shards: as many as there are threads and the work is worth, or exactly so many.
struct Shares {
    int64_t threads;
    double flops_per_row;
    int64_t exactly = 0;
};

class Deal {
  public:
    // lengths (batch), or null where all run for all steps. `group` adjacent sequences are of one length and stay
    // together. Throws std::invalid_argument for other lengths.
    Deal(int64_t steps, int64_t batch, const int64_t* lengths, int64_t group, Shares shares);
    Deal(const Deal&) = delete;
    Deal& operator=(const Deal&) = delete;

    Span<Shard> shards() const { return {shards_.data(), static_cast<int64_t>(shards_.size())}; }
    int64_t most_sequences() const { return shards_.front().sequences; }

  private:
    struct Storage {
        std::vector<int64_t> sequence, length, active, offset;
    };
    std::vector<Storage> storage_;
    std::vector<Shard> shards_;
};

}  // namespace vrnn
