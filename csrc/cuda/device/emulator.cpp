#include "emulator.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lanes.h"

#if !defined(__x86_64__)
#    error "the emulator switches stacks in x86-64 assembly"
#endif

// What ThreadSanitizer must know: which fiber runs, and what happens before what. It sees the memory of a kernel that
// was compiled with -fsanitize=thread; this file is not.
#if defined(VRNN_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
static void* __tsan_get_current_fiber() {
    return nullptr;
}
static void* __tsan_create_fiber(unsigned) {
    return nullptr;
}
static void __tsan_destroy_fiber(void*) {}
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

// void vrnn_switch(void** from, void* to): leave this stack, its pointer in *from, and go on with that one.
extern "C" void vrnn_switch(void** from, void* to);
asm(R"(
.text
.globl vrnn_switch
.type vrnn_switch,@function
vrnn_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vrnn_switch, . - vrnn_switch
)");

namespace vrnn::device {
namespace {

constexpr size_t stack_bytes = 64 << 10;
constexpr size_t guard_bytes = 256;  // beside shared memory: what is written there shows at the end
constexpr unsigned char guard = 0xa5;
constexpr int lanes_of_warp = 32;
constexpr int named_barriers = 16;
constexpr int most_in_a_cluster = 16;
constexpr int most_bytes = (1 << 20) - 1;  // that a gate can count
constexpr size_t most_stores = 1 << 14;    // on their way to one gate

struct Fiber;

struct Meeting {  // at a barrier
    int arrived = 0, expected = 0;
    unsigned generation = 0;
    char order[2];  // addresses for ThreadSanitizer: of this generation and the next
    std::vector<Fiber*> waiting;
};

struct Warp {
    Fiber* lanes[lanes_of_warp];
    int arrived = 0;  // at a collective
    Meeting sync;
};

struct Store {  // on its way to a block
    void* to;
    u32 words[4];
    Land land;
    int bytes;
};

struct Counts {  // of a gate
    int arrivals = 0, missing = 0;
    int bytes = 0;  // still to come in this phase; less than none where they came before they were expected
    unsigned phase = 0;
    char order[2];  // addresses for ThreadSanitizer: of this phase and the next
    std::vector<Store> stores;
    std::vector<Fiber*> waiting;
};

struct Block {
    int index;
    int live = 0;                       // threads that have not ended
    std::map<size_t, Counts> gates;     // by their bytes into shared memory
    std::vector<unsigned char> memory;  // guard, shared, guard
    unsigned char* shared = nullptr;
    std::vector<Warp> warps;
    Meeting barriers[named_barriers];
};

struct Copy {
    void* to;
    const void* from;
    Land land;
    int group;
};

struct Fiber {
    void* stack_pointer = nullptr;
    Block* block = nullptr;
    Warp* warp = nullptr;
    int index = 0;
    void* sanitized = nullptr;
    bool done = false;
    const char* at = "the start";
    std::vector<Copy> copies;  // on their way
    int groups = 0;            // committed so far
    // what it brings to its warp's collective
    const char* collective = nullptr;
    void* result = nullptr;
    const void* operands[2] = {};
    int argument = 0;
    float value = 0;
};

// Fibers that can run, the first one first. Its room never grows: ThreadSanitizer would see fibers race for it.
class Queue {
  public:
    void reserve(size_t most) { slots_.resize(most); }
    bool empty() const { return count_ == 0; }
    size_t size() const { return count_; }
    Fiber*& operator[](size_t i) { return slots_[(first_ + i) % slots_.size()]; }
    void push(Fiber* f) { (*this)[count_++] = f; }
    Fiber* pop() {
        Fiber* const f = (*this)[0];
        first_ = (first_ + 1) % slots_.size();
        --count_;
        return f;
    }

  private:
    std::vector<Fiber*> slots_;
    size_t first_ = 0, count_ = 0;
};

struct Machine {
    const Shape& shape;
    const Schedule& schedule;
    void (*body)(const void*);
    const void* context;
    std::deque<Block> blocks;
    std::deque<Meeting> clusters;
    std::vector<std::unique_ptr<Fiber>> fibers;
    Queue ready, favoured;  // of the warp that the schedule names, apart
    std::vector<std::pair<Fiber*, const int*>> polling;
    size_t live = 0;
    uint64_t chance;
    void* stack_pointer = nullptr;
    void* sanitized = nullptr;
    std::string fault;
};

Machine* machine = nullptr;
Fiber* self = nullptr;

std::string number(long long n) {
    return std::to_string(n);
}

std::string where(const Fiber& f) {
    return "block " + number(f.block->index) + ", thread " + number(f.index);
}

bool is_favoured(const Fiber& f) {
    const Schedule& s = machine->schedule;
    const int warp = f.index / lanes_of_warp, before = f.block->index * (machine->shape.threads / lanes_of_warp);
    if (s.order == Order::one_ahead || s.order == Order::one_behind) return before + warp == s.warp;
    if (s.order != Order::ahead && s.order != Order::behind) return false;
    return s.warp < 0 ? f.block->index == -1 - s.warp : warp == s.warp;
}

void wake(Fiber* f) {
    (is_favoured(*f) ? machine->favoured : machine->ready).push(f);
}

uint64_t draw() {  // xorshift
    uint64_t& x = machine->chance;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

Fiber* next() {
    const Order order = machine->schedule.order;
    const bool first = order == Order::ahead || order == Order::one_ahead;
    Queue& preferred = first ? machine->favoured : machine->ready;
    Queue& queue = preferred.empty() ? (first ? machine->ready : machine->favoured) : preferred;
    if (queue.empty()) return nullptr;
    if (machine->schedule.order == Order::random) std::swap(queue[0], queue[draw() % queue.size()]);
    return queue.pop();
}

void go_on_with(void** from, Fiber* f) {
    self = f;
    __tsan_switch_to_fiber(f ? f->sanitized : machine->sanitized, 1);  // which orders nothing
    vrnn_switch(from, f ? f->stack_pointer : machine->stack_pointer);
}

// Wait until somebody makes this fiber ready.
void park(const char* at) {
    Fiber* const me = self;
    me->at = at;
    Fiber* const f = next();
    if (f != me) go_on_with(&me->stack_pointer, f);
}

// Leave all fibers where they are, for good.
void fail(const std::string& message) {
    machine->fault = message;
    go_on_with(&self->stack_pointer, nullptr);
}

void meet(Meeting& meeting, int expected, const char* at) {
    if (meeting.arrived && meeting.expected != expected)
        return fail(where(*self) + " expects " + number(expected) + " threads at a barrier where others expect " +
                    number(meeting.expected));
    meeting.expected = expected;
    char* const order = &meeting.order[meeting.generation & 1];
    __tsan_release(order);
    if (++meeting.arrived < expected) {
        meeting.waiting.push_back(self);
    } else {
        meeting.arrived = 0;
        ++meeting.generation;
        for (Fiber* f : meeting.waiting) wake(f);
        meeting.waiting.clear();
        wake(self);  // whoever comes last goes on no sooner than the others
    }
    park(at);
    __tsan_acquire(order);
}

// All lanes of a warp come here; the last one does the work for them.
template <class Work>
void together(const char* name, Work work) {
    Warp& warp = *self->warp;
    self->collective = name;
    if (++warp.arrived < lanes_of_warp) return park(name);
    warp.arrived = 0;
    for (const Fiber* f : warp.lanes)
        if (std::strcmp(f->collective, name) != 0)
            return fail("lanes of one warp meet in " + std::string(name) + " and " + f->collective + " (" + where(*f) +
                        ")");
    work(warp);
    for (Fiber* f : warp.lanes) wake(f);
    park(name);
}

void check_shared(const char* name, const void* p, size_t bytes, size_t alignment) {
    const auto* const byte = static_cast<const unsigned char*>(p);
    const auto at = byte - self->block->shared;
    if (at < 0 || at + bytes > machine->shape.shared)
        fail(where(*self) + ": " + name + " at byte " + number(at) + ", outside of the " +
             number(static_cast<long long>(machine->shape.shared)) + " bytes of shared memory");
    if (at % static_cast<long long>(alignment))
        fail(where(*self) + ": " + name + " at byte " + number(at) + ", which is no multiple of " +
             number(static_cast<long long>(alignment)));
}

void enter() {
    __tsan_acquire(machine);
    machine->body(machine->context);
    __tsan_release(machine);
    self->done = true;
    --self->block->live;
    self->at = "the end";
    --machine->live;
    if (self->warp->arrived) fail(where(*self) + " ends while lanes of its warp wait in a collective");
    go_on_with(&self->stack_pointer, next());
    std::abort();  // nobody wakes who is done
}

void prepare_stack(Fiber& f, char* top) {
    void** at = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
    *--at = nullptr;  // where a caller's return address would be
    *--at = reinterpret_cast<void*>(&enter);
    for (int saved = 0; saved < 6; ++saved) *--at = nullptr;
    f.stack_pointer = at;
}

void add_block(int index, char* stacks) {
    const Shape& shape = machine->shape;
    machine->blocks.emplace_back();
    Block& block = machine->blocks.back();
    block.index = index;
    block.live = shape.threads;
    block.memory.assign(shape.shared + 2 * guard_bytes, guard);
    const auto begin = reinterpret_cast<uintptr_t>(block.memory.data());
    block.shared = block.memory.data() + ((begin + 255) / 128 * 128 - begin);
    std::memset(block.shared, 0xff, shape.shared);                        // NaN in every format
    ASAN_POISON_MEMORY_REGION(block.memory.data(), block.memory.size());  // where AddressSanitizer is, it guards too
    ASAN_UNPOISON_MEMORY_REGION(block.shared, shape.shared);
    block.warps.resize(shape.threads / lanes_of_warp);
    for (Warp& warp : block.warps) warp.sync.waiting.reserve(lanes_of_warp);
    for (Meeting& barrier : block.barriers) barrier.waiting.reserve(shape.threads);
    for (int i = 0; i < shape.threads; ++i) {
        auto f = std::make_unique<Fiber>();
        f->block = &block;
        f->index = i;
        f->warp = &block.warps[i / lanes_of_warp];
        f->warp->lanes[i % lanes_of_warp] = f.get();
        const size_t count =
            machine->fibers.size();  // stacks a line apart, lest all fall into the same sets of a cache
        prepare_stack(*f, stacks + (count + 1) * stack_bytes - 64 * (count % 61));
        wake(f.get());
        machine->fibers.push_back(std::move(f));
    }
}

std::string deadlock() {
    std::string text = "deadlock: " + number(static_cast<long long>(machine->live)) + " threads wait";
    int told = 0;
    const char* last = nullptr;
    for (const auto& f : machine->fibers) {
        if (f->done || (last && std::strcmp(last, f->at) == 0) || told == 4) continue;
        text += (told++ ? "; " : ": ") + where(*f) + " at " + f->at;
        last = f->at;
    }
    return text;
}

std::string damage() {
    for (const Block& block : machine->blocks) {
        ASAN_UNPOISON_MEMORY_REGION(block.memory.data(), block.memory.size());
        const unsigned char* const end = block.memory.data() + block.memory.size();
        for (const unsigned char* p = block.memory.data(); p < end; ++p) {
            if (p == block.shared) p += machine->shape.shared;
            if (*p != guard) return "block " + number(block.index) + " wrote outside of its shared memory";
        }
    }
    return "";
}

}  // namespace

namespace {

// What went wrong; nothing if all is well.
std::string run(const Shape& shape, const Schedule& schedule, void (*body)(const void*), const void* context) {
    if (shape.shared > shape.shared_limit)
        return "a block asks for " + number(static_cast<long long>(shape.shared)) +
               " bytes of shared memory, and the chip has " + number(static_cast<long long>(shape.shared_limit));
    if (shape.threads < lanes_of_warp || shape.threads > 1024 || shape.threads % lanes_of_warp)
        return "a block is 1 to 32 whole warps, not " + number(shape.threads) + " threads";
    if (shape.cluster < 1 || shape.cluster > most_in_a_cluster || shape.blocks % shape.cluster)
        return "a grid is whole clusters of 1 to 16 blocks, not " + number(shape.blocks) + " in clusters of " +
               number(shape.cluster);
    Machine now{shape,   schedule, body, context, {}, {}, {}, {}, {}, {}, 0, schedule.seed * 0x9e3779b97f4a7c15ull + 1,
                nullptr, nullptr,  ""};
    machine = &now;
    now.live = static_cast<size_t>(shape.blocks) * shape.threads;
    now.ready.reserve(now.live);
    now.favoured.reserve(now.live);
    now.polling.reserve(now.live);
    const size_t bytes = now.live * stack_bytes;
    void* const stacks =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return "no memory for the stacks of " + number(static_cast<long long>(now.live));
    for (int b = 0; b < shape.blocks; ++b) add_block(b, static_cast<char*>(stacks));
    now.clusters.resize(shape.blocks / shape.cluster);
    for (Meeting& meeting : now.clusters) meeting.waiting.reserve(shape.cluster * shape.threads);
    now.sanitized = __tsan_get_current_fiber();
    for (auto& f : now.fibers) f->sanitized = __tsan_create_fiber(0);
    __tsan_release(machine);
    go_on_with(&now.stack_pointer, next());
    __tsan_acquire(machine);
    for (auto& f : now.fibers) __tsan_destroy_fiber(f->sanitized);
    std::string fault = now.fault;
    const std::string harm = damage();
    if (fault.empty()) fault = now.live ? deadlock() : harm;
    for (const Block& block : now.blocks)
        for (const auto& gate : block.gates)
            if (fault.empty() && !gate.second.stores.empty())
                fault = "block " + number(block.index) + " has ended while a store to it was on its way";
    munmap(stacks, bytes);
    machine = nullptr;
    return fault;
}

}  // namespace

const char* launch_as(const Shape& shape, const Schedule& schedule, void (*body)(const void*), const void* context) {
    static std::string said;
    said = run(shape, schedule, body, context);
    return said.c_str();
}

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

// ---- clusters

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

namespace {

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

u16 f16_bits(float x) {
    const u32 bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<u16>(sign | 0x7c00);  // 65520 and more
    if (magnitude < 0x38800000) {  // a subnormal: the sum with 0.5 has its bits last
        return static_cast<u16>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    return static_cast<u16>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

float f16_value(u16 bits) {
    const u32 sign = static_cast<u32>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace vrnn::device
