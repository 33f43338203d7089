// The body of every kernel_<isa>.cpp: one instance of the templates for each dtype.
#include "executor.h"

namespace vrnn::VRNN_ISA {

template <class T>
static int64_t scratch_size(const Launch<T>& launch, int64_t sequences, bool backward) {
    return Workspace<T>(launch, nullptr, sequences, 0, backward).used;
}

template <class T>
static void forward(const Launch<T>& launch, int64_t shard) {
    Executor<T>(launch, shard, false).forward();
}

template <class T>
static void backward(const Launch<T>& launch, int64_t shard) {
    Executor<T>(launch, shard, true).backward();
}

template <class T>
static constexpr Kernels<T> kernels() {
    return {scratch_size<T>, pack_weights<T>, forward<T>, backward<T>, reduce<T>};
}

}  // namespace vrnn::VRNN_ISA
