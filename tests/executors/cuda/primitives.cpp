// primitives.h in the emulator, for ctypes: each call returns what went wrong, or nothing.
#include "primitives.h"

using namespace vrnn;

namespace {

constexpr size_t all = 232448;
device::Schedule schedule_of(int order, int warp, uint64_t seed, int late) {
    return {static_cast<device::Order>(order), warp, seed, late != 0};
}

}  // namespace

#define SCHEDULE int order, int warp, uint64_t seed, int late
#define CHOSEN schedule_of(order, warp, seed, late)

extern "C" {

const char* mma(SCHEDULE, int kind, const u32* left, const u32* right, const float* sums, float* out) {
    return device::launch({1, 32, 0, all}, CHOSEN, [&] {
        if (kind == 1) primitives::mma<Operand::tf32>(left, right, sums, out);
        if (kind == 2) primitives::mma<Operand::bf16>(left, right, sums, out);
        if (kind == 3) primitives::mma<Operand::f16>(left, right, sums, out);
    });
}

const char* load_matrices(SCHEDULE, int matrices, int transposed, const u32* in, u32* out) {
    return device::launch({1, 32, 512, all}, CHOSEN, [&] {
        if (matrices == 2)
            transposed ? primitives::load_matrices<2, true>(in, out) : primitives::load_matrices<2, false>(in, out);
        if (matrices == 4)
            transposed ? primitives::load_matrices<4, true>(in, out) : primitives::load_matrices<4, false>(in, out);
    });
}

const char* shuffle_xor(SCHEDULE, const float* in, float* out, int mask) {
    return device::launch({1, 64, 0, all}, CHOSEN, [&] { primitives::shuffle_xor(in, out, mask); });
}

const char* barrier(SCHEDULE, int* out) {
    return device::launch({1, 256, 4, all}, CHOSEN, [&] { primitives::barrier(out); });
}

const char* named_barrier(SCHEDULE, int* out) {
    return device::launch({1, 256, 1024, all}, CHOSEN, [&] { primitives::named_barrier(out); });
}

const char* copy_async(SCHEDULE, int bytes, const u32* in, u32* out) {
    return device::launch({1, 64, 2048, all}, CHOSEN, [&] {
        if (bytes == 4) primitives::copy_async<4>(in, out);
        if (bytes == 8) primitives::copy_async<8>(in, out);
        if (bytes == 16) primitives::copy_async<16>(in, out);
    });
}

const char* publish(SCHEDULE, int* counter, int* message, int* out) {
    return device::launch({3, 32, 0, all}, CHOSEN, [&] { primitives::publish(counter, message, out); });
}

const char* convert(SCHEDULE, int threads, const float* in, u32* packed, float* back) {
    return device::launch({1, threads, 0, all}, CHOSEN, [&] { primitives::convert(in, packed, back); });
}

const char* exchange_without(SCHEDULE, int without, int words, int turns, u32* out) {
    device::Schedule chosen = CHOSEN;
    chosen.without = without;
    return device::launch({8, 64, 1024, all, 4}, chosen, [&] {
        if (words == 1) primitives::exchange<1>(turns, out);
        if (words == 2) primitives::exchange<2>(turns, out);
        if (words == 4) primitives::exchange<4>(turns, out);
    });
}

const char* exchange(SCHEDULE, int words, int turns, u32* out) {
    return exchange_without(order, warp, seed, late, -1, words, turns, out);
}

const char* read_peer(SCHEDULE, int* out, int* arrived) {
    return device::launch({8, 64, 1024, all, 4}, CHOSEN, [&] { primitives::read_peer(out, arrived); });
}

// What a lane map says: row and column.
void place(int map, int lane, int i, int* at) {
    lanes::Place (*const maps[])(int, int) = {lanes::sums,     lanes::left_16, lanes::right_16,         lanes::left_32,
                                              lanes::right_32, lanes::loaded,  lanes::loaded_transposed};
    const lanes::Place found = maps[map](lane, i);
    at[0] = found.row, at[1] = found.column;
}
int row_owner(int matrix, int row) {
    return lanes::row_owner(matrix, row);
}

// ---- faults, each provoked

const char* too_much_shared_memory(SCHEDULE, int64_t bytes, int64_t limit) {
    return device::launch({1, 32, static_cast<size_t>(bytes), static_cast<size_t>(limit)}, CHOSEN, [] {});
}
const char* uneven_block(SCHEDULE) {
    return device::launch({1, 33, 0, all}, CHOSEN, [] {});
}
const char* two_collectives(SCHEDULE) {
    return device::launch({1, 32, 512, all}, CHOSEN, [] {
        u32 to[4];
        if (device::lane() < 16)
            device::shuffle_xor(1, 1);
        else
            device::load_matrices(to, device::shared());
    });
}
const char* lane_missing(SCHEDULE) {
    return device::launch({1, 32, 0, all}, CHOSEN, [] {
        if (device::lane() != 5) device::shuffle_xor(1, 1);
    });
}
const char* half_a_block_at_a_barrier(SCHEDULE) {
    return device::launch({2, 64, 0, all}, CHOSEN, [] {
        if (device::block() == 0 || device::warp() == 0) device::barrier();
    });
}
const char* named_barrier_never_completed(SCHEDULE) {
    return device::launch({1, 64, 0, all}, CHOSEN, [] {
        if (device::warp() == 0) device::barrier(3, 64);
    });
}
const char* barrier_of_two_sizes(SCHEDULE) {
    return device::launch({1, 96, 0, all}, CHOSEN, [] { device::barrier(3, device::warp() == 0 ? 64 : 96); });
}
const char* barrier_of_no_number(SCHEDULE) {
    return device::launch({1, 64, 0, all}, CHOSEN, [] { device::barrier(16, 64); });
}
const char* row_outside(SCHEDULE, int at) {
    return device::launch({1, 32, 512, all}, CHOSEN, [&] {
        u32 to[4];
        device::load_matrices(to, static_cast<char*>(device::shared()) + at);
    });
}
const char* copy_outside(SCHEDULE, int at) {
    alignas(16) static const u32 from[4] = {};
    return device::launch({1, 32, 512, all}, CHOSEN,
                          [&] { device::copy_async<16>(static_cast<char*>(device::shared()) + at, from); });
}
const char* write_outside(SCHEDULE, int at) {
    return device::launch({2, 32, 512, all}, CHOSEN, [&] { static_cast<char*>(device::shared())[at] = 1; });
}
const char* nobody_publishes(SCHEDULE) {
    static int counter = 0;
    return device::launch({2, 32, 0, all}, CHOSEN, [] { device::wait_for(&counter, 1); });
}
const char* half_a_cluster(SCHEDULE) {
    return device::launch({6, 32, 0, all, 4}, CHOSEN, [] {});
}
const char* block_missing_in_a_cluster(SCHEDULE) {
    return device::launch({2, 32, 0, all, 2}, CHOSEN, [] {
        if (device::block() == 0) device::cluster_barrier();
    });
}
const char* peer_outside(SCHEDULE) {
    return device::launch({2, 32, 8, all, 2}, CHOSEN, [] { device::peer(device::shared(), 2); });
}
// What goes wrong at the gate of a block: by the number of the fault.
const char* at_a_gate(SCHEDULE, int fault) {
    return device::launch({2, 32, 64, all, 2}, CHOSEN, [=] {
        Gate* const gate = static_cast<Gate*>(device::shared());
        u32* const inbox = static_cast<u32*>(device::shared()) + 4;
        const u32 word[1] = {42};
        const bool first = device::block() == 0 && device::thread() == 0;
        if (device::thread() == 0 && fault != 0) device::make_gate(gate, 1);
        device::cluster_barrier();
        if (fault == 0 && first) device::wait_at(gate, 0);  // nobody has made it
        if (fault == 1 && first) device::wait_at(gate, 0);  // nobody arrives
        if (fault == 2 && first) device::arrive_and_expect(gate, 4), device::arrive(gate);
        if (fault == 3 && first) device::store_async(inbox, 1, word, gate);  // nobody waits for it
        if (fault == 4 && device::block() == 1) return;
        if (fault == 4) device::sync_warp();  // in the meantime that block ends
        if (fault == 4 && first) device::store_async(inbox, 1, word, gate);
        if (fault == 5 && first) device::store_async(inbox + 15, 1, word, gate);
        if (fault == 6 && first) device::make_gate(gate, 1);
    });
}

// The barrier between a warp's write and another's read is left out; out (32) is what that one found.
const char* missing_barrier(SCHEDULE, float* out) {
    return device::launch({1, 64, 128, all}, CHOSEN, [&] {
        float* const own = static_cast<float*>(device::shared());
        if (device::warp() == 0) own[device::lane()] = 1;
        device::sync_warp();
        if (device::warp() == 1) out[device::lane()] = own[device::lane()];
    });
}
// A copy that nobody waits for, and one whose place is written again before it is waited for.
const char* copy_without_wait(SCHEDULE, const u32* in, u32* out) {
    return device::launch({1, 32, 256, all}, CHOSEN, [&] {
        u32* const own = static_cast<u32*>(device::shared()) + device::thread();
        device::copy_async<4>(own, in + device::thread());
        device::copy_commit();
        out[device::thread()] = *own;
    });
}

}  // extern "C"
