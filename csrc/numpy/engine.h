// One time step after the other, outside torch: weights packed once, scratch allocated once, one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/decode.h"
#include "core/validate.h"
#include "cpu/deal.h"
#include "cpu/launch.h"

namespace vrnn {

template <class T>
class Engine {
  public:
    // parameters: contiguous, in the program's numbering. They are copied. Throws std::invalid_argument for parameters
    // that are too small, a batch without sequences, and a program that is bad, no single step's, or one whose
    // likelihood is external; std::runtime_error as chosen_isa() does.
    Engine(const std::vector<int64_t>& code, const std::vector<double>& constants,
           const std::vector<const T*>& parameters, const std::vector<Extent>& extents, int64_t batch);
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // x (batch, input), eps (batch, latent) -> nll, kl (batch) and the prediction at the prior's mean: mean and, of a
    // Gaussian likelihood, std (batch, input). Moves the state on.
    void step(const T* x, const T* eps, T* nll, T* kl, T* mean, T* std);

    // h of every layer, then c of every layer of an LSTM: (batch, hidden) each, to read and to write.
    T* state(int64_t which) { return state_.data() + which * batch_ * hidden(); }

    int64_t batch() const { return batch_; }
    int64_t input() const { return decoded_.program.buffers[buffer_x].width; }
    int64_t latent() const { return decoded_.program.buffers[buffer_eps].width; }
    int64_t hidden() const { return decoded_.program.buffers[buffer_state].width; }
    bool gaussian() const { return static_cast<Loss>(likelihood().kind) == Loss::gaussian; }
    int64_t state_tensors() const { return decoded_.program.states; }
    const char* isa() const { return isa_.name; }

  private:
    const Stage& likelihood() const { return *decoded_.program.output; }

    const Isa& isa_;
    DecodedProgram decoded_;
    int64_t batch_;
    Deal deal_;
    std::vector<int64_t> saved_offset_;
    std::vector<T> packed_, scratch_, state_, raw_;
    Launch<T> launch_{};
};

}  // namespace vrnn
