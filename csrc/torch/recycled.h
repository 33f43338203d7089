// Large memory that calls use again, one after the other. What malloc hands back to the kernel at its end comes with
// pages to be cleared at the next call, which takes longer than some stages of it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <mutex>
#include <new>
#include <utility>

#include "../cpu/scratch.h"
#include "tensors.h"

// Since torch 2.11; null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* made, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace vrnn::ops {

// Keeps the largest block that was given back, of the process.
class Blocks {
  public:
    struct Block {
        void* data = nullptr;
        size_t bytes = 0;
    };

    static Blocks& all() {
        static Blocks* const blocks = new Blocks;  // never destroyed: tensors outlive what is static
        return *blocks;
    }
    // Of as many bytes or more; null where there is no memory.
    Block take(size_t bytes) {
        {
            const std::lock_guard lock(mutex_);
            if (kept_.bytes >= bytes) return std::exchange(kept_, {});
        }
        const Block made{::operator new(bytes, alignment, std::nothrow), bytes};
        if (made.data) in_large_pages(made.data, bytes);
        return made;
    }
    void give(Block block) {
        {
            const std::lock_guard lock(mutex_);
            if (block.bytes > kept_.bytes && block.bytes <= tuning::most_recycled_bytes) std::swap(block, kept_);
        }
        ::operator delete(block.data, alignment);
    }

    // Hands what is kept back, and tells how many bytes that is.
    size_t release() {
        Block block;
        {
            const std::lock_guard lock(mutex_);
            std::swap(block, kept_);
        }
        ::operator delete(block.data, alignment);
        return block.bytes;
    }

  private:
    static constexpr std::align_val_t alignment{64};
    std::mutex mutex_;
    Block kept_;
};

// A tensor (elements) of the dtype of `like`, in such memory where it is large.
inline Tensor recycled(const Tensor& like, int64_t elements) {
    const size_t bytes = elements * like.element_size();
    Blocks::Block block;
    if (torch_from_blob && bytes >= tuning::least_recycled_bytes) block = Blocks::all().take(bytes);
    if (!block.data) {
        const Tensor fresh = empty(like, {elements});
        in_large_pages(fresh.data_ptr(), bytes);
        return fresh;
    }
    const auto give_back = [](void* data, void* capacity) {
        Blocks::all().give({data, reinterpret_cast<size_t>(capacity)});
    };
    const int64_t stride = 1;
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(block.data, 1, &elements, &stride, 0, dtype,
                                                  aoti_torch_device_type_cpu(), -1, &made, aoti_torch_layout_strided(),
                                                  nullptr, 0, give_back, reinterpret_cast<void*>(block.bytes)));
    return Tensor(made);
}

}  // namespace vrnn::ops
