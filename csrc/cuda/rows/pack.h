// Parameters as the kernels of a call read them, and the order of a ragged batch. vrnn::program::Value and operand come
// first.
#pragma once

#include "device/entry.h"

namespace vrnn {

constexpr u32 zero = ~0u;  // in a table, the place of what no parameter fills

struct Call {
    const program::Value* parameters[program::parameters];
    const u32* operands;  // (operands_in_all) which parameter << 24 | which of its elements
    const u32* biases;    // (terms, biases_in_all) likewise: a bias is the sum of its terms
    void* to;             // (operands_in_all) as products read them
    float* biases_to;     // (biases_in_all)
    const i64* lengths;   // (batch), or null
    i64* order;           // (batch) rows, the longest first; of those as long as each other, as they lie
    int blocks, operands_in_all, biases_in_all, terms, batch, group;  // rows of a group stay together
};

VRNN_DEVICE float element(const Call& call, u32 place) {
    return place == zero ? 0 : device::read(call.parameters[place >> 24] + (place & 0xffffff));
}

template <Operand kind>
VRNN_DEVICE void pack_operand(const Call& call, int i) {
    const float value = element(call, call.operands[i]);
    if constexpr (kind == Operand::bf16 || kind == Operand::f16)
        static_cast<u16*>(call.to)[i] = static_cast<u16>(device::pack<kind>(value, 0));
    else
        static_cast<float*>(call.to)[i] = kind == Operand::tf32 ? device::round_tf32(value) : value;
}

VRNN_DEVICE void pack_bias(const Call& call, int i) {
    float sum = 0;
    for (int term = 0; term < call.terms; ++term) sum += element(call, call.biases[term * call.biases_in_all + i]);
    call.biases_to[i] = sum;
}

// The place of a row: behind all that are longer.
VRNN_DEVICE void rank(const Call& call, int row) {
    const int own = row / call.group;
    int place = 0;
    for (int other = 0; other < call.batch / call.group; ++other) {
        const i64 a = call.lengths[other * call.group], b = call.lengths[own * call.group];
        if (a > b || (a == b && other < own)) ++place;
    }
    call.order[place * call.group + row % call.group] = row;
}

struct Kernel {
    static constexpr int threads = 256, blocks = 4, shared = 0, limit = 0;
    // One of so many shares of all.
    static VRNN_DEVICE void share(const Call& call, int own, int shares) {
        const int first = own * threads + device::thread(), stride = shares * threads;
        for (int i = first; i < call.operands_in_all; i += stride) pack_operand<program::operand>(call, i);
        for (int i = first; i < call.biases_in_all; i += stride) pack_bias(call, i);
        if (call.lengths)
            for (int row = first; row < call.batch; row += stride) rank(call, row);
    }
    static VRNN_DEVICE void run(const Call& call) { share(call, device::block(), device::blocks()); }
};

}  // namespace vrnn
