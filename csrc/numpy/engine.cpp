#include "engine.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/features.h"

namespace vrnn {
namespace {

int64_t at_least_one(int64_t batch) {
    if (batch < 1) throw std::invalid_argument("batch_size must be at least 1, got " + std::to_string(batch));
    return batch;
}

}  // namespace

template <class T>
Engine<T>::Engine(const std::vector<int64_t>& code, const std::vector<double>& constants,
                  const std::vector<const T*>& parameters, const std::vector<Extent>& extents, int64_t batch)
    : isa_(chosen_kernels()),
      decoded_(code, constants, static_cast<int64_t>(parameters.size())),
      batch_(at_least_one(batch)),
      deal_(1, batch, nullptr, 1, {1, decoded_.flops_per_row}),
      saved_offset_(decoded_.program.buffers.size, -1),
      state_(state_tensors() * batch * hidden(), T(0)),
      raw_(batch * likelihood().source.width) {
    const Program& program = decoded_.program;
    validate(program, extents.data(), static_cast<int64_t>(extents.size()));
    if (likelihood().op == Op::draw || program.scan[program.scan.size - 1].op == Op::resample)
        throw std::invalid_argument("program: it generates or resamples, which is no single step's");
    if (static_cast<Loss>(likelihood().kind) == Loss::external)
        throw std::invalid_argument("program: the likelihood is computed outside");
    if (program.cond >= 0) throw std::invalid_argument("program: single steps take no conditioning input");
    const Kernels<T>& k = isa_.template kernels<T>();
    std::vector<int64_t> columns;
    for (const Extent& e : extents) columns.push_back(e.columns);
    launch_.program = &program;
    launch_.steps = 1;
    launch_.batch = batch;
    launch_.shards = deal_.shards();
    for (int64_t i = 0; i < state_tensors(); ++i) launch_.state[i] = launch_.final_state[i] = state(i);
    launch_.saved_offset = saved_offset_.data();
    launch_.scratch_size = k.scratch_size(launch_, batch, false);
    scratch_.resize(launch_.scratch_size + line);
    packed_.resize(program.packed_size + program.bias_size + line);
    const auto on_a_line = [](std::vector<T>& v) {
        const auto at = reinterpret_cast<uintptr_t>(v.data());
        return v.data() + (-at % (line * sizeof(T))) / sizeof(T);
    };
    launch_.scratch = on_a_line(scratch_);
    launch_.packed = on_a_line(packed_);
    launch_.parameters = parameters.data();
    launch_.columns = columns.data();
    k.pack(launch_, false, 0, 1);
    launch_.parameters = nullptr;
    launch_.columns = nullptr;
}

template <class T>
void Engine<T>::step(const T* x, const T* eps, T* nll, T* kl, T* mean, T* std) {
    const Kernels<T>& k = isa_.template kernels<T>();
    const int64_t width = input();
    launch_.x = {x, 0, width};
    launch_.eps = {eps, 0, latent()};
    launch_.outputs[Output::nll] = {nll, 0, 1};
    launch_.outputs[Output::kl] = {kl, 0, 1};
    launch_.predicted = {raw_.data(), 0, likelihood().source.width};
    k.forward(launch_, 0);
    if (!gaussian()) return k.apply(Function::sigmoid, batch_ * width, raw_.data(), mean);
    for (int64_t i = 0; i < batch_; ++i) {
        const T* const row = launch_.predicted.at(0, i);
        std::copy(row, row + width, mean + i * width);
        k.deviation(likelihood().deviation, width, row + width, std + i * width);
    }
}

template class Engine<float>;
template class Engine<double>;

}  // namespace vrnn
