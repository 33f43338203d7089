// Loops whose index is a constant.
#pragma once

#include "device/types.h"

namespace vrnn {

template <int value>
struct Index {
    VRNN_DEVICE constexpr operator int() const { return value; }
};

// body(Index<first>()), ..., body(Index<end - 1>())
template <int first, int end, class Body>
VRNN_DEVICE void unroll(Body body) {
    if constexpr (first < end) {
        body(Index<first>());
        unroll<first + 1, end>(body);
    }
}

}  // namespace vrnn
