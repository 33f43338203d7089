#include "machine.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cstdlib>

#include "fibers.h"

namespace vrnn::emulator {

constexpr size_t stack_bytes = 64 << 10;
constexpr size_t guard_bytes = 256;  // beside shared memory: what is written there shows at the end
constexpr unsigned char guard = 0xa5;
constexpr int most_in_a_cluster = 16;

Machine* machine = nullptr;
Fiber* self = nullptr;

std::string number(long long n) {
    return std::to_string(n);
}

std::string where(const Fiber& f) {
    return "block " + number(f.block->index) + ", thread " + number(f.index);
}

namespace {

bool is_favoured(const Fiber& f) {
    const Schedule& s = machine->schedule;
    const int warp = f.index / lanes_of_warp, before = f.block->index * (machine->shape.threads / lanes_of_warp);
    if (s.order == Order::one_ahead || s.order == Order::one_behind) return before + warp == s.warp;
    if (s.order != Order::ahead && s.order != Order::behind) return false;
    return s.warp < 0 ? f.block->index == -1 - s.warp : warp == s.warp;
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

}  // namespace

void wake(Fiber* f) {
    (is_favoured(*f) ? machine->favoured : machine->ready).push(f);
}

void park(const char* at) {
    Fiber* const me = self;
    me->at = at;
    Fiber* const f = next();
    if (f != me) go_on_with(&me->stack_pointer, f);
}

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

namespace {

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

}  // namespace vrnn::emulator

namespace vrnn::device {

const char* launch_as(const Shape& shape, const Schedule& schedule, void (*body)(const void*), const void* context) {
    static std::string said;
    said = emulator::run(shape, schedule, body, context);
    return said.c_str();
}

}  // namespace vrnn::device
