// What threads of a block do together: meetings, and what a warp exchanges and multiplies.
#include "machine.h"

namespace vrnn::emulator {
namespace {

template <int K, class Left, class Right>
void multiply_in(Warp& warp, Left left, Right right) {
    float a[16][K], b[K][8], c[16][8];
    const auto at = [](const Fiber* f, int which) { return static_cast<const u32*>(f->operands[which]); };
    for (int l = 0; l < lanes_of_warp; ++l) {
        left(l, at(warp.lanes[l], 0), a);
        right(l, at(warp.lanes[l], 1), b);
        const auto* const sums = static_cast<const float*>(warp.lanes[l]->result);
        for (int i = 0; i < 4; ++i) c[lanes::sums(l, i).row][lanes::sums(l, i).column] = sums[i];
    }
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < K; ++k)
            for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    for (int l = 0; l < lanes_of_warp; ++l) {
        auto* const sums = static_cast<float*>(warp.lanes[l]->result);
        for (int i = 0; i < 4; ++i) sums[i] = c[lanes::sums(l, i).row][lanes::sums(l, i).column];
    }
}

template <class Value>
void multiply_16(Warp& warp, Value value) {
    const auto element = [=](const u32* registers, int i) {
        return value(static_cast<u16>(registers[i / 2] >> (i % 2 * 16)));
    };
    const auto left = [=](int l, const u32* registers, float (&a)[16][16]) {
        for (int i = 0; i < 8; ++i) a[lanes::left_16(l, i).row][lanes::left_16(l, i).column] = element(registers, i);
    };
    const auto right = [=](int l, const u32* registers, float (&b)[16][8]) {
        for (int i = 0; i < 4; ++i) b[lanes::right_16(l, i).row][lanes::right_16(l, i).column] = element(registers, i);
    };
    multiply_in<16>(warp, left, right);
}

void multiply_tf32(Warp& warp) {
    const auto cut = [](u32 bits) { return float_of(bits & ~0x1fffu); };  // the hardware ignores the other bits
    const auto left = [=](int l, const u32* registers, float (&a)[16][8]) {
        for (int i = 0; i < 4; ++i) a[lanes::left_32(l, i).row][lanes::left_32(l, i).column] = cut(registers[i]);
    };
    const auto right = [=](int l, const u32* registers, float (&b)[8][8]) {
        for (int i = 0; i < 2; ++i) b[lanes::right_32(l, i).row][lanes::right_32(l, i).column] = cut(registers[i]);
    };
    multiply_in<8>(warp, left, right);
}

}  // namespace
}  // namespace vrnn::emulator

namespace vrnn::device {

using namespace emulator;

int thread() {
    return self->index;
}
int threads() {
    return machine->shape.threads;
}
int block() {
    return self->block->index;
}
int blocks() {
    return machine->shape.blocks;
}
bool present(int number) {
    return number != machine->schedule.without;
}
void* shared() {
    return self->block->shared;
}

void barrier() {
    meet(self->block->barriers[0], machine->shape.threads, "barrier");
}
void barrier(int id, int threads) {
    if (id < 1 || id >= named_barriers || threads % lanes_of_warp)
        return fail(where(*self) + ": a named barrier is one of 1 to 15, for whole warps, not " + number(id) + " for " +
                    number(threads) + " threads");
    meet(self->block->barriers[id], threads, "named barrier");
}
void sync_warp() {
    meet(self->warp->sync, lanes_of_warp, "sync_warp");
}

float shuffle_xor(float value, int mask) {
    float result = 0;
    self->value = value;
    self->argument = mask;
    self->result = &result;
    together("shuffle_xor", [](Warp& warp) {
        for (int l = 0; l < lanes_of_warp; ++l) {
            const int other = l ^ warp.lanes[l]->argument;
            if (other < 0 || other >= lanes_of_warp) return fail("shuffle_xor: the mask leaves the warp");
            *static_cast<float*>(warp.lanes[l]->result) = warp.lanes[other]->value;
        }
    });
    return result;
}

void check_row(const char* name, const void* row) {
    check_shared(name, row, 16, 16);
}

void exchange_rows(u32* to, int matrices, const Row& row, bool transposed) {
    self->result = to;
    self->operands[0] = &row;
    self->argument = matrices;
    const auto exchange = [&](Warp& warp) {
        const auto element = [&](int matrix, lanes::Place at) -> u32 {
            const auto* const from = static_cast<const Row*>(warp.lanes[lanes::row_owner(matrix, at.row)]->operands[0]);
            return from->words[at.column / 2] >> (at.column % 2 * 16) & 0xffff;
        };
        for (int l = 0; l < lanes_of_warp; ++l)
            for (int i = 0; i < matrices; ++i) {
                const auto at = transposed ? lanes::loaded_transposed : lanes::loaded;
                static_cast<u32*>(warp.lanes[l]->result)[i] = element(i, at(l, 0)) | element(i, at(l, 1)) << 16;
            }
    };
    const char* const names[2][2] = {{"load_matrices of 2", "load_matrices of 4"},
                                     {"load_matrices_transposed of 2", "load_matrices_transposed of 4"}};
    together(names[transposed][matrices == 4], exchange);
}

void multiply(Operand kind, float (&sums)[4], const u32 (&left)[4], const u32 (&right)[2]) {
    self->result = sums;
    self->operands[0] = left;
    self->operands[1] = right;
    if (kind == Operand::bf16)
        together("mma of bf16", [](Warp& warp) { multiply_16(warp, bf16_value); });
    else if (kind == Operand::f16)
        together("mma of f16", [](Warp& warp) { multiply_16(warp, f16_value); });
    else
        together("mma of tf32", multiply_tf32);
}

}  // namespace vrnn::device
