// A look at the contents of tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace vrnn::ops {

using torch::stable::Tensor;

// Remembers what tensors hold, for changes that torch does not count: through .data, a NumPy view, or a bare pointer. A
// few values of each, spread evenly, tell when a whole tensor was changed; a digest of all of them tells everything,
// and takes as long as reading them.
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
            int64_t span = 1;
            for (int64_t d = 0; d < t.dim(); ++d) span += (t.size(d) - 1) * t.stride(d);
            pieces_.push_back({static_cast<const char*>(t.data_ptr()), static_cast<size_t>(span * t.element_size())});
        }
        digest_ = digest();
    }
    bool unchanged(bool thorough) const {
        for (const Sample& s : samples_)
            if (s.read() != s.value) return false;
        return !thorough || digest() == digest_;
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
    struct Piece {
        const char* at;
        size_t bytes;
    };

    // Multiplication by an odd number maps no two values to the same: any change of one word shows.
    Value digest() const {
        constexpr Value odd = 0x9e3779b97f4a7c15;
        constexpr size_t words = 8;  // side by side: a multiplication takes some cycles
        Value sums[words] = {};
        for (const Piece& s : pieces_) {
            size_t i = 0;
            for (; i + sizeof sums <= s.bytes; i += sizeof sums)
                for (size_t k = 0; k < words; ++k) {
                    Value read;
                    std::memcpy(&read, s.at + i + k * sizeof read, sizeof read);
                    sums[k] = (sums[k] ^ read) * odd;
                    asm("" : "+r"(sums[k]));  // in vectors, 64 bits are multiplied in pieces
                }
            Value read[words] = {};
            std::memcpy(read, s.at + i, s.bytes - i);
            for (size_t k = 0; k < words; ++k) sums[k] = (sums[k] ^ read[k]) * odd;
        }
        Value all = 0;
        for (const Value sum : sums) all = (all ^ sum ^ (sum >> 32)) * odd;
        return all;
    }

    std::vector<Tensor> alive_;  // views, which hold the memory and not the tensors
    std::vector<Sample> samples_;
    std::vector<Piece> pieces_;
    Value digest_;
};

}  // namespace vrnn::ops
