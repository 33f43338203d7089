// What one call hands to the kernels: plain pointers, filled by torch/ and numpy/, read by every instruction set's
// build.
//
// Rows. The batch is dealt out to shards, one thread each, that never wait for one another. Inside a shard the
// sequences are sorted by falling length, so that those still running at a time step are the first ones, and the real
// (time step, sequence) pairs are numbered step by step: row(t, i) = offset[t] + i for i < active[t]. Padding has no
// row.
#pragma once

#include <cstdint>

#include "../core/program.h"

namespace vrnn {

struct Shard {
    int64_t sequences;        // how many of the batch are this shard's
    const int64_t* sequence;  // (sequences): index into the batch
    const int64_t* length;    // (sequences): falling
    int64_t steps;            // of the longest
    const int64_t* active;    // (steps + 1): sequences still running at t; 0 at the end
    const int64_t* offset;    // (steps + 1): rows before time step t
    int64_t first_row;        // rows of the shards before this one
};

// A per-step tensor (T, B, width) with free strides for the first two; data == nullptr where the call has none.
template <class T>
struct Steps {
    T* data = nullptr;
    int64_t step = 0, sequence = 0;  // strides in elements
    T* at(int64_t t, int64_t b) const { return data + t * step + b * sequence; }
    explicit operator bool() const { return data != nullptr; }
};

// Opens and closes named ranges of time on the calling thread, for a profiler that may be watching.
struct Ranges {
    void* (*open)(const char* name);
    void (*close)(void* range);
};

template <class T>
struct Launch {
    const Program* program;
    const Ranges* ranges;  // or null
    int64_t steps, batch;
    Span<Shard> shards;

    Steps<const T> x;             // (T, B, input)
    Steps<const T> eps;           // (T, B, latent)
    Steps<const T> cond;          // (T, B, conditioning), where the program has its buffer
    Steps<const uint8_t> resets;  // (T, B) bool, any byte but 0: the state is zeroed before the step; or null
    Steps<const uint8_t> mask;    // (T, B, input) bool: what was observed; or null for all
    Steps<const T> noise;         // (T, B, input), of a cell that runs on its own
    int64_t particles = 1;        // adjacent sequences that are one, where the program resamples them
    double threshold = 0;         // when their effective number falls below this share of them
    Steps<const T> uniforms;      // (T, B) in [0, 1)
    Steps<int64_t> ancestors;     // (T, B): written by forward, read by backward; -1 where nothing was resampled
    const T* state[most_states];  // (B, hidden) each
    const T* const* parameters;   // contiguous, in the program's numbering
    const int64_t* columns;       // of each parameter; 1 for a bias
    bool unpacked = false;        // weights are read, and their gradients written, where the parameters' are; one shard

    T* saved;                     // buffer by buffer, (rows of all shards, stride)
    const int64_t* saved_offset;  // (buffers): elements, or -1 for a buffer that lives in scratch
    T* scratch;                   // (shards, scratch_size)
    int64_t scratch_size;
    T* packed;            // forward weights and biases as the kernel reads them
    T* packed_backward;   // weights for the input gradients
    T* weight_gradients;  // (shards, gradient_size)

    // forward, each (T, B, width) and zero at padding
    PerOutput<Steps<T>> outputs;
    T* final_state[most_states];  // (B, hidden)
    Steps<T> predicted;           // (T, B, output): the decoder at the prior's mean, for p(x_t | x_<t)
    Steps<T> drawn;               // (T, B, input), of a cell that runs on its own

    // backward: upstream gradients, each null for zeros; then results
    PerOutput<Steps<const T>> upstream;
    const T* d_final_state[most_states];
    const bool* reached;          // (buffers): whether any of them reaches it
    Steps<T> d_x, d_eps, d_cond;  // null where nobody asked
    T* d_state[most_states];
    T* const* d_parameters;  // contiguous, shaped as the parameters
};

// The elementary functions of math.h, for their own tests.
enum class Function : int { exp, log, sigmoid, tanh, softplus, expm1, normal_cdf };

template <class T>
struct Kernels {
    int64_t (*scratch_size)(const Launch<T>&, int64_t shard_sequences, bool backward);
    void (*pack)(const Launch<T>&, bool backward, int64_t share, int64_t shares);
    void (*forward)(const Launch<T>&, int64_t shard);
    void (*backward)(const Launch<T>&, int64_t shard);
    // weight_gradients of all shards -> d_parameters
    void (*reduce)(const Launch<T>&, int64_t share, int64_t shares);
    void (*apply)(Function, int64_t n, const T* x, T* y);
    void (*deviation)(const Std&, int64_t n, const T* raw, T* std);
};

struct Isa {
    const char* name;
    Kernels<float> float32;
    Kernels<double> float64;

    template <class T>
    const Kernels<T>& kernels() const {
        if constexpr (sizeof(T) == sizeof(float))
            return float32;
        else
            return float64;
    }
};

extern const Isa isa_baseline, isa_avx2, isa_avx512;

}  // namespace vrnn
