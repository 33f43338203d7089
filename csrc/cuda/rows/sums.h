// The gradients of all parameters: the sum of what weights.h has left, share by share. vrnn::program::Value and
// parameters come first.
#pragma once

#include "device/entry.h"

namespace vrnn {

// (rows, columns) of a parameter's gradient.
struct Block {
    int parameter, at, stride;  // Call::gradients[parameter][at + row * stride + column]
    int rows, columns, from;    // into Call::shares; or none: zeros
};

struct Call {
    program::Value* gradients[program::parameters];
    const float* shares;  // (shares_in_all, elements)
    const Block* of;
    const int* places;  // (blocks, 2) a block, and which 256 of its elements
    int blocks, elements, shares_in_all;
};

struct Kernel {
    static constexpr int threads = 256, blocks = 4, shared = 0, limit = 0;
    static VRNN_DEVICE void add_up(const Call& call, int place) {
        const Block own = call.of[call.places[2 * place]];
        const int i = call.places[2 * place + 1] * threads + device::thread();
        if (i >= own.rows * own.columns) return;
        float sum = 0;
        if (own.from >= 0)
            for (int share = 0; share < call.shares_in_all; ++share)
                sum += call.shares[static_cast<i64>(share) * call.elements + own.from + i];
        device::write(call.gradients[own.parameter] + own.at + i / own.columns * own.stride + i % own.columns, sum);
    }
    static VRNN_DEVICE void run(const Call& call) { add_up(call, device::block()); }
};

}  // namespace vrnn
