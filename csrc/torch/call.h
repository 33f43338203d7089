// One call of an operator: what all have in common between tensors and the pointers of a launch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "core/validate.h"
#include "cpu/deal.h"
#include "cpu/features.h"
#include "cpu/scratch.h"
#include "digest.h"
#include "namespace.h"
#include "programs.h"
#include "tensors.h"

namespace vrnn::ops {

// What a launch was for, in the order in which vrnn_fast/executors/cpu/operators.py names them.
enum class LaunchKind { forward, backward, step, generate };

// A build of the kernels, and how often it ran.
struct Build {
    const Isa* isa;
    std::atomic<int64_t> launches[4];
    void count(LaunchKind kind) { ++launches[static_cast<int>(kind)]; }
};

inline Build builds[] = {
    {&isa_baseline, {}},
#ifdef VRNN_X86
    {&isa_avx2, {}},
    {&isa_avx512, {}},
#endif
};

inline bool runs(const Build& build) {
    static const std::vector<std::string> usable = usable_isas();
    return std::find(usable.begin(), usable.end(), build.isa->name) != usable.end();
}

inline Build& chosen_build() {
    const Isa& isa = chosen_kernels();
    Build* build = builds;
    while (build->isa != &isa) ++build;
    return *build;
}

// A range costs some 50 ns where no profiler is watching.
inline const Ranges profiled = {
    [](const char* name) -> void* {
        AtenRecordFunctionHandle range = nullptr;
        aoti_record_function_start(name, nullptr, nullptr, 0, &range);
        return range;
    },
    [](void* range) { aoti_record_function_end(static_cast<AtenRecordFunctionHandle>(range)); },
};

// The parameters of a program, contiguous. Keeps alive what it points to.
template <class T>
struct Parameters {
    std::vector<Tensor> tensors;
    std::vector<const T*> data;
    std::vector<int64_t> columns;

    Parameters(const Program& program, const std::vector<Tensor>& given, const Tensor& like) {
        std::vector<Extent> extents;
        tensors.reserve(given.size());
        data.reserve(given.size());
        columns.reserve(given.size());
        extents.reserve(given.size());
        for (const Tensor& p : given) {
            check(p, "a parameter", like.scalar_type());
            STD_TORCH_CHECK(p.dim() == 1 || p.dim() == 2, "a parameter must have 1 or 2 dimensions, got ", p.dim());
            tensors.push_back(dense(p));
            data.push_back(ops::data<T>(tensors.back()));
            columns.push_back(p.dim() == 2 ? p.size(1) : 1);
            extents.push_back({p.dim(), p.size(0), columns.back()});
        }
        validate(program, extents.data(), static_cast<int64_t>(extents.size()));
    }
};

// What stands behind packed weights: the build and the program that they are packed for and, where forward saved them,
// into how many shards its batch was dealt, and which call it was.
template <class T>
class Label {
  public:
    explicit Label(T* at) : at_(at) {}
    void write(const Build& build, const Digest& program, int64_t shards, const Digest& call) const {
        std::fill(at_, at_ + line, T(0));
        at_[0] = static_cast<T>(&build - builds);
        at_[1] = static_cast<T>(shards);
        program.write(at_ + 2);
        call.write(at_ + 2 + Digest::pieces);
    }
    // The build, if the weights belong to the program.
    Build& build(const Digest& program) const {
        STD_TORCH_CHECK(program.is(at_ + 2) && at_[0] >= 0 && at_[0] < std::size(builds),
                        "the weights are not packed for this program: " VRNN_FAST_OPERATOR("pack") " does it");
        Build& found = builds[static_cast<size_t>(at_[0])];
        STD_TORCH_CHECK(runs(found), "the weights are packed for ", found.isa->name,
                        " instructions, which this processor lacks: pack them here");
        return found;
    }
    // However many threads there are by now.
    int64_t shards(const Digest& call, int64_t batch) const {
        STD_TORCH_CHECK(call.is(at_ + 2 + Digest::pieces) && at_[1] >= 1 && at_[1] <= std::max<int64_t>(1, batch),
                        "saved is not what forward saved of such a batch: pass what the call returned whose gradient "
                        "this is, with the same inputs, lengths and recompute");
        return static_cast<int64_t>(at_[1]);
    }

  private:
    static_assert(2 + 2 * Digest::pieces <= line);
    T* at_;
};

template <class T>
Build& build_of(const Tensor& packed, const Known& known) {
    return Label<T>(data<T>(packed) + known.weights()).build(known.digest);
}

// The inputs of a call that it may lack: cond (T, B, C); lengths (B) int64; resets (T, B) and mask (T, B, X) bool.
struct Optionals {
    const std::optional<Tensor>&cond, &lengths, &resets, &mask;
};

// What a call runs over: x, or the noise of one that is drawn (T, B, X); eps (T, B, Z); state (B, H) each.
struct Batch {
    const Tensor &x, &eps;
    Optionals given;
    const std::vector<Tensor>& state;
};

// Particles of one sequence, by a tensor (T, B / particles, particles).
inline int64_t particles_of(const std::optional<Tensor>& t) {
    return t ? t->size(2) : 1;
}

// A few elements of (T, B, width), wherever they lie: two calls do not have the same noise.
template <class T>
void add_samples(Digest& digest, const Tensor& t) {
    const int64_t steps = t.size(0), rows = t.size(1), columns = t.size(2);
    if (t.numel() == 0) return;
    const T* const all = data<const T>(t);
    const int64_t of_step = t.stride(0), of_row = t.stride(1), of_column = t.stride(2);
    for (int64_t i = 0; i < 16; ++i)
        digest.add(double{all[i * steps / 16 * of_step + i * 7919 % rows * of_row + i * 104729 % columns * of_column]});
}

// What tells a call: where forward puts which row of the `size` elements that it saves, and what it was given.
template <class T>
Digest call_digest(const Batch& batch, int64_t particles, int64_t size, bool recompute) {
    const auto& [x, eps, given, state] = batch;
    Digest digest;
    for (const int64_t n : {x.size(0), x.size(1), particles, size, int64_t{recompute}}) digest.add(n);
    for (const std::optional<Tensor>* t : {&given.cond, &given.lengths, &given.resets, &given.mask})
        digest.add(int64_t{t->has_value()});
    add_samples<T>(digest, x);
    add_samples<T>(digest, eps);
    if (given.lengths)
        for (int64_t b = 0; b < x.size(1); ++b) digest.add(data<const int64_t>(*given.lengths)[b]);
    return digest;
}

template <class T>
Steps<T> particles_in(const Tensor& t) {
    return {data<std::remove_const_t<T>>(t), t.size(1) * t.size(2), 1};
}

// Elements behind the last row that is saved, since kernels read whole vectors: SLACK of executors/cpu/operators.py.
inline constexpr int64_t saved_slack = 64;

// What all calls have in common. Keeps alive what the launch points to.
template <class T>
struct Call {
    const Program& program;
    Build& build;
    const Kernels<T>& kernels;
    Deal deal;
    std::vector<int64_t> saved_offset;
    std::vector<Tensor> state;
    std::optional<Tensor> cond, resets, mask;
    Scratch scratch;
    Launch<T> launch{};

    Call(const Known& known, Build& build, int64_t steps, int64_t batch, const std::optional<Tensor>& lengths,
         int64_t particles = 1, int64_t shards = 0)
        : program(known.decoded.program),
          build(build),
          kernels(build.isa->template kernels<T>()),
          deal(steps, batch, lengths ? data<const int64_t>(*lengths) : nullptr, particles,
               {static_cast<int64_t>(torch::stable::get_num_threads()), known.decoded.flops_per_row, shards}),
          saved_offset(program.buffers.size, -1) {
        launch.program = &program;
        launch.steps = steps;
        launch.batch = batch;
        launch.particles = particles;
        launch.shards = deal.shards();
        launch.saved_offset = saved_offset.data();
    }

    void start_from(const std::vector<Tensor>& given) {
        for (const Tensor& s : given) {
            state.push_back(dense(s));
            launch.state[state.size() - 1] = data<T>(state.back());
        }
    }

    void read(const Optionals& given) {
        if (given.cond) launch.cond = kept<const T>(cond, *given.cond);
        if (given.resets) launch.resets = kept<const uint8_t>(resets, *given.resets);
        if (given.mask) launch.mask = kept<const uint8_t>(mask, *given.mask);
    }

    // Lays the buffers that backward needs out in `saved`, and all that it would compute again where there is room: it
    // has `size` elements.
    void keep(T* saved, int64_t size, bool recompute) {
        launch.saved = saved;
        Keep least = recompute ? Keep::always : Keep::stored;
        if (!recompute && kept(Keep::if_small) <= size - saved_slack) least = Keep::if_small;
        STD_TORCH_CHECK(size >= kept(least), "saved must have room for ", kept(least), " elements, got ", size);
        int64_t used = 0;
        for (int64_t b = 0; b < program.buffers.size; ++b) {
            if (program.buffers[b].keep < least) continue;
            saved_offset[b] = used;
            used += launch.steps * launch.batch * program.buffers[b].stride;
        }
    }

    // Whether packing the weights would take longer than it spares: the same for both directions of a call.
    bool has_few_rows() const {
        return launch.shards.size == 1 && launch.steps * launch.batch <= tuning::unpacked_rows;
    }

    void reserve_scratch(int64_t packed, bool backward) {
        launch.scratch_size = kernels.scratch_size(launch, deal.most_sequences(), backward);
        const int64_t shards = launch.shards.size, stages = launch.scratch_size * shards;
        scratch.reserve((stages + packed + (backward ? program.gradient_size * shards : 0)) * sizeof(T));
        launch.scratch = scratch.data<T>();
        launch.packed = launch.scratch + stages;
        launch.weight_gradients = launch.packed + packed;
    }

    void pack(const Parameters<T>& parameters, bool backward) {
        launch.parameters = parameters.data.data();
        launch.columns = parameters.columns.data();
        void* const range = profiled.open(backward ? "vrnn_fast.backward.pack" : "vrnn_fast.forward.pack");
        for_shards([&](int64_t s) { kernels.pack(launch, backward, s, launch.shards.size); });
        profiled.close(range);
    }

    // Where others can use them as well: (packed_size()).
    void pack_to(T* packed, const Known& known, const Parameters<T>& parameters, const Digest& call = {}) {
        launch.packed = packed;
        pack(parameters, false);
        Label<T>(packed + known.weights()).write(build, known.digest, launch.shards.size, call);
    }

    template <class F>
    void for_shards(F f) const {
        if (launch.shards.size == 1) return f(0);
        torch::stable::parallel_for(0, launch.shards.size, 1, [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s) f(s);
        });
    }

  private:
    // Elements of the buffers that are kept so long, or longer.
    int64_t kept(Keep least) const {
        int64_t used = 0;
        for (const Buffer& b : program.buffers)
            if (b.keep >= least) used += launch.steps * launch.batch * b.stride;
        return used;
    }

    template <class U>
    static Steps<U> kept(std::optional<Tensor>& own, const Tensor& given) {
        own = with_dense_rows(given);
        return steps_of<U>(*own);
    }
};

// More than any memory holds, and less than what overflows once it is counted in bytes.
inline constexpr int64_t most_elements = int64_t{1} << 56;

inline void check_infers(const Known& known) {
    STD_TORCH_CHECK(!known.draws(), "the program generates: call " VRNN_FAST_OPERATOR("generate"));
}

inline void check_count(const std::vector<Tensor>& parameters, const Known& known) {
    STD_TORCH_CHECK(static_cast<int64_t>(parameters.size()) == known.parameters, "the program has ", known.parameters,
                    " parameters, got ", parameters.size());
}

inline void check_states(const std::vector<Tensor>& state, const Known& known, ScalarType dtype, const Shape& sizes) {
    const int64_t states = known.decoded.program.states;
    STD_TORCH_CHECK(static_cast<int64_t>(state.size()) == states, "state must be ", states, " tensors, got ",
                    state.size());
    for (const Tensor& s : state) check(s, "state", dtype, sizes);
}

// `name` is what x is called.
inline void check_batch(const Known& known, const char* name, const Batch& given_batch) {
    const auto& [x, eps, given, state] = given_batch;
    STD_TORCH_CHECK(x.dim() == 3, name, " must have 3 dimensions, got ", x.dim());
    const ScalarType dtype = precision(x, name);
    const int64_t steps = x.size(0), batch = x.size(1), input = known.width(buffer_x);
    const int64_t cond = known.decoded.program.cond;
    check(x, name, dtype, {steps, batch, input});
    check(eps, "eps", dtype, {steps, batch, known.width(buffer_eps)});
    check_states(state, known, dtype, {batch, known.width(buffer_state)});
    STD_TORCH_CHECK(given.cond.has_value() == known.conditioned(),
                    "cond must be given where the program has it, and nowhere else");
    if (given.cond) check(*given.cond, "cond", dtype, {steps, batch, known.width(cond)});
    if (given.resets) check(*given.resets, "resets", ScalarType::Bool, {steps, batch});
    if (given.mask) check(*given.mask, "mask", ScalarType::Bool, {steps, batch, input});
    if (!given.lengths) return;
    check(*given.lengths, "lengths", ScalarType::Long, {batch});
    STD_TORCH_CHECK(given.lengths->is_contiguous(), "lengths must be contiguous");
}

inline void check_packed(const Tensor& packed, const Known& known, const Tensor& like) {
    check(packed, "packed", like.scalar_type(), {known.packed_size()});
    STD_TORCH_CHECK(packed.is_contiguous(), "packed must be contiguous");
}

inline void check_particles(const std::optional<Tensor>& t, const char* name, ScalarType dtype, const Known& known,
                            const Tensor& x) {
    STD_TORCH_CHECK(t.has_value() == known.resamples(), name, " belong to a program that resamples, and to no other");
    if (!t) return;
    check(*t, name, dtype);
    STD_TORCH_CHECK(t->dim() == 3 && t->size(2) > 0 && t->size(0) == x.size(0) && t->size(1) * t->size(2) == x.size(1),
                    name, " must be (T, B, particles), where x is (T, B * particles, X), got ", in_words(shape(*t)));
}

// What forward wrote: of a sequence's particles at a time step each has its ancestor among them, or none has one.
inline void check_ancestors(const Tensor& ancestors) {
    STD_TORCH_CHECK(ancestors.is_contiguous(), "ancestors must be contiguous");
    const int64_t* const all = data<const int64_t>(ancestors);
    const int64_t particles = ancestors.size(2);
    for (int64_t i = 0; i < ancestors.numel(); ++i) {
        const bool drawn = all[i / particles * particles] >= 0;
        STD_TORCH_CHECK(drawn ? all[i] >= 0 && all[i] < particles : all[i] == -1, "ancestors must be in 0 to ",
                        particles - 1, ", or -1 for all particles of a step, got ", all[i]);
    }
}

}  // namespace vrnn::ops
