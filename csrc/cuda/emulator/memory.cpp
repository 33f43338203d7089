// What threads know of memory that others write: copies on their way, counters between blocks, and the shared memory of
// a cluster's blocks.
#include <cstdlib>

#include "fibers.h"
#include "machine.h"

namespace vrnn::emulator {
namespace {

constexpr int most_bytes = (1 << 20) - 1;  // that a gate can count
constexpr size_t most_stores = 1 << 14;    // on their way to one gate

Block& block_of(int rank) {
    const int cluster = machine->shape.cluster;
    if (rank < 0 || rank >= cluster)
        fail(where(*self) + " names peer " + number(rank) + " in a cluster of " + number(cluster));
    return machine->blocks[self->block->index - device::rank() + rank];
}

Counts& counts_of(Block& block, const Gate* gate, const char* name) {
    check_shared(name, gate, sizeof(Gate), alignof(Gate));
    const auto found = block.gates.find(reinterpret_cast<const unsigned char*>(gate) - self->block->shared);
    if (found == block.gates.end())
        fail(where(*self) + ": " + name + " at a gate that block " + number(block.index) + " has not made");
    return found->second;
}

void count(Counts& counts, int arrivals, int bytes) {
    __tsan_release(&counts.order[counts.phase & 1]);
    counts.missing -= arrivals;
    counts.bytes += bytes;
    if (counts.missing < 0)
        return fail(where(*self) + ": more than the " + number(counts.arrivals) + " of a phase arrive at a gate");
    if (std::abs(counts.bytes) > most_bytes)
        return fail(where(*self) + ": a gate counts no more than " + number(most_bytes) + " bytes");
    if (counts.missing || counts.bytes) return;
    ++counts.phase;
    counts.missing = counts.arrivals;
    for (Fiber* f : counts.waiting) wake(f);
    counts.waiting.clear();
}

bool is_over(const Counts& counts, int parity) {
    return static_cast<int>(counts.phase & 1) != parity;
}

}  // namespace
}  // namespace vrnn::emulator

namespace vrnn::device {

using namespace emulator;

void copy_async_of(void* to, const void* from, int bytes, Land land) {
    check_shared("copy_async", to, bytes, bytes);
    if (reinterpret_cast<uintptr_t>(from) % bytes)
        return fail(where(*self) + ": copy_async from an address that is no multiple of " + number(bytes));
    if (machine->schedule.late)
        self->copies.push_back({to, from, land, self->groups});
    else
        land(to, from);
}

void copy_commit() {
    ++self->groups;
}

void copy_wait_for_all_but(int still_out) {
    size_t kept = 0;
    for (const Copy& copy : self->copies) {
        if (copy.group < self->groups - still_out)
            copy.land(copy.to, copy.from);
        else
            self->copies[kept++] = copy;
    }
    self->copies.resize(kept);
}

void publish(int* counter, int value) {
    __tsan_release(counter);
    *static_cast<volatile int*>(counter) = value;
    auto& polling = machine->polling;
    for (size_t i = polling.size(); i-- > 0;)
        if (polling[i].second == counter) {
            wake(polling[i].first);
            polling.erase(polling.begin() + static_cast<std::ptrdiff_t>(i));
        }
    wake(self);
    park("publish");
}

void wait_for(const int* counter, int at_least) {
    while (*static_cast<const volatile int*>(counter) < at_least) {
        machine->polling.emplace_back(self, counter);
        park("wait_for");
    }
    __tsan_acquire(const_cast<int*>(counter));
}

int rank() {
    return self->block->index % machine->shape.cluster;
}
int ranks() {
    return machine->shape.cluster;
}
void cluster_barrier() {
    const int cluster = machine->shape.cluster;
    meet(machine->clusters[self->block->index / cluster], cluster * machine->shape.threads, "cluster_barrier");
}

void* peer_of(const void* own, int rank) {
    check_shared("peer", own, 1, 1);
    return block_of(rank).shared + (static_cast<const unsigned char*>(own) - self->block->shared);
}

void make_gate(Gate* gate, int arrivals) {
    check_shared("make_gate", gate, sizeof(Gate), alignof(Gate));
    if (arrivals < 1) return fail(where(*self) + ": a gate for " + number(arrivals) + " arrivals");
    Counts& counts = self->block->gates[reinterpret_cast<unsigned char*>(gate) - self->block->shared];
    if (counts.arrivals) return fail(where(*self) + ": a gate is made once");
    counts.stores.reserve(most_stores);
    counts.waiting.reserve(machine->shape.threads);
    counts.arrivals = counts.missing = arrivals;
}
void arrive(Gate* gate) {
    count(counts_of(*self->block, gate, "arrive"), 1, 0);
}
void arrive_and_expect(Gate* gate, int bytes) {
    count(counts_of(*self->block, gate, "arrive_and_expect"), 1, bytes);
}

void wait_at(Gate* gate, int parity) {
    Counts& counts = counts_of(*self->block, gate, "wait_at");
    while (!is_over(counts, parity)) {
        for (const Store& store : counts.stores) {
            store.land(store.to, store.words);
            count(counts, 0, -store.bytes);
        }
        counts.stores.clear();
        if (is_over(counts, parity)) break;
        counts.waiting.push_back(self);
        park("wait_at");
    }
    __tsan_acquire(&counts.order[parity & 1]);
}

void store_async_of(void* to, int rank, const u32* from, int words, Gate* gate, Land land) {
    Block& block = block_of(rank);
    check_shared("store_async", to, 4 * words, 4 * words);
    Counts& counts = counts_of(block, gate, "store_async");
    if (!block.live) return fail(where(*self) + ": store_async to block " + number(block.index) + ", which has ended");
    if (counts.stores.size() == most_stores) return fail(where(*self) + ": nobody waits for the stores to a gate");
    Store store{peer_of(to, rank), {}, land, 4 * words};
    for (int i = 0; i < words; ++i) store.words[i] = from[i];
    if (!machine->schedule.late) {
        land(store.to, store.words);
        return count(counts, 0, -store.bytes);
    }
    __tsan_release(&counts.order[counts.phase & 1]);
    counts.stores.push_back(store);
    for (Fiber* f : counts.waiting) wake(f);  // who waits lets it land
    counts.waiting.clear();
}

}  // namespace vrnn::device
