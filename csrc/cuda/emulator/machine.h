// The emulated machine: blocks, warps and threads, whose turn it is, and where they meet. machine.cpp runs it; what a
// kernel calls (device/emulator.h) is in warp.cpp and memory.cpp.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../device/emulator.h"
#include "../device/lanes.h"

namespace vrnn::emulator {

using namespace device;

constexpr int lanes_of_warp = 32;
constexpr int named_barriers = 16;

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

extern Machine* machine;  // that runs now
extern Fiber* self;       // whose turn it is

std::string number(long long n);
std::string where(const Fiber& f);

// Let a fiber go on when its turn comes.
void wake(Fiber* f);

// Wait until somebody wakes this fiber.
void park(const char* at);

// Leave all fibers where they are, for good.
void fail(const std::string& message);

// Wait until as many threads as are expected have come.
void meet(Meeting& meeting, int expected, const char* at);

// Fail unless these bytes lie in the block's shared memory, from a multiple of the alignment on.
void check_shared(const char* name, const void* p, size_t bytes, size_t alignment);

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

}  // namespace vrnn::emulator
