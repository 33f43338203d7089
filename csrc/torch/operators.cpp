// The torch operators: all schemas in one block, autograd and fake kernels beside their callers in
// vrnn_fast/executors/cpu. Only LibTorch's stable ABI is used, so one build serves torch 2.10 and every
// later one.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "call.h"
#include "core/reach.h"
#include "cpu/features.h"
#include "namespace.h"
#include "programs.h"
#include "recycled.h"
#include "tensors.h"
#include "watch.h"

namespace vrnn::ops {
namespace {

// ---- batches of sequences

using Outputs = std::array<Tensor, outputs>;
using Forward = decltype(std::tuple_cat(Outputs(), std::tuple<std::vector<Tensor>, Tensor, Tensor>()));
using Backward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

// The weights of a call: the parameters, or all of them packed.
struct Weights {
    const std::vector<Tensor>& parameters;
    const std::optional<Tensor>& packed;
};

// What resampling draws with, uniforms (T, B / particles, particles), and the share of the particles below which it
// does.
struct Resampling {
    const std::optional<Tensor>& uniforms;
    double threshold;
};

// What a forward pass gives beside its results: `saved_size` elements for backward, 0 for none.
struct ForwardWant {
    int64_t saved_size;
    bool recompute, prior, raw;
};

template <class T>
Forward forward_of(const Known& known, const Batch& batch, const Weights& weights, const Resampling& resampling,
                   const ForwardWant& want) {
    const auto& [parameters, packed] = weights;
    const std::vector<Tensor>& state = batch.state;
    Build& build = packed ? build_of<T>(*packed, known) : chosen_build();
    const int64_t steps = batch.x.size(0), particles = particles_of(resampling.uniforms);
    Call<T> call(known, build, steps, batch.x.size(1), batch.given.lengths, particles);
    Launch<T>& launch = call.launch;
    const bool resamples = resampling.uniforms.has_value();
    const int64_t groups = resamples ? resampling.uniforms->size(1) : 0;
    const Tensor ancestors =
        torch::stable::new_empty(batch.x, {resamples ? steps : 0, groups, particles}, ScalarType::Long);
    std::optional<Tensor> uniforms;
    if (resamples) {
        uniforms = dense(*resampling.uniforms);
        launch.uniforms = particles_in<const T>(*uniforms);
        launch.ancestors = particles_in<int64_t>(ancestors);
        launch.threshold = resampling.threshold;
    }
    call.start_from(state);
    call.read(batch.given);
    launch.ranges = &profiled;
    const Tensor x = with_dense_rows(batch.x), eps = with_dense_rows(batch.eps);
    launch.x = steps_of<const T>(x);
    launch.eps = steps_of<const T>(eps);

    const bool save = want.saved_size > 0;
    const Fresh<T> fresh(x);
    const Tensor saved = fresh.filled(recycled(x, save ? want.saved_size + known.packed_size() : 0));
    if (save) call.keep(data<T>(saved), want.saved_size, want.recompute);
    Outputs found;
    for_outputs([&](Output o) {
        const bool prior = o == Output::prior_mean || o == Output::prior_std;
        const bool wanted = prior ? want.prior : o != Output::raw || want.raw;
        Tensor& own = found[static_cast<size_t>(o)];
        own = is_scalar(o) ? fresh({x.size(0), x.size(1)}) : fresh.per_step(known.width(o), wanted);
        if (wanted) launch.outputs[o] = steps_of<T>(own);
    });
    std::vector<Tensor> final_state;
    for (size_t i = 0; i < state.size(); ++i) {
        final_state.push_back(fresh({state[i].size(0), state[i].size(1)}));
        launch.final_state[i] = data<T>(final_state.back());
    }
    call.reserve_scratch(packed || save ? 0 : known.weights(), false);
    std::optional<Parameters<T>> read;
    if (packed) {
        launch.packed = data<T>(*packed);
    } else {
        read.emplace(call.program, parameters, x);
        launch.unpacked = call.has_few_rows();
        if (save)
            call.pack_to(data<T>(saved) + want.saved_size, known, *read,
                         call_digest<T>(batch, launch.particles, want.saved_size, want.recompute));
        else
            call.pack(*read, false);
    }
    call.for_shards([&](int64_t s) { call.kernels.forward(launch, s); });
    call.build.count(LaunchKind::forward);
    return std::tuple_cat(found, std::make_tuple(final_state, ancestors, saved));
}

// The gradients that reach a forward pass, of the outputs numbered in `slots`.
struct Reaching {
    const std::vector<Tensor>& gradients;
    const std::vector<int64_t>& slots;
};

// What forward left for backward: `saved`, and the ancestors of a particle filter.
struct Saved {
    const Tensor& values;
    bool recompute;
    const std::optional<Tensor>& ancestors;
};

// Whose gradients are asked for, beside those of state and parameters.
struct BackwardWant {
    bool x, eps, cond;
};

template <class T>
Backward backward_of(const Known& known, const Reaching& reaching, const Batch& batch,
                     const std::vector<Tensor>& parameters_in, const Saved& forward, const BackwardWant& want) {
    const auto& [upstream, slots] = reaching;
    const auto& [saved, recompute, ancestors] = forward;
    const std::vector<Tensor>& state = batch.state;
    check(saved, "saved", batch.x.scalar_type());
    const int64_t saved_size = saved.numel() - known.packed_size(), particles = particles_of(ancestors);
    const int64_t steps = batch.x.size(0), rows = batch.x.size(1);
    STD_TORCH_CHECK(saved_size > 0 && saved.dim() == 1 && saved.is_contiguous(), "saved is not what forward saved");
    T* const packed = data<T>(saved) + saved_size;
    const Label<T> label(packed + known.weights());
    const int64_t shards = label.shards(call_digest<T>(batch, particles, saved_size, recompute), rows);
    Call<T> call(known, label.build(known.digest), steps, rows, batch.given.lengths, particles, shards);
    Launch<T>& launch = call.launch;
    if (ancestors) launch.ancestors = particles_in<int64_t>(*ancestors);
    const Parameters<T> parameters(call.program, parameters_in, batch.x);
    call.start_from(state);
    call.read(batch.given);
    call.keep(data<T>(saved), saved_size, recompute);
    launch.ranges = &profiled;
    const Tensor x = with_dense_rows(batch.x), eps = with_dense_rows(batch.eps);
    launch.x = steps_of<const T>(x);
    launch.eps = steps_of<const T>(eps);

    STD_TORCH_CHECK(upstream.size() == slots.size(), "slots must number each of ", upstream.size(),
                    " upstream gradients, got ", slots.size());
    std::vector<Tensor> gradients;
    PerOutput<bool> given_gradients{};
    bool on_state = false, reached[most_buffers];
    for (size_t i = 0; i < upstream.size(); ++i) {
        const int64_t slot = slots[i];
        STD_TORCH_CHECK(std::find(slots.begin(), slots.begin() + i, slot) == slots.begin() + i,
                        "slots must number each ", "output once, got ", slot, " twice");
        STD_TORCH_CHECK(slot >= 0 && slot < outputs + static_cast<int64_t>(state.size()), "no output ", slot);
        const auto check_shape = [&](const Shape& sizes) {
            check(upstream[i], "an upstream gradient", x.scalar_type(), sizes);
        };
        if (slot >= outputs) {
            check_shape({rows, known.width(buffer_state)});
            gradients.push_back(dense(upstream[i]));
            launch.d_final_state[slot - outputs] = data<T>(gradients.back());
            on_state = true;
            continue;
        }
        const auto o = static_cast<Output>(slot);
        is_scalar(o) ? check_shape({steps, rows}) : check_shape({steps, rows, known.width(o)});
        gradients.push_back(with_dense_rows(upstream[i]));
        launch.upstream[o] = steps_of<const T>(gradients.back());
        given_gradients[o] = true;
    }
    reach(call.program, given_gradients, on_state, reached);
    launch.reached = reached;

    const Fresh<T> fresh(x);
    const Tensor d_x = fresh.per_step(x.size(2), want.x), d_eps = fresh.per_step(eps.size(2), want.eps);
    if (want.x) launch.d_x = steps_of<T>(d_x);
    if (want.eps) launch.d_eps = steps_of<T>(d_eps);
    const std::optional<Tensor>& cond = batch.given.cond;
    const Tensor d_cond = cond ? fresh.per_step(cond->size(2), want.cond) : fresh({0});
    if (want.cond) launch.d_cond = steps_of<T>(d_cond);
    std::vector<Tensor> d_state, d_parameters;
    for (size_t i = 0; i < state.size(); ++i) {
        d_state.push_back(fresh({state[i].size(0), state[i].size(1)}));
        launch.d_state[i] = data<T>(d_state.back());
    }
    std::vector<T*> d_parameter_data;
    d_parameters.reserve(parameters.tensors.size());
    d_parameter_data.reserve(parameters.tensors.size());
    for (const Tensor& p : parameters.tensors) {
        d_parameters.push_back(p.dim() == 2 ? fresh({p.size(0), p.size(1)}) : fresh({p.size(0)}));
        d_parameter_data.push_back(data<T>(d_parameters.back()));
    }
    launch.d_parameters = d_parameter_data.data();

    call.reserve_scratch(call.program.packed_size, true);
    launch.packed_backward = launch.packed;
    launch.packed = packed;
    launch.unpacked = call.has_few_rows();
    call.pack(parameters, true);
    // In the order of shards, and so the same sum every time: of few, whoever finishes last adds all up, without a
    // second parallel region; of many, that one would take longer than its own shard.
    const int64_t parts = launch.shards.size;
    const bool by_one = parts <= tuning::summed_by_one;
    std::atomic<int64_t> running{parts};
    call.for_shards([&](int64_t s) {
        call.kernels.backward(launch, s);
        if (--running == 0 && by_one) call.kernels.reduce(launch, 0, 1);
    });
    if (!by_one) call.for_shards([&](int64_t s) { call.kernels.reduce(launch, s, parts); });
    call.build.count(LaunchKind::backward);
    return {d_x, d_eps, d_cond, d_state, d_parameters};
}

// nll, kl (T, B); z, mean, std, prior_mean, prior_std (T, B, Z); raw (T, B, output); state (B, H) each; ancestors, as
// uniforms (T, B / particles, particles); saved (opaque). What is not wanted has no elements.
// The weights come as parameters, or packed.
Forward forward(Tensor x, Tensor eps, std::optional<Tensor> cond, std::optional<Tensor> lengths,
                std::optional<Tensor> resets, std::optional<Tensor> mask, std::optional<Tensor> uniforms,
                std::vector<Tensor> state, std::vector<Tensor> parameters, std::optional<Tensor> packed,
                std::vector<int64_t> program, std::vector<double> constants, int64_t saved_size, bool recompute,
                bool want_prior, bool want_raw, double threshold) {
    const auto held = ops::known(program, constants, static_cast<int64_t>(parameters.size()));
    const Known& known = *held;
    check_infers(known);
    packed ? check_packed(*packed, known, x) : check_count(parameters, known);
    const Batch batch{x, eps, {cond, lengths, resets, mask}, state};
    check_batch(known, "x", batch);
    check_particles(uniforms, "uniforms", x.scalar_type(), known, x);
    STD_TORCH_CHECK(saved_size <= most_elements - known.packed_size(), "saved_size must be at most ",
                    most_elements - known.packed_size(), ", got ", saved_size);
    const auto call = x.scalar_type() == ScalarType::Double ? forward_of<double> : forward_of<float>;
    return call(known, batch, {parameters, packed}, {uniforms, threshold},
                {saved_size, recompute, want_prior, want_raw});
}

// upstream: the gradients that there are, of the outputs numbered in `slots` in the order of forward's results.
Backward backward(std::vector<Tensor> upstream, std::vector<int64_t> slots, Tensor x, Tensor eps,
                  std::optional<Tensor> cond, std::optional<Tensor> lengths, std::optional<Tensor> resets,
                  std::optional<Tensor> mask, std::vector<Tensor> state, std::vector<Tensor> parameters,
                  std::optional<Tensor> ancestors, Tensor saved, std::vector<int64_t> program,
                  std::vector<double> constants, bool recompute, bool want_x, bool want_eps, bool want_cond) {
    const auto held = ops::known(program, constants, static_cast<int64_t>(parameters.size()));
    const Known& known = *held;
    check_infers(known);
    check_count(parameters, known);
    const Batch batch{x, eps, {cond, lengths, resets, mask}, state};
    check_batch(known, "x", batch);
    check_particles(ancestors, "ancestors", ScalarType::Long, known, x);
    if (ancestors) check_ancestors(*ancestors);
    STD_TORCH_CHECK(!want_cond || cond, "want_cond asks for the gradient of a cond that is not given");
    const auto call = x.scalar_type() == ScalarType::Double ? backward_of<double> : backward_of<float>;
    return call(known, {upstream, slots}, batch, parameters, {saved, recompute, ancestors},
                {want_x, want_eps, want_cond});
}

using Generated = std::tuple<Tensor, std::vector<Tensor>>;

template <class T>
Generated generate_of(const Known& known, const Batch& batch, const Weights& weights) {
    const auto& [parameters, packed] = weights;
    const std::vector<Tensor>& state = batch.state;
    Build& build = packed ? build_of<T>(*packed, known) : chosen_build();
    const int64_t steps = batch.x.size(0), rows = batch.x.size(1), input = batch.x.size(2);
    Call<T> call(known, build, steps, rows, batch.given.lengths);
    Launch<T>& launch = call.launch;
    call.start_from(state);
    call.read(batch.given);
    const Tensor eps = with_dense_rows(batch.eps), noise = with_dense_rows(batch.x);
    launch.eps = steps_of<const T>(eps);
    launch.noise = steps_of<const T>(noise);
    const Fresh<T> fresh(noise);
    const Tensor drawn = fresh({steps, rows, input});
    launch.drawn = steps_of<T>(drawn);
    std::vector<Tensor> final_state;
    for (size_t i = 0; i < state.size(); ++i) {
        final_state.push_back(fresh({rows, known.width(buffer_state)}));
        launch.final_state[i] = data<T>(final_state.back());
    }
    call.reserve_scratch(packed ? 0 : known.weights(), false);
    if (packed)
        launch.packed = data<T>(*packed);
    else
        call.pack(Parameters<T>(call.program, parameters, noise), false);
    call.for_shards([&](int64_t s) { call.kernels.forward(launch, s); });
    call.build.count(LaunchKind::generate);
    return {drawn, final_state};
}

// A cell that runs on its own: eps (T, B, Z) and noise (T, B, X) -> x (T, B, X), state (B, H) each.
Generated generate(Tensor eps, Tensor noise, std::optional<Tensor> cond, std::vector<Tensor> state,
                   std::vector<Tensor> parameters, std::optional<Tensor> packed, std::vector<int64_t> program,
                   std::vector<double> constants) {
    const auto held = ops::known(program, constants, static_cast<int64_t>(parameters.size()));
    const Known& known = *held;
    STD_TORCH_CHECK(known.draws(), "the program does not generate");
    packed ? check_packed(*packed, known, noise) : check_count(parameters, known);
    const std::optional<Tensor> none;
    const Batch batch{noise, eps, {cond, none, none, none}, state};
    check_batch(known, "noise", batch);
    const auto call = noise.scalar_type() == ScalarType::Double ? generate_of<double> : generate_of<float>;
    return call(known, batch, {parameters, packed});
}

template <class T>
Tensor pack_of(const Known& known, const std::vector<Tensor>& given) {
    const Parameters<T> parameters(known.decoded.program, given, given.front());
    const Tensor packed = empty(given.front(), {known.packed_size()});
    Call<T>(known, chosen_build(), 1, 1, std::nullopt).pack_to(data<T>(packed), known, parameters);
    return packed;
}

// The weights in one tensor, as the build reads them that is chosen now.
Tensor pack(std::vector<Tensor> parameters, int64_t number) {
    const auto held = programs[number];
    const Known& known = *held;
    check_count(parameters, known);
    const auto of =
        precision(parameters.front(), "a parameter") == ScalarType::Double ? pack_of<double> : pack_of<float>;
    return of(known, parameters);
}

// ---- single steps

using Step = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

template <class T>
Step step_of(const Known& known, const Tensor& packed, const Tensor& x_in, const Tensor& eps_in,
             const std::vector<Tensor>& state, bool want_raw) {
    const int64_t batch = x_in.size(0), output = known.width(Output::raw), hidden = known.width(buffer_state);
    Call<T> call(known, build_of<T>(packed, known), 1, batch, std::nullopt);
    Launch<T>& launch = call.launch;
    call.start_from(state);
    const Tensor x = dense(x_in), eps = dense(eps_in);
    const Tensor nll = empty(x, {batch}), kl = empty(x, {batch});
    const Tensor raw = empty(x, {want_raw ? batch : 0, output}), predicted = empty(x, {batch, output});
    std::vector<Tensor> final_state;
    for (size_t i = 0; i < state.size(); ++i) {
        final_state.push_back(empty(x, {1, batch, hidden}));
        launch.final_state[i] = data<T>(final_state.back());
    }
    launch.x = {data<T>(x), 0, x.size(1)};
    launch.eps = {data<T>(eps), 0, eps.size(1)};
    launch.outputs[Output::nll] = {data<T>(nll), 0, 1};
    launch.outputs[Output::kl] = {data<T>(kl), 0, 1};
    if (want_raw) launch.outputs[Output::raw] = {data<T>(raw), 0, output};
    launch.predicted = {data<T>(predicted), 0, output};
    call.reserve_scratch(0, false);
    launch.packed = data<T>(packed);
    call.for_shards([&](int64_t s) { call.kernels.forward(launch, s); });
    call.build.count(LaunchKind::step);
    return {nll, kl, raw, predicted, final_state};
}

// One time step: x (B, X), eps (B, Z), state (1, B, H) each -> nll, kl (B); raw (B, output), of z and at the prior's
// mean; state. What is not wanted has no elements.
Step step(Tensor packed, int64_t number, Tensor x, Tensor eps, std::vector<Tensor> state, bool want_raw) {
    const auto held = programs[number];
    const Known& known = *held;
    check_infers(known);
    STD_TORCH_CHECK(!known.resamples() && !known.conditioned(),
                    "a single step resamples no particles and takes no cond: call " VRNN_FAST_OPERATOR("forward"));
    const ScalarType dtype = precision(x, "x");
    STD_TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
    const int64_t batch = x.size(0);
    check_packed(packed, known, x);
    check(x, "x", dtype, {batch, known.width(buffer_x)});
    check(eps, "eps", dtype, {batch, known.width(buffer_eps)});
    check_states(state, known, dtype, {1, batch, known.width(buffer_state)});
    const auto of = dtype == ScalarType::Double ? step_of<double> : step_of<float>;
    return of(known, packed, x, eps, state, want_raw);
}

// ---- what Python asks about programs, launches and parameters

int64_t program_number(std::vector<int64_t> program, std::vector<double> constants, int64_t parameters) {
    return programs.number(program, constants, parameters);
}
int64_t hold_program(std::vector<int64_t> program, std::vector<double> constants, int64_t parameters) {
    return programs.hold(program, constants, parameters);
}
int64_t release_program(int64_t number) {
    return programs.release(number);
}
int64_t packed_size(int64_t number) {
    return programs[number]->packed_size();
}
int64_t output_width(int64_t number) {
    return programs[number]->width(Output::raw);
}

// Multiplications and additions of the dense stages, of one row and time step forward: of all, of those that read x, of
// those that read cond, and of those that a single step runs again for its prediction.
std::vector<int64_t> flops(int64_t number) {
    const auto held = programs[number];
    const Program& program = held->decoded.program;
    int64_t all = 0, of_x = 0, of_cond = 0, again = 0;
    bool repeated = false;  // what follows on z alone
    for (const Stage& s : program.stages) {
        if (s.target.buffer == program.gates) repeated = false;
        if (&s == program.sample || &s == program.divergence) repeated = true;
        if (s.op != Op::dense) continue;
        const int64_t own = 2 * s.source.width * s.target.width;
        all += own;
        if (s.source.buffer == buffer_x) of_x += own;
        if (s.source.buffer == program.cond) of_cond += own;
        if (repeated) again += own;
    }
    return {all, of_x, of_cond, again};
}

int64_t release_memory() {
    return static_cast<int64_t>(Blocks::all().release());
}

std::vector<int64_t> launch_counts() {
    std::vector<int64_t> counts;
    for (const Build& build : builds)
        for (const std::atomic<int64_t>& n : build.launches) counts.push_back(n.load());
    return counts;
}

std::mutex watches_mutex;
std::map<int64_t, std::shared_ptr<const Watch>> watches;

int64_t watch(std::vector<Tensor> tensors) {
    auto made = std::make_shared<const Watch>(tensors);
    const std::lock_guard<std::mutex> guard(watches_mutex);
    const int64_t number = watches.empty() ? 0 : watches.rbegin()->first + 1;
    watches.emplace(number, std::move(made));
    return number;
}

bool unchanged(int64_t number, bool thorough) {
    std::shared_ptr<const Watch> found;
    {
        const std::lock_guard<std::mutex> guard(watches_mutex);
        const auto at = watches.find(number);
        STD_TORCH_CHECK(at != watches.end(), "there is no watch ", number);
        found = at->second;
    }
    return found->unchanged(thorough);
}

int64_t unwatch(int64_t number) {
    std::shared_ptr<const Watch> last;  // its tensors are freed outside the lock
    const std::lock_guard<std::mutex> guard(watches_mutex);
    const auto at = watches.find(number);
    STD_TORCH_CHECK(at != watches.end(), "there is no watch ", number);
    last = std::move(at->second);
    watches.erase(at);
    return static_cast<int64_t>(watches.size());
}

}  // namespace

VRNN_FAST_LIBRARY(VRNN_FAST_NAMESPACE, m) {
    m.def(
        "forward(Tensor x, Tensor eps, Tensor? cond, Tensor? lengths, Tensor? resets, Tensor? mask, Tensor? uniforms, "
        "Tensor[] state, Tensor[] parameters, Tensor? packed, int[] program, float[] constants, SymInt saved_size, "
        "bool recompute, bool want_prior, bool want_raw, float threshold) -> (Tensor nll, Tensor kl, Tensor z, "
        "Tensor mean, Tensor std, Tensor prior_mean, Tensor prior_std, Tensor raw, Tensor[] state, Tensor ancestors, "
        "Tensor saved)");
    m.def(
        "backward(Tensor[] upstream, int[] slots, Tensor x, Tensor eps, Tensor? cond, Tensor? lengths, Tensor? resets, "
        "Tensor? mask, Tensor[] state, Tensor[] parameters, Tensor? ancestors, Tensor saved, int[] program, "
        "float[] constants, bool recompute, bool want_x, bool want_eps, bool want_cond) -> (Tensor d_x, Tensor d_eps, "
        "Tensor d_cond, Tensor[] d_state, Tensor[] d_parameters)");
    m.def(
        "generate(Tensor eps, Tensor noise, Tensor? cond, Tensor[] state, Tensor[] parameters, Tensor? packed, "
        "int[] program, float[] constants) -> (Tensor x, Tensor[] state)");
    m.def("program_number(int[] program, float[] constants, int parameters) -> int");
    m.def("hold_program(int[] program, float[] constants, int parameters) -> int");
    m.def("release_program(int number) -> int");
    m.def("packed_size(int number) -> int");
    m.def("output_width(int number) -> int");
    m.def("flops(int number) -> int[]");
    m.def("pack(Tensor[] parameters, int number) -> Tensor");
    m.def(
        "step(Tensor packed, int number, Tensor x, Tensor eps, Tensor[] state, bool want_raw) -> (Tensor nll, "
        "Tensor kl, Tensor raw, Tensor predicted, Tensor[] state)");
    m.def("watch(Tensor[] tensors) -> int");
    m.def("unchanged(int watch, bool thorough) -> bool");
    m.def("unwatch(int watch) -> int");
    m.def("release_memory() -> int");
    m.def("launch_counts() -> int[]");
    m.def("chosen_isa() -> str");
}

VRNN_FAST_LIBRARY_IMPL(VRNN_FAST_NAMESPACE, CPU, m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("backward", TORCH_BOX(&backward));
    m.impl("generate", TORCH_BOX(&generate));
    m.impl("pack", TORCH_BOX(&pack));
    m.impl("step", TORCH_BOX(&step));
    m.impl("watch", TORCH_BOX(&watch));
}

VRNN_FAST_LIBRARY_IMPL(VRNN_FAST_NAMESPACE, CompositeExplicitAutograd, m) {
    m.impl("program_number", TORCH_BOX(&program_number));
    m.impl("hold_program", TORCH_BOX(&hold_program));
    m.impl("release_program", TORCH_BOX(&release_program));
    m.impl("packed_size", TORCH_BOX(&packed_size));
    m.impl("output_width", TORCH_BOX(&output_width));
    m.impl("flops", TORCH_BOX(&flops));
    m.impl("unchanged", TORCH_BOX(&unchanged));
    m.impl("unwatch", TORCH_BOX(&unwatch));
    m.impl("release_memory", TORCH_BOX(&release_memory));
    m.impl("launch_counts", TORCH_BOX(&launch_counts));
    m.impl("chosen_isa", TORCH_BOX(&chosen_isa));
}

}  // namespace vrnn::ops
