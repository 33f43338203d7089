// Tensors of torch's stable ABI: their data, their layout, and the look at both before anything is read.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/launch.h"

namespace vrnn::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
T* data(const Tensor& t) {
    return static_cast<T*>(t.data_ptr());
}

// torch's own looks an operator up by its name, even where there is nothing to do.
inline Tensor dense(const Tensor& t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// torch's new_empty looks an operator up by its name, which takes as long as a layer of a single step. This one is not
// filled in torch's deterministic mode.
template <size_t n>
Tensor empty(const Tensor& like, const int64_t (&sizes)[n]) {
    int64_t strides[n], stride = 1;
    for (size_t i = n; i-- > 0; stride *= sizes[i]) strides[i] = stride;
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(n, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
    return Tensor(made);
}

// The results of a call. In its deterministic mode torch fills fresh memory with NaN, and so does this: one new_empty
// tells. What a NaN left there by chance tells costs time, nothing else.
template <class T>
class Fresh {
  public:
    explicit Fresh(const Tensor& like)
        : like_(like), filled_(std::isnan(*data<T>(torch::stable::new_empty(like, {1})))) {}
    template <size_t n>
    Tensor operator()(const int64_t (&sizes)[n]) const {
        return filled(empty(like_, sizes));
    }
    // What is to be written anew, as fresh memory is.
    Tensor filled(Tensor made) const {
        if (filled_) std::fill_n(data<T>(made), made.numel(), std::numeric_limits<T>::quiet_NaN());
        return made;
    }
    // (T, B, width), or no elements.
    Tensor per_step(int64_t width, bool wanted) const {
        return (*this)({wanted ? like_.size(0) : 0, wanted ? like_.size(1) : 0, width});
    }

  private:
    const Tensor& like_;
    bool filled_;
};

inline Tensor with_dense_rows(const Tensor& t) {
    return t.dim() < 3 || t.size(2) == 1 || t.stride(2) == 1 ? t : torch::stable::contiguous(t);
}

template <class T>
Steps<T> steps_of(const Tensor& t) {
    return {data<std::remove_const_t<T>>(t), t.stride(0), t.stride(1)};
}

using Shape = std::initializer_list<int64_t>;

inline std::string in_words(std::vector<int64_t> sizes) {
    std::string words;
    for (const int64_t n : sizes) words += (words.empty() ? "" : ", ") + std::to_string(n);
    return "(" + words + ")";
}

inline std::vector<int64_t> shape(const Tensor& t) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
    return sizes;
}

inline const char* in_words(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Bool: return "bool";
        case ScalarType::Long: return "int64";
        case ScalarType::Double: return "float64";
        default: return "float32";
    }
}

// The precision of a call: float32 or float64.
inline ScalarType precision(const Tensor& t, const char* name) {
    const ScalarType dtype = t.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64");
    return dtype;
}

inline void check(const Tensor& t, const char* name, ScalarType dtype) {
    STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
    STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", in_words(dtype));
    STD_TORCH_CHECK(t.numel() == 0 || t.data_ptr(), name, " must have memory: its storage was freed");
}

inline void check(const Tensor& t, const char* name, ScalarType dtype, const Shape& sizes) {
    check(t, name, dtype);
    bool good = t.dim() == static_cast<int64_t>(sizes.size());
    for (int64_t d = 0; good && d < t.dim(); ++d) good = t.size(d) == sizes.begin()[d];
    STD_TORCH_CHECK(good, name, " must have shape ", in_words(sizes), ", got ", in_words(shape(t)));
}

}  // namespace vrnn::ops
