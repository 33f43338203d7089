// A look at the contents of tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace vrnn::ops {

using torch::stable::Tensor;

// Remembers a few values of each tensor, spread evenly. A change of a whole tensor changes some of them, also one that
// torch does not count: through .data, a NumPy view, or a bare pointer.
class Watch {
  public:
    explicit Watch(const std::vector<Tensor>& tensors) {
        for (const Tensor& t : tensors) {
            STD_TORCH_CHECK(t.is_cpu(), "only CPU tensors can be watched");
            STD_TORCH_CHECK(t.element_size() <= sizeof(Value), "an element is too large to be watched");
            STD_TORCH_CHECK(t.numel() > 0 && t.dim() > 0, "a tensor without elements or dimensions cannot be watched");
            alive_.push_back(torch::stable::select(t, 0, 0));
            const int64_t elements = t.numel(), count = std::min<int64_t>(elements, values_each);
            for (int64_t i = 0; i < count; ++i) {
                int64_t index = count == 1 ? 0 : i * (elements - 1) / (count - 1), offset = 0;
                for (int64_t d = t.dim(); d-- > 0; index /= t.size(d)) offset += index % t.size(d) * t.stride(d);
                samples_.push_back({static_cast<const char*>(t.data_ptr()) + offset * t.element_size(),
                                    static_cast<size_t>(t.element_size()), 0});
                samples_.back().value = samples_.back().read();
            }
        }
    }
    bool unchanged() const {
        for (const Sample& s : samples_)
            if (s.read() != s.value) return false;
        return true;
    }

  private:
    using Value = uint64_t;
    static constexpr int64_t values_each = 8;
    struct Sample {
        const char* at;
        size_t bytes;
        Value value;
        Value read() const {
            Value v = 0;
            std::memcpy(&v, at, bytes);
            return v;
        }
    };
    std::vector<Tensor> alive_;  // views, which hold the memory and not the tensors
    std::vector<Sample> samples_;
};

}  // namespace vrnn::ops
