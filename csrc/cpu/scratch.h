// Memory for one call's intermediate results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#ifdef __linux__
#    include <sys/mman.h>
#endif

#include "tuning.h"

namespace vrnn {

// Where the system grants large pages on request, asks for them: one fault for every 2 MiB instead of every 4 KiB.
inline void in_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = uintptr_t{2} << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// It belongs to the calling thread. A small one outlives the call: to touch fresh pages takes longer than what a short
// sequence computes.
class Scratch {
  public:
    void reserve(size_t bytes) {
        static thread_local Memory kept;
        if (bytes > tuning::most_kept_bytes) {
            own_ = allocate(bytes);
            data_ = own_.get();
        } else {
            if (bytes > kept.bytes) kept = {allocate(bytes), bytes};
            data_ = kept.data.get();
        }
    }
    template <class T>
    T* data() const {
        return static_cast<T*>(data_);
    }

  private:
    static constexpr size_t alignment = 64;
    struct Free {
        void operator()(void* p) const { ::operator delete(p, std::align_val_t{alignment}); }
    };
    using Owned = std::unique_ptr<void, Free>;
    struct Memory {
        Owned data;
        size_t bytes = 0;
    };
    static Owned allocate(size_t bytes) {
        Owned data(::operator new(bytes, std::align_val_t{alignment}));
        in_large_pages(data.get(), bytes);
        return data;
    }

    Owned own_;
    void* data_ = nullptr;
};

}  // namespace vrnn
