#include "deal.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "tuning.h"

namespace vrnn {

Deal::Deal(int64_t steps, int64_t batch, const int64_t* lengths, int64_t group, Shares shares) {
    if (group < 1 || batch % group)
        throw std::invalid_argument("a batch of " + std::to_string(batch) + " has no groups of " +
                                    std::to_string(group));
    std::vector<int64_t> length(batch, steps), order(batch / group);
    if (lengths)
        for (int64_t b = 0; b < batch; ++b) {
            if (lengths[b] < 0 || lengths[b] > steps)
                throw std::invalid_argument("lengths must be in 0 to " + std::to_string(steps) + ", got " +
                                            std::to_string(lengths[b]));
            if (lengths[b] != lengths[b / group * group])
                throw std::invalid_argument("particles must be as long as each other");
            length[b] = lengths[b];
        }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return length[a * group] > length[b * group]; });
    const double rows = static_cast<double>(std::accumulate(length.begin(), length.end(), int64_t{0}));
    const int64_t worth = static_cast<int64_t>(shares.flops_per_row * rows / tuning::flops_per_thread);
    const int64_t most = std::min({shares.threads, batch / group, worth});
    const int64_t count = shares.exactly > 0 ? shares.exactly : std::max<int64_t>(1, most);
    storage_.resize(count);
    int64_t first_row = 0;
    for (int64_t s = 0; s < count; ++s) {
        Storage& own = storage_[s];
        for (int64_t i = s; i < batch / group; i += count)  // in turns: every shard gets long and short ones
            for (int64_t b = order[i] * group; b < (order[i] + 1) * group; ++b) {
                own.sequence.push_back(b);
                own.length.push_back(length[b]);
            }
        const int64_t own_steps = own.length.empty() ? 0 : own.length.front();
        own.active.assign(own_steps + 1, 0);
        for (const int64_t n : own.length)
            for (int64_t t = 0; t < n; ++t) ++own.active[t];
        own.offset.assign(own_steps + 1, 0);
        for (int64_t t = 0; t < own_steps; ++t) own.offset[t + 1] = own.offset[t] + own.active[t];
        shards_.push_back({static_cast<int64_t>(own.sequence.size()), own.sequence.data(), own.length.data(), own_steps,
                           own.active.data(), own.offset.data(), first_row});
        first_row += own.offset[own_steps];
    }
}

}  // namespace vrnn
