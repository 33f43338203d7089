// The torch operators: all schemas in one block, autograd and fake kernels beside their callers in vrnn_fast/ops.py.
// Only LibTorch's stable ABI is used, so one build serves torch 2.10 and every later one.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/decode.h"
#include "cpu/engine.h"
#include "cpu/features.h"
#include "cpu/launch.h"
#include "cpu/tuning.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using vrnn::DecodedProgram;
using vrnn::Isa;
using vrnn::Launch;
using vrnn::Shard;
using vrnn::Steps;

// ---- which build of the kernels runs, and how often it ran

struct Build {
    const Isa* isa;
    std::atomic<int64_t> launches[2];  // forward, backward
};

Build builds[] = {
    {&vrnn::isa_baseline, {}},
#ifdef VRNN_X86
    {&vrnn::isa_avx2, {}},
    {&vrnn::isa_avx512, {}},
#endif
};

Build& chosen_build() {
    const Isa& isa = vrnn::chosen_kernels();
    Build* build = builds;
    while (build->isa != &isa) ++build;
    return *build;
}

std::vector<int64_t> launch_counts() {
    std::vector<int64_t> counts;
    for (const Build& build : builds)
        for (const std::atomic<int64_t>& n : build.launches) counts.push_back(n.load());
    return counts;
}

// ---- tensors

template <class T>
T* data(const Tensor& t) {
    return static_cast<T*>(t.data_ptr());
}

Tensor with_dense_rows(const Tensor& t) {
    return t.dim() < 3 || t.size(2) == 1 || t.stride(2) == 1 ? t : torch::stable::contiguous(t);
}

template <class T>
Steps<T> steps_of(const Tensor& t) {
    return {data<std::remove_const_t<T>>(t), t.stride(0), t.stride(1)};
}

Tensor per_step(const Tensor& like, int64_t width, bool wanted) {
    return torch::stable::new_empty(like, {wanted ? like.size(0) : 0, wanted ? like.size(1) : 0, width});
}

void check(const Tensor& t, const char* name, const Tensor& like, int64_t dim) {
    STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
    STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the dtype of x");
    STD_TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}

// ---- the deal of sequences to shards

class Deal {
  public:
    Deal(int64_t steps, int64_t batch, const int64_t* lengths, double flops_per_row) {
        std::vector<int64_t> length(batch, steps), order(batch);
        if (lengths)
            for (int64_t b = 0; b < batch; ++b) {
                STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= steps, "lengths must be in 0 to ", steps, ", got ",
                                lengths[b]);
                length[b] = lengths[b];
            }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
        const double rows = static_cast<double>(std::accumulate(length.begin(), length.end(), int64_t{0}));
        const int64_t worth = static_cast<int64_t>(flops_per_row * rows / vrnn::tuning::flops_per_thread);
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t count = std::max<int64_t>(1, std::min({threads, batch, worth}));
        storage_.resize(count);
        int64_t first_row = 0;
        for (int64_t s = 0; s < count; ++s) {
            Storage& own = storage_[s];
            for (int64_t i = s; i < batch; i += count) {  // in turns: every shard gets long and short ones
                own.sequence.push_back(order[i]);
                own.length.push_back(length[order[i]]);
            }
            const int64_t own_steps = own.length.empty() ? 0 : own.length.front();
            own.active.assign(own_steps + 1, 0);
            for (const int64_t n : own.length)
                for (int64_t t = 0; t < n; ++t) ++own.active[t];
            own.offset.assign(own_steps + 1, 0);
            for (int64_t t = 0; t < own_steps; ++t) own.offset[t + 1] = own.offset[t] + own.active[t];
            shards_.push_back({static_cast<int64_t>(own.sequence.size()), own.sequence.data(), own.length.data(),
                               own_steps, own.active.data(), own.offset.data(), first_row});
            first_row += own.offset[own_steps];
        }
    }
    Deal(const Deal&) = delete;
    Deal& operator=(const Deal&) = delete;

    vrnn::Span<Shard> shards() const { return {shards_.data(), static_cast<int64_t>(shards_.size())}; }
    int64_t most_sequences() const { return shards_.front().sequences; }

  private:
    struct Storage {
        std::vector<int64_t> sequence, length, active, offset;
    };
    std::vector<Storage> storage_;
    std::vector<Shard> shards_;
};

// ---- a call, from tensors to pointers

// The inputs of a call that it may lack: lengths (B) int64; cond (T, B, C); resets (T, B) and mask (T, B, X) bool.
struct Optionals {
    const std::optional<Tensor>&cond, &lengths, &resets, &mask;
};

// What forward and backward have in common. Keeps alive what the launch points to.
template <class T>
struct Call {
    DecodedProgram decoded;
    Deal deal;
    std::vector<Tensor> state, parameters;
    std::vector<const T*> parameter_data;
    std::vector<int64_t> columns, saved_offset;
    Tensor x, eps, scratch, packed;
    std::optional<Tensor> cond, resets, mask;
    Launch<T> launch{};

    Call(const Tensor& x_in, const Tensor& eps_in, const Optionals& given, const std::vector<Tensor>& state_in,
         const std::vector<Tensor>& parameters_in, const std::vector<int64_t>& code,
         const std::vector<double>& constants, bool save, bool recompute)
        : decoded(code, constants, static_cast<int64_t>(parameters_in.size())),
          deal(x_in.size(0), x_in.size(1), given.lengths ? data<const int64_t>(*given.lengths) : nullptr,
               decoded.flops_per_row),
          x(with_dense_rows(x_in)),
          eps(with_dense_rows(eps_in)) {
        const vrnn::Program& program = decoded.program;
        for (const Tensor& s : state_in) {
            check(s, "state", x, 2);
            state.push_back(torch::stable::contiguous(s));
        }
        for (const Tensor& p : parameters_in) {
            check(p, "a parameter", x, p.dim());
            parameters.push_back(torch::stable::contiguous(p));
            parameter_data.push_back(data<T>(parameters.back()));
            columns.push_back(p.dim() == 2 ? p.size(1) : 1);
        }
        check_blocks();
        launch.program = &program;
        launch.steps = x.size(0);
        launch.batch = x.size(1);
        launch.shards = deal.shards();
        launch.x = steps_of<const T>(x);
        launch.eps = steps_of<const T>(eps);
        if (given.cond.has_value() != (program.cond >= 0))
            throw std::invalid_argument("cond must be given where the program has it, and nowhere else");
        if (given.cond) launch.cond = kept<const T>(cond, *given.cond);
        if (given.resets) launch.resets = kept<const bool>(resets, *given.resets);
        if (given.mask) launch.mask = kept<const bool>(mask, *given.mask);
        STD_TORCH_CHECK(static_cast<int64_t>(state.size()) == program.states, "state must be ", program.states,
                        " tensors, got ", state.size());
        for (size_t i = 0; i < state.size(); ++i) launch.state[i] = data<T>(state[i]);
        launch.parameters = parameter_data.data();
        launch.columns = columns.data();
        int64_t used = 0;
        for (int64_t b = 0; b < program.buffers.size; ++b) {
            const bool in_saved =
                save && program.buffers[b].keep >= (recompute ? vrnn::Keep::always : vrnn::Keep::stored);
            saved_offset.push_back(in_saved ? used : -1);
            if (in_saved) used += launch.steps * launch.batch * program.buffers[b].stride;
        }
        launch.saved_offset = saved_offset.data();
    }

    void allocate(const vrnn::Kernels<T>& kernels, bool backward) {
        launch.scratch_size = kernels.scratch_size(launch, deal.most_sequences(), backward);
        scratch = torch::stable::new_empty(x, {launch.scratch_size * launch.shards.size});
        launch.scratch = data<T>(scratch);
        const vrnn::Program& program = decoded.program;
        const int64_t forward_size = program.packed_size + program.bias_size;
        packed = torch::stable::new_empty(x, {forward_size + (backward ? program.packed_size : 0)});
        launch.packed = data<T>(packed);
        launch.packed_backward = launch.packed + forward_size;
        kernels.pack(launch, false);
        if (backward) kernels.pack(launch, true);
    }

  private:
    template <class U>
    static Steps<U> kept(std::optional<Tensor>& own, const Tensor& given) {
        own = with_dense_rows(given);
        return steps_of<U>(*own);
    }
    void check_blocks() const {
        const auto inside = [&](int64_t p, int64_t row, int64_t rows, int64_t column, int64_t width) {
            const Tensor& t = parameters[p];
            STD_TORCH_CHECK(row >= 0 && row + rows <= t.size(0) && column >= 0 && column + width <= columns[p],
                            "parameter ", p, " is smaller than the program says");
        };
        const vrnn::Program& program = decoded.program;
        for (const vrnn::Span<vrnn::Stage>& part : {program.before, program.scan, program.after})
            for (const vrnn::Stage& s : part) {
                for (const vrnn::Block& b : s.blocks) inside(b.parameter, b.row, b.rows, b.column, s.source.width);
                for (const vrnn::Term& t : s.terms) inside(t.parameter, t.row, t.rows, 0, 1);
            }
    }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

template <class T>
Forward forward_of(const Tensor& x, const Tensor& eps, const Optionals& given, const std::vector<Tensor>& state,
                   const std::vector<Tensor>& parameters, const std::vector<int64_t>& code,
                   const std::vector<double>& constants, int64_t saved_size, bool recompute, bool want_prior,
                   bool want_raw) {
    Build& build = chosen_build();
    const vrnn::Kernels<T>& k = build.isa->template kernels<T>();
    Call<T> call(x, eps, given, state, parameters, code, constants, saved_size > 0, recompute);
    Launch<T>& launch = call.launch;
    const vrnn::Program& program = *launch.program;
    const int64_t latent = eps.size(2), output = program.after[program.after.size - 1].source.width;

    const Tensor saved = torch::stable::new_empty(x, {saved_size});
    launch.saved = data<T>(saved);
    const auto scalars = [&] { return torch::stable::new_empty(x, {x.size(0), x.size(1)}); };
    const Tensor nll = scalars(), kl = scalars();
    const Tensor z = per_step(x, latent, true), mean = per_step(x, latent, true), std = per_step(x, latent, true);
    const Tensor prior_mean = per_step(x, latent, want_prior), prior_std = per_step(x, latent, want_prior);
    const Tensor raw = per_step(x, output, want_raw);
    std::vector<Tensor> final_state;
    for (size_t i = 0; i < state.size(); ++i) {
        final_state.push_back(torch::stable::new_empty(x, {state[i].size(0), state[i].size(1)}));
        launch.final_state[i] = data<T>(final_state.back());
    }
    launch.nll = steps_of<T>(nll);
    launch.kl = steps_of<T>(kl);
    launch.z = steps_of<T>(z);
    launch.mean = steps_of<T>(mean);
    launch.std = steps_of<T>(std);
    if (want_prior) {
        launch.prior_mean = steps_of<T>(prior_mean);
        launch.prior_std = steps_of<T>(prior_std);
    }
    if (want_raw) launch.raw = steps_of<T>(raw);

    call.allocate(k, false);
    torch::stable::parallel_for(0, launch.shards.size, 1, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) k.forward(launch, s);
    });
    ++build.launches[0];
    return {nll, kl, z, mean, std, prior_mean, prior_std, raw, final_state, saved};
}

template <class T>
Backward backward_of(const std::vector<Tensor>& upstream, const std::vector<int64_t>& slots, const Tensor& x,
                     const Tensor& eps, const Optionals& given, const std::vector<Tensor>& state,
                     const std::vector<Tensor>& parameters, const Tensor& saved, const std::vector<int64_t>& code,
                     const std::vector<double>& constants, bool recompute, bool want_x, bool want_eps, bool want_cond) {
    Build& build = chosen_build();
    const vrnn::Kernels<T>& k = build.isa->template kernels<T>();
    Call<T> call(x, eps, given, state, parameters, code, constants, true, recompute);
    Launch<T>& launch = call.launch;
    launch.saved = data<T>(saved);

    Steps<const T>* const per_step_slots[] = {&launch.d_nll, &launch.d_kl,         &launch.d_z,         &launch.d_mean,
                                              &launch.d_std, &launch.d_prior_mean, &launch.d_prior_std, &launch.d_raw};
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < upstream.size(); ++i) {
        const int64_t slot = slots.at(i);
        STD_TORCH_CHECK(slot >= 0 && slot < 8 + static_cast<int64_t>(state.size()), "no output ", slot);
        check(upstream[i], "an upstream gradient", x, slot < 2 || slot >= 8 ? 2 : 3);
        gradients.push_back(slot < 8 ? with_dense_rows(upstream[i]) : torch::stable::contiguous(upstream[i]));
        if (slot < 8)
            *per_step_slots[slot] = steps_of<const T>(gradients.back());
        else
            launch.d_final_state[slot - 8] = data<T>(gradients.back());
    }

    const Tensor d_x = per_step(x, x.size(2), want_x), d_eps = per_step(eps, eps.size(2), want_eps);
    if (want_x) launch.d_x = steps_of<T>(d_x);
    if (want_eps) launch.d_eps = steps_of<T>(d_eps);
    const Tensor d_cond =
        given.cond ? per_step(*given.cond, given.cond->size(2), want_cond) : torch::stable::new_empty(x, {0});
    if (want_cond) launch.d_cond = steps_of<T>(d_cond);
    std::vector<Tensor> d_state, d_parameters;
    for (size_t i = 0; i < state.size(); ++i) {
        d_state.push_back(torch::stable::new_empty(x, {state[i].size(0), state[i].size(1)}));
        launch.d_state[i] = data<T>(d_state.back());
    }
    std::vector<T*> d_parameter_data;
    for (const Tensor& p : call.parameters) {
        if (p.dim() == 2)
            d_parameters.push_back(torch::stable::new_empty(x, {p.size(0), p.size(1)}));
        else
            d_parameters.push_back(torch::stable::new_empty(x, {p.size(0)}));
        d_parameter_data.push_back(data<T>(d_parameters.back()));
    }
    launch.d_parameters = d_parameter_data.data();
    const Tensor weight_gradients = torch::stable::new_empty(x, {launch.program->gradient_size * launch.shards.size});
    launch.weight_gradients = data<T>(weight_gradients);

    call.allocate(k, true);
    // Whoever finishes last adds up all shards, in their order: no second parallel region, and the same sum every time.
    std::atomic<int64_t> running{launch.shards.size};
    torch::stable::parallel_for(0, launch.shards.size, 1, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
            k.backward(launch, s);
            if (--running == 0) k.reduce(launch);
        }
    });
    ++build.launches[1];
    return {d_x, d_eps, d_cond, d_state, d_parameters};
}

// nll, kl (T, B); z, mean, std, prior_mean, prior_std (T, B, Z); raw (T, B, output); state (B, H) each; saved (opaque).
// What is not wanted has no elements.
Forward forward(Tensor x, Tensor eps, std::optional<Tensor> cond, std::optional<Tensor> lengths,
                std::optional<Tensor> resets, std::optional<Tensor> mask, std::vector<Tensor> state,
                std::vector<Tensor> parameters, std::vector<int64_t> program, std::vector<double> constants,
                int64_t saved_size, bool recompute, bool want_prior, bool want_raw) {
    check(x, "x", x, 3);
    check(eps, "eps", x, 3);
    if (cond) check(*cond, "cond", x, 3);
    for (const auto& flags : {resets, mask})
        if (flags)
            STD_TORCH_CHECK(flags->is_cpu() && flags->scalar_type() == ScalarType::Bool,
                            "resets and mask must be CPU tensors of bool");
    const auto call = x.scalar_type() == ScalarType::Double ? forward_of<double> : forward_of<float>;
    return call(x, eps, {cond, lengths, resets, mask}, state, parameters, program, constants, saved_size, recompute,
                want_prior, want_raw);
}

// upstream: the gradients that there are, of the outputs numbered in `slots` in the order of forward's results.
Backward backward(std::vector<Tensor> upstream, std::vector<int64_t> slots, Tensor x, Tensor eps,
                  std::optional<Tensor> cond, std::optional<Tensor> lengths, std::optional<Tensor> resets,
                  std::optional<Tensor> mask, std::vector<Tensor> state, std::vector<Tensor> parameters, Tensor saved,
                  std::vector<int64_t> program, std::vector<double> constants, bool recompute, bool want_x,
                  bool want_eps, bool want_cond) {
    const auto call = x.scalar_type() == ScalarType::Double ? backward_of<double> : backward_of<float>;
    return call(upstream, slots, x, eps, {cond, lengths, resets, mask}, state, parameters, saved, program, constants,
                recompute, want_x, want_eps, want_cond);
}

}  // namespace

STABLE_TORCH_LIBRARY(vrnn_fast, m) {
    m.def(
        "forward(Tensor x, Tensor eps, Tensor? cond, Tensor? lengths, Tensor? resets, Tensor? mask, Tensor[] state, "
        "Tensor[] parameters, int[] program, "
        "float[] constants, SymInt saved_size, bool recompute, bool want_prior, bool want_raw) -> (Tensor nll, Tensor "
        "kl, "
        "Tensor z, Tensor mean, Tensor std, Tensor prior_mean, Tensor prior_std, Tensor raw, Tensor[] state, "
        "Tensor saved)");
    m.def(
        "backward(Tensor[] upstream, int[] slots, Tensor x, Tensor eps, Tensor? cond, Tensor? lengths, Tensor? resets, "
        "Tensor? mask, Tensor[] state, Tensor[] parameters, Tensor saved, int[] program, float[] constants, bool "
        "recompute, bool want_x, bool "
        "want_eps, bool want_cond) "
        "-> (Tensor d_x, Tensor d_eps, Tensor d_cond, Tensor[] d_state, Tensor[] d_parameters)");
    m.def("launch_counts() -> int[]");
    m.def("chosen_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(vrnn_fast, CPU, m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("backward", TORCH_BOX(&backward));
}

STABLE_TORCH_LIBRARY_IMPL(vrnn_fast, CompositeExplicitAutograd, m) {
    m.impl("launch_counts", TORCH_BOX(&launch_counts));
    m.impl("chosen_isa", TORCH_BOX(&vrnn::chosen_isa));
}
