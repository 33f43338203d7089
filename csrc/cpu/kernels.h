// The body of every kernel_<isa>.cpp: one instance of the templates for each dtype.
#include "pack.h"
#include "walker.h"

namespace vrnn::VRNN_ISA {

template <class T>
static int64_t scratch_size(const Launch<T>& launch, int64_t sequences, bool backward) {
    return Workspace<T>(launch, nullptr, sequences, 0, backward).used;
}

template <class T>
static void forward(const Launch<T>& launch, int64_t shard) {
    Walker<T>(launch, shard, false).forward();
}

template <class T>
static void backward(const Launch<T>& launch, int64_t shard) {
    Walker<T>(launch, shard, true).backward();
}

template <class T>
static void apply(Function function, int64_t n, const T* x, T* y) {
    const auto map = [&](auto f) {
        for_vectors<T>(n, [&](int64_t i, int64_t count) { store(y + i, f(load(x + i, count)), count); });
    };
    switch (function) {
        case Function::exp: return map([](Vec<T> v) { return exp(v); });
        case Function::log: return map([](Vec<T> v) { return log(v); });
        case Function::sigmoid: return map([](Vec<T> v) { return sigmoid(v); });
        case Function::tanh: return map([](Vec<T> v) { return tanh(v); });
        case Function::softplus: return map([](Vec<T> v) { return softplus(v); });
        case Function::expm1: return map([](Vec<T> v) { return expm1(v); });
        case Function::normal_cdf: return map([](Vec<T> v) { return normal_cdf(v); });
    }
}

template <class T>
static void deviation(const Std& s, int64_t n, const T* raw, T* std) {
    with_deviation<T>(s, [&](auto f) {
        for_vectors<T>(n, [&](int64_t i, int64_t count) { store(std + i, f(load(raw + i, count)), count); });
    });
}

template <class T>
static constexpr Kernels<T> kernels() {
    return {scratch_size<T>, pack_weights<T>, forward<T>, backward<T>, reduce<T>, apply<T>, deviation<T>};
}

}  // namespace vrnn::VRNN_ISA
