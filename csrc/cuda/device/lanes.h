// Which element of a matrix a lane holds: the layouts of PTX's warp-level matrix instructions. Kernels, the emulator
// and the tests use these functions; the tests hold them against the tables of the PTX manual.
#pragma once

#include "types.h"

namespace vrnn::lanes {

struct Place {
    int row, column;
};

// Sums (C and D) of m16n8k16 and m16n8k8, 16 x 8: element i of 4.
VRNN_BOTH constexpr Place sums(int lane, int i) {
    return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// ... and where a place of the sums is: which lane has it, as which of its elements.
VRNN_BOTH constexpr int sums_lane(Place at) {
    return at.row % 8 * 4 + at.column / 2;
}
VRNN_BOTH constexpr int sums_element(Place at) {
    return at.row / 8 * 2 + at.column % 2;
}

VRNN_BOTH constexpr bool sums_are_found() {
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
            if (sums_lane(sums(lane, i)) != lane || sums_element(sums(lane, i)) != i) return false;
    return true;
}
static_assert(sums_are_found(), "a map and its inverse");

// A of m16n8k16, 16 bits, 16 x 16: element i of 8, two in a register.
VRNN_BOTH constexpr Place left_16(int lane, int i) {
    return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}

// B of m16n8k16, 16 bits, 16 x 8: element i of 4, two in a register.
VRNN_BOTH constexpr Place right_16(int lane, int i) {
    return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}

// A of m16n8k8, TF32, 16 x 8: register i of 4.
VRNN_BOTH constexpr Place left_32(int lane, int i) {
    return {lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4};
}

// B of m16n8k8, TF32, 8 x 8: register i of 2.
VRNN_BOTH constexpr Place right_32(int lane, int i) {
    return {lane % 4 + i * 4, lane / 4};
}

// ldmatrix: the lane that names the address of a row of matrix i, 16 bytes long ...
VRNN_BOTH constexpr int row_owner(int matrix, int row) {
    return matrix * 8 + row;
}

// ... and the element e of 2, of 16 bits, that a lane finds in register i, of matrix i: 8 x 8, as it lies or
// transposed.
VRNN_BOTH constexpr Place loaded(int lane, int e) {
    return {lane / 4, lane % 4 * 2 + e};
}
VRNN_BOTH constexpr Place loaded_transposed(int lane, int e) {
    return {lane % 4 * 2 + e, lane / 4};
}

}  // namespace vrnn::lanes
