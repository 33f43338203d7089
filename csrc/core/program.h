// What a cell runs, as plain data: the stages of vrnn_fast/cell/stages.py with buffers and parameters by index.
// No framework header, no owning container: kernels for several instruction sets include this file, and a
// standard-library template instantiated in one of them could be linked into the others.
#pragma once

#include <cstdint>

namespace vrnn {

template <class T>
struct Span {
    const T* data = nullptr;
    int64_t size = 0;
    const T* begin() const { return data; }
    const T* end() const { return data + size; }
    const T& operator[](int64_t i) const { return data[i]; }
};

inline constexpr int64_t program_format = 11;  // of the code: that of vrnn_fast/cell/encode.py

// An enum whose numbers are the encoding, and the names of its members, "a, b, c", which a test compares with Python's.
#define VRNN_ENCODED(Enum, ...)                \
    enum class Enum : int64_t { __VA_ARGS__ }; \
    inline constexpr char Enum##_names[] = #__VA_ARGS__

VRNN_ENCODED(Op, bias, dense, activate, add, sample, recur, divergence, likelihood, resample, draw, begin, normalize);
VRNN_ENCODED(Activation, relu, leaky_relu, tanh, elu, identity, silu, gelu);
VRNN_ENCODED(Cell, gru, lstm, rnn);
VRNN_ENCODED(Loss, bernoulli, gaussian, external);
VRNN_ENCODED(StdKind, plain, softplus, exponential);
VRNN_ENCODED(Keep, never, if_small, stored, always);  // a buffer from forward to backward
// What forward gives of each row, (T, B, width): the numbers by which backward knows their gradients.
VRNN_ENCODED(Output, nll, kl, z, mean, std, prior_mean, prior_std, raw);

constexpr int64_t members(const char* names) {
    int64_t n = 1;
    for (; *names; ++names) n += *names == ',';
    return n;
}

inline constexpr int64_t outputs = members(Output_names);

// One of each output.
template <class V>
struct PerOutput {
    V each[outputs];
    V& operator[](Output o) { return each[static_cast<int64_t>(o)]; }
    const V& operator[](Output o) const { return each[static_cast<int64_t>(o)]; }
};

template <class F>
void for_outputs(F f) {
    for (int64_t o = 0; o < outputs; ++o) f(static_cast<Output>(o));
}

// nll and kl: one number for each row, (T, B), which lies in no buffer.
constexpr bool is_scalar(Output o) {
    return o == Output::nll || o == Output::kl;
}

// Buffers that every program has, at fixed places: the states are h of every layer, then for an LSTM c of every layer.
enum : int64_t { buffer_x = 0, buffer_eps = 1, buffer_state = 2 };
inline constexpr int64_t most_states = 16;
inline constexpr int64_t most_buffers = 832;             // what the limits of vrnn_fast/cell/spec.py can come to
inline constexpr int64_t most_width = int64_t{1} << 24;  // of a buffer: no product of two of them, over all, overflows

struct Slice {
    int64_t buffer = -1, start = 0, width = 0;
};

// parameter[row : row + rows, column : column + source width], at target columns [at, at + rows)
struct Block {
    int64_t parameter, row, rows, column, at;
};

// parameter[row : row + rows], added to target columns [at, at + rows)
struct Term {
    int64_t parameter, row, rows, at;
};

// Std of vrnn_fast/cell/spec.py: max(f(clamp(raw, low, high) + offset) + floor, min_std), where plain is softplus(raw)
// plus floor.
struct Std {
    StdKind kind;
    double floor, scale, shift, minimum, low, high;
};

struct Stage {
    Op op;
    Slice source;         // what is read; [mean | raw] of sample and divergence's prior
    Slice target;         // what is written: by most; z of sample; the gates of recur; x of draw
    Slice std;            // of sample, and of divergence's prior
    Slice posterior;      // [mean | raw], divergence only
    Slice posterior_std;  // divergence only
    Slice z;              // divergence: the sample that estimates it; no width for the exact one
    Slice noise;          // draw only
    Slice candidate;      // n_h of a GRU's recur
    Slice output;         // of recur: h_t, for the layer above; no width without one
    int64_t h = -1;       // of recur: the buffers of its state
    int64_t c = -1;
    Span<Block> blocks;
    Span<Term> terms;
    bool accumulate = false;      // dense: add to target instead of starting from the bias
    bool first_gradient = false;  // in backward order, the first to write that of source (dense), h (a GRU), z
    bool mean = false;            // draw: the mean in the place of a sample
    int64_t kind = 0;             // Activation, Cell or Loss
    double epsilon = 0;           // normalize: added to the variance
    Std deviation{};              // sample, divergence's prior, likelihood, draw
    int64_t weights = 0;   // dense, bias, begin, normalize: offset of the stacked bias (and its gradient), in elements
    int64_t packed = 0;    // dense: offset of the packed weights, in elements
    int64_t gradient = 0;  // dense: offset of the weight gradient, in elements
};

struct Buffer {
    int64_t width, stride;  // elements; the stride is a multiple of a cache line
    Keep keep;
};

// Elements that a row's stride, and every offset into packed weights or gradients, is a multiple of: a cache line of
// float32, and no less than a vector of any instruction set.
inline constexpr int64_t line = 16;

struct Program {
    Span<Buffer> buffers;
    Span<Stage> before, scan, after, stages;  // the last is all of them
    const Stage* output = nullptr;            // the likelihood, or the draw of a cell that runs on its own
    const Stage *sample = nullptr, *divergence = nullptr;
    PerOutput<Slice> outputs;   // where each lies; in no buffer what has no stage, which is zero, and a scalar
    int64_t gates = -1;         // the first recurrent layer's buffer of sums
    int64_t states = 0;         // buffers from buffer_state on
    int64_t cond = -1;          // the conditioning input's buffer
    int64_t packed_size = 0;    // elements of all packed weights of one direction
    int64_t bias_size = 0;      // elements of all stacked biases
    int64_t gradient_size = 0;  // elements of all weight gradients of one shard, biases behind them
};

// Rows of a weight gradient, (target width, source width), are this far apart.
inline int64_t gradient_stride(const Stage& dense) {
    return (dense.source.width + line - 1) / line * line;
}

}  // namespace vrnn
