// The torch operators: all schemas in one block, autograd and fake kernels beside their callers in vrnn_fast/ops.py.
// Only LibTorch's stable ABI is used, so one build serves torch 2.10 and every later one.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#ifdef __linux__
#    include <sys/mman.h>
#endif

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
    std::atomic<int64_t> launches[4];  // forward, backward, step, generate
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

// torch's own looks an operator up by its name, even where there is nothing to do.
Tensor dense(const Tensor& t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// For single steps, where new_empty takes as long as a layer. It is not filled in torch's deterministic mode.
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

using Sizes = std::initializer_list<int64_t>;

std::string in_words(std::vector<int64_t> sizes) {
    std::string words;
    for (const int64_t n : sizes) words += (words.empty() ? "" : ", ") + std::to_string(n);
    return "(" + words + ")";
}

std::vector<int64_t> shape(const Tensor& t) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
    return sizes;
}

const char* in_words(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Bool: return "bool";
        case ScalarType::Long: return "int64";
        case ScalarType::Double: return "float64";
        default: return "float32";
    }
}

// The precision of a call: float32 or float64.
ScalarType precision(const Tensor& t, const char* name) {
    const ScalarType dtype = t.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64");
    return dtype;
}

void check(const Tensor& t, const char* name, ScalarType dtype) {
    STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
    STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", in_words(dtype));
}

void check(const Tensor& t, const char* name, ScalarType dtype, const Sizes& sizes) {
    check(t, name, dtype);
    bool good = t.dim() == static_cast<int64_t>(sizes.size());
    for (int64_t d = 0; good && d < t.dim(); ++d) good = t.size(d) == sizes.begin()[d];
    STD_TORCH_CHECK(good, name, " must have shape ", in_words(sizes), ", got ", in_words(shape(t)));
}

// ---- the deal of sequences to shards

class Deal {
  public:
    // `group` adjacent sequences are of one length and stay together. `shards` is how many there must be, or 0 for as
    // many as torch has threads and the work is worth.
    Deal(int64_t steps, int64_t batch, const int64_t* lengths, double flops_per_row, int64_t group, int64_t shards) {
        STD_TORCH_CHECK(group > 0 && batch % group == 0, "a batch of ", batch, " has no groups of ", group);
        std::vector<int64_t> length(batch, steps), order(batch / group);
        if (lengths)
            for (int64_t b = 0; b < batch; ++b) {
                STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= steps, "lengths must be in 0 to ", steps, ", got ",
                                lengths[b]);
                STD_TORCH_CHECK(lengths[b] == lengths[b / group * group], "particles must be as long as each other");
                length[b] = lengths[b];
            }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return length[a * group] > length[b * group]; });
        const double rows = static_cast<double>(std::accumulate(length.begin(), length.end(), int64_t{0}));
        const int64_t worth = static_cast<int64_t>(flops_per_row * rows / vrnn::tuning::flops_per_thread);
        const int64_t threads = torch::stable::get_num_threads();
        const int64_t count = shards > 0 ? shards : std::max<int64_t>(1, std::min({threads, batch / group, worth}));
        storage_.resize(count);
        int64_t first_row = 0;
        for (int64_t s = 0; s < count; ++s) {
            Storage& own = storage_[s];
            for (int64_t i = s; i < batch / group; i += count)  // in turns: every shard gets long and short ones
                for (int64_t b = order[i] * group; b < (order[i] + 1) * group; ++b) {
                    own.sequence.push_back(b);
                    own.length.push_back(length[b]);
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

// ---- memory

// Where the system grants large pages on request, asks for them: one fault for every 2 MiB instead of every 4 KiB.
void in_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = uintptr_t{2} << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Room for a call's intermediate results, on the calling thread. Small rooms outlive the call: to touch fresh pages
// takes longer than what a short sequence computes.
class Room {
  public:
    void reserve(size_t bytes) {
        static thread_local Memory kept;
        if (bytes > vrnn::tuning::most_kept_bytes) {
            own_ = allocate(bytes);
            data_ = own_.get();
        } else {
            if (bytes > kept.bytes) kept = {allocate(bytes), bytes};
            data_ = kept.data.get();
        }
    }
    template <class T>
    T* data() const {
        return static_cast<T*>(data_);
    }

  private:
    static constexpr size_t alignment = 64;
    struct Free {
        void operator()(void* p) const { ::operator delete(p, std::align_val_t{alignment}); }
    };
    using Owned = std::unique_ptr<void, Free>;
    struct Memory {
        Owned data;
        size_t bytes = 0;
    };
    static Owned allocate(size_t bytes) {
        Owned data(::operator new(bytes, std::align_val_t{alignment}));
        in_large_pages(data.get(), bytes);
        return data;
    }

    Owned own_;
    void* data_ = nullptr;
};

// ---- programs

// A decoded program. Kept for good under a number, since a process runs few cells.
struct Known {
    int64_t parameters;
    DecodedProgram decoded;

    Known(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters)
        : parameters(parameters), decoded(code, constants, parameters) {}
    int64_t weights() const { return decoded.program.packed_size + decoded.program.bias_size; }
    // Behind the weights a line: the number of the build that they are packed for, and into how many shards the batch
    // of that call was dealt.
    int64_t packed_size() const { return weights() + vrnn::line; }
    int64_t width(int64_t buffer) const { return decoded.program.buffers[buffer].width; }
    int64_t output() const { return decoded.program.output->source.width; }
    bool draws() const { return decoded.program.output->op == vrnn::Op::draw; }
    bool resamples() const {
        const auto& scan = decoded.program.scan;
        return scan[scan.size - 1].op == vrnn::Op::resample;
    }
};

class KnownPrograms {
  public:
    int64_t number(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters) {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto [at, unknown] = numbers_.try_emplace({parameters, code, constants}, known_.size());
        if (unknown) try {
                known_.emplace_back(code, constants, parameters);
            } catch (...) {
                numbers_.erase(at);
                throw;
            }
        return at->second;
    }
    const Known& operator[](int64_t number) {
        const std::lock_guard<std::mutex> guard(mutex_);
        STD_TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(known_.size()), "there is no program ", number);
        return known_[number];
    }

  private:
    std::mutex mutex_;
    std::map<std::tuple<int64_t, std::vector<int64_t>, std::vector<double>>, int64_t> numbers_;
    std::deque<Known> known_;  // a deque: they stay where they are
};

KnownPrograms programs;

int64_t program_number(std::vector<int64_t> program, std::vector<double> constants, int64_t parameters) {
    return programs.number(program, constants, parameters);
}
int64_t packed_size(int64_t number) {
    return programs[number].packed_size();
}
int64_t output_width(int64_t number) {
    return programs[number].output();
}

// What calls take for a program: its whole code, or its number alone.
const Known& known(const std::vector<int64_t>& program, const std::vector<double>& constants, int64_t parameters) {
    return programs[program.size() == 1 ? program[0] : programs.number(program, constants, parameters)];
}

// ---- what profilers and counters are told

// A range costs some 50 ns where no profiler is watching.
const vrnn::Ranges profiled = {
    [](const char* name) -> void* {
        AtenRecordFunctionHandle range = nullptr;
        aoti_record_function_start(name, nullptr, nullptr, 0, &range);
        return range;
    },
    [](void* range) { aoti_record_function_end(static_cast<AtenRecordFunctionHandle>(range)); },
};

// Multiplications and additions of the dense stages, of one row and time step forward: of all, of those that read x, of
// those that read cond, and of those that a single step runs again for its prediction.
std::vector<int64_t> flops(int64_t number) {
    const vrnn::Program& program = programs[number].decoded.program;
    int64_t all = 0, of_x = 0, of_cond = 0, again = 0;
    bool repeated = false;  // what follows on z alone
    for (const vrnn::Stage& s : program.stages) {
        if (s.target.buffer == program.gates) repeated = false;
        if (&s == program.sample || &s == program.divergence) repeated = true;
        if (s.op != vrnn::Op::dense) continue;
        const int64_t own = 2 * s.source.width * s.target.width;
        all += own;
        if (s.source.buffer == vrnn::buffer_x) of_x += own;
        if (s.source.buffer == program.cond) of_cond += own;
        if (repeated) again += own;
    }
    return {all, of_x, of_cond, again};
}

// ---- a call, from tensors to pointers

// The parameters of a program, contiguous. Keeps alive what it points to.
template <class T>
struct Parameters {
    std::vector<Tensor> tensors;
    std::vector<const T*> data;
    std::vector<int64_t> columns;

    Parameters(const vrnn::Program& program, const std::vector<Tensor>& given, const Tensor& like) {
        for (const Tensor& p : given) {
            check(p, "a parameter", like.scalar_type());
            tensors.push_back(dense(p));
            data.push_back(::data<T>(tensors.back()));
            columns.push_back(p.dim() == 2 ? p.size(1) : 1);
        }
        for (const vrnn::Stage& s : program.stages) {
            for (const vrnn::Block& b : s.blocks) inside(b.parameter, b.row, b.rows, b.column, s.source.width);
            for (const vrnn::Term& t : s.terms) inside(t.parameter, t.row, t.rows, 0, 1);
        }
    }

  private:
    void inside(int64_t p, int64_t row, int64_t rows, int64_t column, int64_t width) const {
        STD_TORCH_CHECK(row >= 0 && row + rows <= tensors[p].size(0) && column >= 0 && column + width <= columns[p],
                        "parameter ", p, " is smaller than the program says");
    }
};

template <class T>
Build& build_of(const T* packed, const Known& known) {
    const T number = packed[known.weights()];
    STD_TORCH_CHECK(number >= 0 && number < std::size(builds), "the weights are not packed");
    return builds[static_cast<size_t>(number)];
}

// Into how many shards forward dealt what backward finds, however many threads there are by then.
template <class T>
int64_t shards_of(const T* packed, const Known& known, int64_t batch) {
    const T shards = packed[known.weights() + 1];
    STD_TORCH_CHECK(shards >= 1 && shards <= std::max<int64_t>(1, batch), "saved is not what forward saved");
    return static_cast<int64_t>(shards);
}

// The inputs of a call that it may lack: cond (T, B, C); lengths (B) int64; resets (T, B) and mask (T, B, X) bool.
struct Optionals {
    const std::optional<Tensor>&cond, &lengths, &resets, &mask;
};

// Particles of one sequence, by a tensor (T, B / particles, particles).
int64_t particles_of(const std::optional<Tensor>& t) {
    return t ? t->size(2) : 1;
}

template <class T>
Steps<T> particles_in(const Tensor& t) {
    return {data<std::remove_const_t<T>>(t), t.size(1) * t.size(2), 1};
}

// What all calls have in common. Keeps alive what the launch points to.
template <class T>
struct Call {
    const vrnn::Program& program;
    Build& build;
    const vrnn::Kernels<T>& kernels;
    Deal deal;
    std::vector<int64_t> saved_offset;
    std::vector<Tensor> state;
    std::optional<Tensor> cond, resets, mask;
    Room room;
    Launch<T> launch{};

    Call(const Known& known, Build& build, int64_t steps, int64_t batch, const std::optional<Tensor>& lengths,
         int64_t particles = 1, int64_t shards = 0)
        : program(known.decoded.program),
          build(build),
          kernels(build.isa->template kernels<T>()),
          deal(steps, batch, lengths ? data<const int64_t>(*lengths) : nullptr, known.decoded.flops_per_row, particles,
               shards),
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
        if (given.resets) launch.resets = kept<const bool>(resets, *given.resets);
        if (given.mask) launch.mask = kept<const bool>(mask, *given.mask);
    }

    // Lays the buffers that backward needs out in `saved`, which has room for `size` elements.
    void keep(T* saved, int64_t size, bool recompute) {
        launch.saved = saved;
        int64_t used = 0;
        for (int64_t b = 0; b < program.buffers.size; ++b) {
            if (program.buffers[b].keep < (recompute ? vrnn::Keep::always : vrnn::Keep::stored)) continue;
            saved_offset[b] = used;
            used += launch.steps * launch.batch * program.buffers[b].stride;
        }
        STD_TORCH_CHECK(size >= used, "saved must have room for ", used, " elements, got ", size);
    }

    void make_room(int64_t packed, bool backward) {
        launch.scratch_size = kernels.scratch_size(launch, deal.most_sequences(), backward);
        const int64_t shards = launch.shards.size, scratch = launch.scratch_size * shards;
        room.reserve((scratch + packed + (backward ? program.gradient_size * shards : 0)) * sizeof(T));
        launch.scratch = room.data<T>();
        launch.packed = launch.scratch + scratch;
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
    void pack_to(T* packed, const Known& known, const Parameters<T>& parameters) {
        launch.packed = packed;
        pack(parameters, false);
        std::fill(packed + known.weights(), packed + known.packed_size(), T(0));
        packed[known.weights()] = static_cast<T>(&build - builds);
        packed[known.weights() + 1] = static_cast<T>(launch.shards.size);
    }

    template <class F>
    void for_shards(F f) const {
        if (launch.shards.size == 1) return f(0);
        torch::stable::parallel_for(0, launch.shards.size, 1, [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s) f(s);
        });
    }

  private:
    template <class U>
    static Steps<U> kept(std::optional<Tensor>& own, const Tensor& given) {
        own = with_dense_rows(given);
        return steps_of<U>(*own);
    }
};

void check_count(const std::vector<Tensor>& parameters, const Known& known) {
    STD_TORCH_CHECK(static_cast<int64_t>(parameters.size()) == known.parameters, "the program has ", known.parameters,
                    " parameters, got ", parameters.size());
}

void check_states(const std::vector<Tensor>& state, const Known& known, ScalarType dtype, const Sizes& sizes) {
    const int64_t states = known.decoded.program.states;
    STD_TORCH_CHECK(static_cast<int64_t>(state.size()) == states, "state must be ", states, " tensors, got ",
                    state.size());
    for (const Tensor& s : state) check(s, "state", dtype, sizes);
}

// A batch of sequences: x, or the noise of one that is drawn (T, B, X); eps (T, B, Z); state (B, H) each.
void check_batch(const Known& known, const Tensor& x, const char* name, const Tensor& eps, const Optionals& given,
                 const std::vector<Tensor>& state) {
    STD_TORCH_CHECK(x.dim() == 3, name, " must have 3 dimensions, got ", x.dim());
    const ScalarType dtype = precision(x, name);
    const int64_t steps = x.size(0), batch = x.size(1), input = known.width(vrnn::buffer_x);
    const int64_t cond = known.decoded.program.cond;
    check(x, name, dtype, {steps, batch, input});
    check(eps, "eps", dtype, {steps, batch, known.width(vrnn::buffer_eps)});
    check_states(state, known, dtype, {batch, known.width(vrnn::buffer_state)});
    STD_TORCH_CHECK(given.cond.has_value() == (cond >= 0),
                    "cond must be given where the program has it, and nowhere else");
    if (given.cond) check(*given.cond, "cond", dtype, {steps, batch, known.width(cond)});
    if (given.resets) check(*given.resets, "resets", ScalarType::Bool, {steps, batch});
    if (given.mask) check(*given.mask, "mask", ScalarType::Bool, {steps, batch, input});
    if (!given.lengths) return;
    check(*given.lengths, "lengths", ScalarType::Long, {batch});
    STD_TORCH_CHECK(given.lengths->is_contiguous(), "lengths must be contiguous");
}

void check_packed(const Tensor& packed, const Known& known, const Tensor& like) {
    check(packed, "packed", like.scalar_type(), {known.packed_size()});
    STD_TORCH_CHECK(packed.is_contiguous(), "packed must be contiguous");
}

void check_particles(const std::optional<Tensor>& t, const char* name, ScalarType dtype, const Known& known,
                     const Tensor& x) {
    STD_TORCH_CHECK(t.has_value() == known.resamples(), name, " belong to a program that resamples, and to no other");
    if (!t) return;
    STD_TORCH_CHECK(t->is_cpu() && t->scalar_type() == dtype && t->dim() == 3 && t->size(0) == x.size(0) &&
                        t->size(1) * t->size(2) == x.size(1) && t->size(2) > 0,
                    name, " must be (T, B, particles), where x is (T, B * particles, X)");
}

using Forward =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

template <class T>
Forward forward_of(const Known& known, const Tensor& x_in, const Tensor& eps_in, const Optionals& given,
                   const std::vector<Tensor>& state, const std::vector<Tensor>& parameters,
                   const std::optional<Tensor>& packed, int64_t saved_size, bool recompute, bool want_prior,
                   bool want_raw, const std::optional<Tensor>& uniforms_in, double threshold) {
    Build& build = packed ? build_of<T>(data<T>(*packed), known) : chosen_build();
    Call<T> call(known, build, x_in.size(0), x_in.size(1), given.lengths, particles_of(uniforms_in));
    Launch<T>& launch = call.launch;
    const int64_t groups = uniforms_in ? uniforms_in->size(1) : 0, steps = uniforms_in ? x_in.size(0) : 0;
    const Tensor ancestors = torch::stable::new_empty(x_in, {steps, groups, launch.particles}, ScalarType::Long);
    std::optional<Tensor> uniforms;
    if (uniforms_in) {
        uniforms = dense(*uniforms_in);
        launch.uniforms = particles_in<const T>(*uniforms);
        launch.ancestors = particles_in<int64_t>(ancestors);
        launch.threshold = threshold;
    }
    call.start_from(state);
    call.read(given);
    launch.ranges = &profiled;
    const Tensor x = with_dense_rows(x_in), eps = with_dense_rows(eps_in);
    launch.x = steps_of<const T>(x);
    launch.eps = steps_of<const T>(eps);
    const int64_t latent = eps.size(2);

    const bool save = saved_size > 0;
    const Tensor saved = torch::stable::new_empty(x, {save ? saved_size + known.packed_size() : 0});
    if (save) {
        in_large_pages(data<T>(saved), saved_size * sizeof(T));
        call.keep(data<T>(saved), saved_size, recompute);
    }
    const auto scalars = [&] { return torch::stable::new_empty(x, {x.size(0), x.size(1)}); };
    const Tensor nll = scalars(), kl = scalars();
    const Tensor z = per_step(x, latent, true), mean = per_step(x, latent, true), std = per_step(x, latent, true);
    const Tensor prior_mean = per_step(x, latent, want_prior), prior_std = per_step(x, latent, want_prior);
    const Tensor raw = per_step(x, known.output(), want_raw);
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

    call.make_room(packed || save ? 0 : known.weights(), false);
    if (packed) {
        launch.packed = data<T>(*packed);
    } else {
        const Parameters<T> read(call.program, parameters, x);
        save ? call.pack_to(data<T>(saved) + saved_size, known, read) : call.pack(read, false);
    }
    call.for_shards([&](int64_t s) { call.kernels.forward(launch, s); });
    ++call.build.launches[0];
    return {nll, kl, z, mean, std, prior_mean, prior_std, raw, final_state, ancestors, saved};
}

template <class T>
Backward backward_of(const Known& known, const std::vector<Tensor>& upstream, const std::vector<int64_t>& slots,
                     const Tensor& x_in, const Tensor& eps_in, const Optionals& given, const std::vector<Tensor>& state,
                     const std::vector<Tensor>& parameters_in, const std::optional<Tensor>& ancestors,
                     const Tensor& saved, bool recompute, bool want_x, bool want_eps, bool want_cond) {
    check(saved, "saved", x_in.scalar_type());
    const int64_t saved_size = saved.numel() - known.packed_size(), batch = x_in.size(1);
    STD_TORCH_CHECK(saved_size > 0 && saved.is_contiguous(), "saved is not what forward saved");
    T* const packed = data<T>(saved) + saved_size;
    Call<T> call(known, build_of<T>(packed, known), x_in.size(0), batch, given.lengths, particles_of(ancestors),
                 shards_of<T>(packed, known, batch));
    Launch<T>& launch = call.launch;
    if (ancestors) launch.ancestors = particles_in<int64_t>(*ancestors);
    const Parameters<T> parameters(call.program, parameters_in, x_in);
    call.start_from(state);
    call.read(given);
    call.keep(data<T>(saved), saved_size, recompute);
    launch.ranges = &profiled;
    const Tensor x = with_dense_rows(x_in), eps = with_dense_rows(eps_in);
    launch.x = steps_of<const T>(x);
    launch.eps = steps_of<const T>(eps);

    Steps<const T>* const per_step_slots[] = {&launch.d_nll, &launch.d_kl,         &launch.d_z,         &launch.d_mean,
                                              &launch.d_std, &launch.d_prior_mean, &launch.d_prior_std, &launch.d_raw};
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < upstream.size(); ++i) {
        const int64_t slot = slots.at(i);
        STD_TORCH_CHECK(slot >= 0 && slot < 8 + static_cast<int64_t>(state.size()), "no output ", slot);
        const auto check_shape = [&](const Sizes& sizes) {
            check(upstream[i], "an upstream gradient", x.scalar_type(), sizes);
        };
        if (slot < 2)
            check_shape({x.size(0), batch});
        else if (slot < 8)
            check_shape({x.size(0), batch, slot == 7 ? known.output() : eps.size(2)});
        else
            check_shape({batch, known.width(vrnn::buffer_state)});
        gradients.push_back(slot < 8 ? with_dense_rows(upstream[i]) : dense(upstream[i]));
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
    for (const Tensor& p : parameters.tensors) {
        if (p.dim() == 2)
            d_parameters.push_back(torch::stable::new_empty(x, {p.size(0), p.size(1)}));
        else
            d_parameters.push_back(torch::stable::new_empty(x, {p.size(0)}));
        d_parameter_data.push_back(data<T>(d_parameters.back()));
    }
    launch.d_parameters = d_parameter_data.data();

    call.make_room(call.program.packed_size, true);
    launch.packed_backward = launch.packed;
    launch.packed = packed;
    call.pack(parameters, true);
    // Whoever finishes last adds up all shards, in their order: no second parallel region, and the same sum every time.
    std::atomic<int64_t> running{launch.shards.size};
    call.for_shards([&](int64_t s) {
        call.kernels.backward(launch, s);
        if (--running == 0) call.kernels.reduce(launch);
    });
    ++call.build.launches[1];
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
    const Known& known = ::known(program, constants, static_cast<int64_t>(parameters.size()));
    packed ? check_packed(*packed, known, x) : check_count(parameters, known);
    check_batch(known, x, "x", eps, {cond, lengths, resets, mask}, state);
    check_particles(uniforms, "uniforms", x.scalar_type(), known, x);
    STD_TORCH_CHECK(!known.draws(), "the program generates: call vrnn_fast::generate");
    const auto call = x.scalar_type() == ScalarType::Double ? forward_of<double> : forward_of<float>;
    return call(known, x, eps, {cond, lengths, resets, mask}, state, parameters, packed, saved_size, recompute,
                want_prior, want_raw, uniforms, threshold);
}

// upstream: the gradients that there are, of the outputs numbered in `slots` in the order of forward's results.
Backward backward(std::vector<Tensor> upstream, std::vector<int64_t> slots, Tensor x, Tensor eps,
                  std::optional<Tensor> cond, std::optional<Tensor> lengths, std::optional<Tensor> resets,
                  std::optional<Tensor> mask, std::vector<Tensor> state, std::vector<Tensor> parameters,
                  std::optional<Tensor> ancestors, Tensor saved, std::vector<int64_t> program,
                  std::vector<double> constants, bool recompute, bool want_x, bool want_eps, bool want_cond) {
    const Known& known = ::known(program, constants, static_cast<int64_t>(parameters.size()));
    check_count(parameters, known);
    check_batch(known, x, "x", eps, {cond, lengths, resets, mask}, state);
    check_particles(ancestors, "ancestors", ScalarType::Long, known, x);
    const auto call = x.scalar_type() == ScalarType::Double ? backward_of<double> : backward_of<float>;
    return call(known, upstream, slots, x, eps, {cond, lengths, resets, mask}, state, parameters, ancestors, saved,
                recompute, want_x, want_eps, want_cond);
}

using Generated = std::tuple<Tensor, std::vector<Tensor>>;

template <class T>
Generated generate_of(const Known& known, const Tensor& eps_in, const Tensor& noise_in,
                      const std::optional<Tensor>& cond, const std::vector<Tensor>& state,
                      const std::vector<Tensor>& parameters, const std::optional<Tensor>& packed) {
    Build& build = packed ? build_of<T>(data<T>(*packed), known) : chosen_build();
    const int64_t steps = noise_in.size(0), batch = noise_in.size(1), input = noise_in.size(2);
    Call<T> call(known, build, steps, batch, std::nullopt);
    Launch<T>& launch = call.launch;
    call.start_from(state);
    call.read({cond, std::nullopt, std::nullopt, std::nullopt});
    const Tensor eps = with_dense_rows(eps_in), noise = with_dense_rows(noise_in);
    launch.eps = steps_of<const T>(eps);
    launch.noise = steps_of<const T>(noise);
    const Tensor drawn = torch::stable::new_empty(noise, {steps, batch, input});
    launch.drawn = steps_of<T>(drawn);
    std::vector<Tensor> final_state;
    for (size_t i = 0; i < state.size(); ++i) {
        final_state.push_back(torch::stable::new_empty(noise, {batch, known.width(vrnn::buffer_state)}));
        launch.final_state[i] = data<T>(final_state.back());
    }
    call.make_room(packed ? 0 : known.weights(), false);
    if (packed)
        launch.packed = data<T>(*packed);
    else
        call.pack(Parameters<T>(call.program, parameters, noise), false);
    call.for_shards([&](int64_t s) { call.kernels.forward(launch, s); });
    ++call.build.launches[3];
    return {drawn, final_state};
}

// A cell that runs on its own: eps (T, B, Z) and noise (T, B, X) -> x (T, B, X), state (B, H) each.
Generated generate(Tensor eps, Tensor noise, std::optional<Tensor> cond, std::vector<Tensor> state,
                   std::vector<Tensor> parameters, std::optional<Tensor> packed, std::vector<int64_t> program,
                   std::vector<double> constants) {
    const Known& known = ::known(program, constants, static_cast<int64_t>(parameters.size()));
    STD_TORCH_CHECK(known.draws(), "the program does not generate");
    packed ? check_packed(*packed, known, noise) : check_count(parameters, known);
    check_batch(known, noise, "noise", eps, {cond, std::nullopt, std::nullopt, std::nullopt}, state);
    const auto call = noise.scalar_type() == ScalarType::Double ? generate_of<double> : generate_of<float>;
    return call(known, eps, noise, cond, state, parameters, packed);
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
    const Known& known = programs[number];
    check_count(parameters, known);
    const auto of =
        precision(parameters.front(), "a parameter") == ScalarType::Double ? pack_of<double> : pack_of<float>;
    return of(known, parameters);
}

// ---- a look at the contents of tensors

// Remembers a few values of each tensor, spread evenly. A change of a whole tensor changes some of them, also one that
// torch does not count: through .data, a NumPy view, or a bare pointer.
class Watch {
  public:
    explicit Watch(const std::vector<Tensor>& tensors) {
        for (const Tensor& t : tensors) {
            STD_TORCH_CHECK(t.is_cpu(), "only CPU tensors can be watched");
            STD_TORCH_CHECK(t.element_size() <= sizeof(Value), "an element is too large to be watched");
            STD_TORCH_CHECK(t.numel() > 0 && t.dim() > 0, "a tensor without elements or dimensions cannot be watched");
            alive_.push_back(torch::stable::select(t, 0, 0));
            const int64_t elements = t.numel(), count = std::min<int64_t>(elements, values_each);
            for (int64_t i = 0; i < count; ++i) {
                int64_t index = count == 1 ? 0 : i * (elements - 1) / (count - 1), offset = 0;
                for (int64_t d = t.dim(); d-- > 0; index /= t.size(d)) offset += index % t.size(d) * t.stride(d);
                samples_.push_back({static_cast<const char*>(t.data_ptr()) + offset * t.element_size(),
                                    static_cast<size_t>(t.element_size()), 0});
                samples_.back().value = samples_.back().read();
            }
        }
    }
    bool unchanged() const {
        for (const Sample& s : samples_)
            if (s.read() != s.value) return false;
        return true;
    }

  private:
    using Value = uint64_t;
    static constexpr int64_t values_each = 8;
    struct Sample {
        const char* at;
        size_t bytes;
        Value value;
        Value read() const {
            Value v = 0;
            std::memcpy(&v, at, bytes);
            return v;
        }
    };
    std::vector<Tensor> alive_;  // views, which hold the memory and not the tensors
    std::vector<Sample> samples_;
};

std::mutex watches_mutex;
std::map<int64_t, std::shared_ptr<const Watch>> watches;

int64_t watch(std::vector<Tensor> tensors) {
    auto made = std::make_shared<const Watch>(tensors);
    const std::lock_guard<std::mutex> guard(watches_mutex);
    const int64_t number = watches.empty() ? 0 : watches.rbegin()->first + 1;
    watches.emplace(number, std::move(made));
    return number;
}

bool unchanged(int64_t number) {
    std::shared_ptr<const Watch> found;
    {
        const std::lock_guard<std::mutex> guard(watches_mutex);
        const auto at = watches.find(number);
        STD_TORCH_CHECK(at != watches.end(), "there is no watch ", number);
        found = at->second;
    }
    return found->unchanged();
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

// ---- single steps

using Step = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

template <class T>
Step step_of(const Known& known, const Tensor& packed, const Tensor& x_in, const Tensor& eps_in,
             const std::vector<Tensor>& state, bool want_raw) {
    const int64_t batch = x_in.size(0), output = known.output(), hidden = known.width(vrnn::buffer_state);
    Call<T> call(known, build_of<T>(data<T>(packed), known), 1, batch, std::nullopt);
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
    launch.nll = {data<T>(nll), 0, 1};
    launch.kl = {data<T>(kl), 0, 1};
    if (want_raw) launch.raw = {data<T>(raw), 0, output};
    launch.predicted = {data<T>(predicted), 0, output};
    call.make_room(0, false);
    launch.packed = data<T>(packed);
    call.for_shards([&](int64_t s) { call.kernels.forward(launch, s); });
    ++call.build.launches[2];
    return {nll, kl, raw, predicted, final_state};
}

// One time step: x (B, X), eps (B, Z), state (1, B, H) each -> nll, kl (B); raw (B, output), of z and at the prior's
// mean; state. What is not wanted has no elements.
Step step(Tensor packed, int64_t number, Tensor x, Tensor eps, std::vector<Tensor> state, bool want_raw) {
    const Known& known = programs[number];
    const ScalarType dtype = precision(x, "x");
    const int64_t batch = x.size(0);
    check_packed(packed, known, x);
    check(x, "x", dtype, {batch, known.width(vrnn::buffer_x)});
    check(eps, "eps", dtype, {batch, known.width(vrnn::buffer_eps)});
    check_states(state, known, dtype, {1, batch, known.width(vrnn::buffer_state)});
    const auto of = dtype == ScalarType::Double ? step_of<double> : step_of<float>;
    return of(known, packed, x, eps, state, want_raw);
}

}  // namespace

STABLE_TORCH_LIBRARY(vrnn_fast, m) {
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
    m.def("packed_size(int number) -> int");
    m.def("output_width(int number) -> int");
    m.def("flops(int number) -> int[]");
    m.def("pack(Tensor[] parameters, int number) -> Tensor");
    m.def(
        "step(Tensor packed, int number, Tensor x, Tensor eps, Tensor[] state, bool want_raw) -> (Tensor nll, "
        "Tensor kl, Tensor raw, Tensor predicted, Tensor[] state)");
    m.def("watch(Tensor[] tensors) -> int");
    m.def("unchanged(int watch) -> bool");
    m.def("unwatch(int watch) -> int");
    m.def("launch_counts() -> int[]");
    m.def("chosen_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(vrnn_fast, CPU, m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("backward", TORCH_BOX(&backward));
    m.impl("generate", TORCH_BOX(&generate));
    m.impl("pack", TORCH_BOX(&pack));
    m.impl("step", TORCH_BOX(&step));
    m.impl("watch", TORCH_BOX(&watch));
}

STABLE_TORCH_LIBRARY_IMPL(vrnn_fast, CompositeExplicitAutograd, m) {
    m.impl("program_number", TORCH_BOX(&program_number));
    m.impl("packed_size", TORCH_BOX(&packed_size));
    m.impl("output_width", TORCH_BOX(&output_width));
    m.impl("flops", TORCH_BOX(&flops));
    m.impl("unchanged", TORCH_BOX(&unchanged));
    m.impl("unwatch", TORCH_BOX(&unwatch));
    m.impl("launch_counts", TORCH_BOX(&launch_counts));
    m.impl("chosen_isa", TORCH_BOX(&vrnn::chosen_isa));
}
