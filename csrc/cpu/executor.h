// The stage executor: walks a program over one shard, chunk of time by chunk of time, forward or in reverse.
#pragma once

#include "gemm.h"
#include "launch.h"
#include "stages.h"

namespace vrnn::VRNN_ISA {

constexpr int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// [begin, end) of one chunk's time steps and, beside them, of its rows.
struct Chunk {
    int64_t step, end_step, row, end_row;
    int64_t rows() const { return end_row - row; }
};

// Whole steps, at least one, and at most chunk_rows rows if one step has not more.
inline Chunk next_chunk(const Shard& shard, int64_t step) {
    Chunk chunk{step, step + 1, shard.offset[step], shard.offset[step + 1]};
    while (chunk.end_step < shard.steps && shard.offset[chunk.end_step + 1] - chunk.row <= tuning::chunk_rows)
        chunk.end_row = shard.offset[++chunk.end_step];
    return chunk;
}

inline Chunk previous_chunk(const Shard& shard, int64_t end) {
    Chunk chunk{end - 1, end, shard.offset[end - 1], shard.offset[end]};
    while (chunk.step > 0 && chunk.end_row - shard.offset[chunk.step - 1] <= tuning::chunk_rows)
        chunk.row = shard.offset[--chunk.step];
    return chunk;
}

inline int64_t chunk_capacity(int64_t sequences) {
    return largest(tuning::chunk_rows, sequences);
}

// A bump allocator over a shard's scratch; with no memory it only counts.
template <class T>
struct Arena {
    T* data;
    int64_t used = 0;
    T* take(int64_t elements) {
        T* at = data ? data + used : nullptr;
        used += (elements + line - 1) / line * line;
        return at;
    }
};

// Where a shard's matrices are. Chunk-long buffers start at the chunk's first row, the others at the shard's.
template <class T>
struct Workspace {
    Matrix<T> value[most_buffers], gradient[most_buffers];
    bool chunked[most_buffers];
    T *carry[most_states], *nll, *kl;
    T* tiles;                // of weight_gradient()
    T *log_weight, *weight;  // (sequences) since a row was resampled; (particles)
    Matrix<T> group;         // (particles, hidden) states, or their gradients, while they are resampled
    Matrix<T> on_z, on_mean, on_std, on_prior_mean, on_prior_std, d_final[most_states];
    Matrix<T> mask;  // 1 where x was observed, else 0; null where all was
    int64_t used;

    Workspace(const Launch<T>& launch, T* scratch, int64_t sequences, int64_t first_row, bool backward) {
        Arena<T> arena{scratch};
        const Program& program = *launch.program;
        const int64_t capacity = chunk_capacity(sequences), slack = Tile<T>::columns;
        for (int64_t b = 0; b < program.buffers.size; ++b) {
            const int64_t stride = program.buffers[b].stride;
            chunked[b] = launch.saved_offset[b] < 0;
            value[b] = {chunked[b] ? arena.take(capacity * stride + slack)
                                   : launch.saved + launch.saved_offset[b] + first_row * stride,
                        stride};
            gradient[b] = {backward ? arena.take(capacity * stride + slack) : nullptr, stride};
        }
        const int64_t hidden = program.buffers[buffer_state].stride, latent = program.buffers[buffer_eps].stride;
        const int64_t input = program.buffers[buffer_x].stride;
        for (int64_t s = 0; s < program.states; ++s) {
            carry[s] = arena.take(sequences * hidden);
            d_final[s] = {backward ? arena.take(sequences * hidden) : nullptr, hidden};
        }
        mask = {launch.mask ? arena.take(capacity * input + slack) : nullptr, input};
        nll = arena.take(capacity);
        kl = arena.take(capacity);
        Matrix<T>* upstream[] = {&on_z, &on_mean, &on_std, &on_prior_mean, &on_prior_std};
        for (Matrix<T>* m : upstream) *m = {backward ? arena.take(capacity * latent) : nullptr, latent};
        int64_t widest = 0;
        for (const Buffer& b : program.buffers) widest = largest(widest, b.width);
        tiles = backward ? arena.take(weight_gradient_scratch<T>(widest)) : nullptr;
        const bool resamples = bool(launch.ancestors);
        log_weight = resamples ? arena.take(sequences) : nullptr;
        weight = resamples ? arena.take(launch.particles + slack) : nullptr;
        group = {resamples ? arena.take(launch.particles * hidden) : nullptr, hidden};
        used = arena.used;
    }
};

// The phases of a pass, one after the other, as ranges of time.
class Phases {
  public:
    explicit Phases(const Ranges* ranges) : ranges_(ranges) {}
    Phases(const Phases&) = delete;
    Phases& operator=(const Phases&) = delete;
    ~Phases() { enter(nullptr); }

    void enter(const char* name) {
        if (!ranges_) return;
        if (open_) ranges_->close(open_);
        open_ = name ? ranges_->open(name) : nullptr;
    }

  private:
    const Ranges* ranges_;
    void* open_ = nullptr;
};

template <class T>
class Executor {
  public:
    Executor(const Launch<T>& launch, int64_t index, bool backward)
        : launch(launch),
          program(*launch.program),
          shard(launch.shards[index]),
          work(launch, launch.scratch + index * launch.scratch_size, shard.sequences, shard.first_row, backward),
          weight_gradients(launch.weight_gradients + index * program.gradient_size) {}

    void forward() {
        Phases phases(launch.ranges);
        load_state();
        for (int64_t step = 0; step < shard.steps; step = chunk.end_step) {
            chunk = next_chunk(shard, step);
            phases.enter("vrnn_fast.forward.before");
            gather_inputs();
            enter_chunk();
            run(program.before);
            phases.enter("vrnn_fast.forward.scan");
            for (int64_t t = chunk.step; t < chunk.end_step; ++t) {
                set_rows(shard.offset[t], shard.offset[t + 1]);
                if (launch.resets) reset(t, [&](int64_t b) { return value(b, begin); });
                for (const Stage& stage : program.scan) {
                    if (stage.op == Op::recur)
                        advance(stage, t);
                    else if (stage.op == Op::resample)
                        resample(t);
                    else
                        run(stage);
                }
            }
            phases.enter("vrnn_fast.forward.after");
            set_rows(chunk.row, chunk.end_row);
            run(program.after);
            scatter_results();
            if (launch.predicted) predict();
        }
        finish_idle_rows();
    }

    void backward() {
        Phases phases(launch.ranges);
        if (shard.steps == 0) fill(weight_gradients, program.gradient_size);
        for (int64_t s = 0; s < program.states; ++s)
            for (int64_t i = 0; i < shard.sequences; ++i)
                copy(work.d_final[s][i],
                     launch.d_final_state[s] ? launch.d_final_state[s] + shard.sequence[i] * hidden() : nullptr,
                     hidden());
        for (int64_t end = shard.steps; end > 0; end = chunk.step) {
            chunk = previous_chunk(shard, end);
            phases.enter("vrnn_fast.backward.restore");
            gather_inputs();
            gather_upstream();
            set_rows(chunk.row, chunk.end_row);
            restore();
            phases.enter("vrnn_fast.backward.after");
            run_backward(program.after);
            phases.enter("vrnn_fast.backward.scan");
            for (int64_t t = chunk.end_step - 1; t >= chunk.step; --t) {
                set_rows(shard.offset[t], shard.offset[t + 1]);
                for (int64_t i = program.scan.size - 1; i >= 0; --i) {
                    const Stage& stage = program.scan[i];
                    if (stage.op == Op::recur)
                        retreat(stage, t);
                    else if (stage.op == Op::resample)
                        resample_backward(t);
                    else
                        run_backward(stage);
                }
                if (launch.resets) reset(t, [&](int64_t b) { return gradient(b, begin); });
            }
            phases.enter("vrnn_fast.backward.before");
            set_rows(chunk.row, chunk.end_row);
            run_backward(program.before);
            phases.enter("vrnn_fast.backward.weights");
            add_weight_gradients();
            scatter_gradients();
        }
        store_state_gradient();
    }

  private:
    const Launch<T>& launch;
    const Program& program;
    const Shard& shard;
    Workspace<T> work;
    T* weight_gradients;
    Chunk chunk{};
    int64_t begin = 0, rows = 0;  // the rows that stages work on

    int64_t hidden() const { return program.buffers[buffer_state].width; }
    Matrix<T> carry(int64_t state) const { return {work.carry[state], program.buffers[buffer_state].stride}; }

    static void copy(T* to, const T* from, int64_t n) {
        if (from)
            __builtin_memcpy(to, from, n * sizeof(T));
        else
            fill(to, n);
    }
    static void fill(T* to, int64_t n) { __builtin_memset(to, 0, n * sizeof(T)); }

    void set_rows(int64_t from, int64_t to) {
        begin = from;
        rows = to - from;
    }

    Matrix<T> value(int64_t buffer, int64_t row) const {
        const Matrix<T>& m = work.value[buffer];
        return {m[work.chunked[buffer] ? row - chunk.row : row], m.stride};
    }
    Matrix<T> value(const Slice& s) const { return value(s.buffer, begin).columns(s.start); }
    Matrix<T> gradient(int64_t buffer, int64_t row) const {
        return {work.gradient[buffer][row - chunk.row], work.gradient[buffer].stride};
    }
    Matrix<T> gradient(const Slice& s) const { return gradient(s.buffer, begin).columns(s.start); }
    // Whether whole vectors may be stored: what lies behind the slice's columns, up to the row's end, is nobody's.
    bool padded(const Slice& s) const {
        const Buffer& b = program.buffers[s.buffer];
        return s.start + s.width == b.width && s.start + (s.width + line - 1) / line * line <= b.stride;
    }
    bool wants_gradient(const Slice& s) const {
        return s.buffer == buffer_x ? bool(launch.d_x) : s.buffer != program.cond || launch.d_cond;
    }

    template <class F>
    void for_rows(F f) const {
        for (int64_t t = chunk.step; t < chunk.end_step; ++t)
            for (int64_t i = 0; i < shard.active[t]; ++i) f(shard.offset[t] + i - chunk.row, t, shard.sequence[i]);
    }
    void gather(const Steps<const T>& from, Matrix<T> to, int64_t width) const {
        for_rows([&](int64_t row, int64_t t, int64_t b) { copy(to[row], from.at(t, b), width); });
    }
    void gather(const Steps<const T>& from, T* to) const {
        for_rows([&](int64_t row, int64_t t, int64_t b) { to[row] = *from.at(t, b); });
    }
    void scatter(const Steps<T>& to, Matrix<T> from, int64_t width) const {
        if (to) for_rows([&](int64_t row, int64_t t, int64_t b) { copy(to.at(t, b), from[row], width); });
    }

    void gather_inputs() {
        const int64_t input = program.buffers[buffer_x].width;
        if (launch.x) gather(launch.x, work.value[buffer_x], input);
        if (launch.noise) gather(launch.noise, work.value[program.output->noise.buffer], input);
        gather(launch.eps, work.value[buffer_eps], program.buffers[buffer_eps].width);
        if (program.cond >= 0) gather(launch.cond, work.value[program.cond], program.buffers[program.cond].width);
        if (launch.mask)
            for_rows([&](int64_t row, int64_t t, int64_t b) {
                const uint8_t* from = launch.mask.at(t, b);
                for (int64_t j = 0; j < input; ++j) work.mask[row][j] = from[j] != 0;
            });
    }

    // Zeroes what `of` a state belongs to a sequence that begins anew at step t.
    template <class F>
    void reset(int64_t t, F of) const {
        for (int64_t k = 0; k < program.states; ++k)
            for (int64_t i = 0; i < shard.active[t]; ++i)
                if (*launch.resets.at(t, shard.sequence[i])) fill(of(buffer_state + k)[i], hidden());
    }

    // ---- forward

    void run(Span<Stage> stages) {
        set_rows(chunk.row, chunk.end_row);
        for (const Stage& stage : stages) run(stage);
    }

    void run(const Stage& s) {
        const T* bias = launch.packed + program.packed_size + s.weights;
        const int64_t at = begin - chunk.row;
        switch (s.op) {
            case Op::bias: return fill_rows<T>(rows, s.target.width, bias, value(s.target));
            case Op::dense: {
                const Matrix<T> source = value(s.source), target = value(s.target);
                return packed_product<T>(rows, s.target.width, s.source.width, source.data, source.stride,
                                         launch.packed + s.packed, target.data, target.stride,
                                         s.accumulate ? Start::keep : Start::bias, bias, padded(s.target));
            }
            case Op::activate:
                return activate_forward<T>(static_cast<Activation>(s.kind), rows, s.target.width, value(s.target));
            case Op::add: return add_rows<T>(rows, s.target.width, value(s.source), value(s.target));
            case Op::sample:
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    sample_forward<T>(rows, s.target.width, deviation, value(s.source), value(buffer_eps, begin),
                                      value(s.std), value(s.target));
                });
            case Op::divergence:
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    if (s.z.width)
                        log_ratio_forward<T>(rows, s.std.width, deviation, value(s.posterior_std),
                                             value(buffer_eps, begin), value(s.source), value(s.std), value(s.z),
                                             work.kl + at);
                    else
                        divergence_forward<T>(rows, s.std.width, deviation, value(s.posterior), value(s.posterior_std),
                                              value(s.source), value(s.std), work.kl + at);
                });
            case Op::likelihood: {
                const Matrix<T> x = value(buffer_x, begin), mask = work.mask ? work.mask.rows(at) : Matrix<T>{};
                const int64_t width = program.buffers[buffer_x].width;
                if (static_cast<Loss>(s.kind) == Loss::bernoulli)
                    return bernoulli_forward<T>(rows, width, value(s.source), x, mask, work.nll + at);
                if (static_cast<Loss>(s.kind) == Loss::gaussian)
                    return with_deviation<T>(s.deviation, [&](auto deviation) {
                        gaussian_forward<T>(rows, width, deviation, value(s.source), x, mask, work.nll + at);
                    });
                return fill(work.nll + at, rows);
            }
            case Op::draw:
                if (static_cast<Loss>(s.kind) == Loss::bernoulli)
                    return bernoulli_draw<T>(rows, s.target.width, s.mean, value(s.source), value(s.noise),
                                             value(s.target));
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    gaussian_draw<T>(rows, s.target.width, deviation, s.mean, value(s.source), value(s.noise),
                                     value(s.target));
                });
            case Op::recur:
            case Op::resample: return;
        }
    }

    // h_{t-1} -> h_t: a sequence that goes on writes into its row of step t + 1, one that ends into its final state.
    void advance(const Stage& s, int64_t t) {
        const int64_t going = shard.active[t + 1], all = shard.active[t];
        const int64_t states[] = {s.h, s.c};
        Matrix<T> next[2], end[2];  // rows that end here pass through the carry, whose rows [going, all) are free
        for (int k = 0; k < 2 && states[k] >= 0; ++k) {
            const Matrix<T> own = carry(states[k] - buffer_state);
            next[k] = t + 1 < chunk.end_step ? value(states[k], shard.offset[t + 1]) : own;
            end[k] = own.rows(going);
        }
        update(s, 0, going, next[0], next[1]);
        update(s, going, all, end[0], end[1]);
        if (s.output.width) {
            copy_rows<T>(going, hidden(), next[0], value(s.output));
            copy_rows<T>(all - going, hidden(), end[0], value(s.output).rows(going));
        }
        for (int k = 0; k < 2 && states[k] >= 0; ++k)
            for (int64_t i = going; i < all; ++i)
                copy(launch.final_state[states[k] - buffer_state] + shard.sequence[i] * hidden(), end[k][i - going],
                     hidden());
    }

    void update(const Stage& s, int64_t from, int64_t to, Matrix<T> next_h, Matrix<T> next_c) {
        const int64_t row = begin + from;
        const Matrix<T> gates = value(s.target.buffer, row).columns(s.target.start);
        switch (static_cast<Cell>(s.kind)) {
            case Cell::gru:
                return gru_forward<T>(to - from, hidden(), gates,
                                      value(s.candidate.buffer, row).columns(s.candidate.start), value(s.h, row),
                                      next_h);
            case Cell::lstm: return lstm_forward<T>(to - from, hidden(), gates, value(s.c, row), next_h, next_c);
            case Cell::rnn:
                if (next_h) copy_rows<T>(to - from, hidden(), gates, next_h);
        }
    }

    // Where h_t and c_t are, once they are computed: row i of those that go on.
    Matrix<T> next_state(int64_t state, int64_t t) const {
        return t + 1 < chunk.end_step ? value(buffer_state + state, shard.offset[t + 1]) : carry(state);
    }

    // Where the weights of a sequence's particles have become too uneven, each takes over the state of one that is
    // drawn by them. The last step's are never drawn from: no bound depends on it.
    void resample(int64_t t) {
        const int64_t n = launch.particles, at = begin - chunk.row;
        for (int64_t i = 0; i < rows; ++i)
            work.log_weight[i] -= work.nll[at + i] + (program.divergence ? work.kl[at + i] : T(0));
        for (int64_t first = 0; first < rows; first += n) {
            T* const log_weight = work.log_weight + first;
            const auto ancestor = [&](int64_t i) { return launch.ancestors.at(t, shard.sequence[first + i]); };
            if (first >= shard.active[t + 1] ||
                !(effective_number(n, log_weight, work.weight) < launch.threshold * double(n))) {
                for (int64_t i = 0; i < n; ++i) *ancestor(i) = -1;
                continue;
            }
            double total = 0, last = 0, reached = work.weight[0];
            for (int64_t i = 0; i < n; ++i) total += work.weight[i];
            for (int64_t i = 0, k = 0; i < n; ++i) {
                const double wanted = *launch.uniforms.at(t, shard.sequence[first + i]) * total;
                if (wanted < last) reached = work.weight[k = 0];
                for (last = wanted; reached <= wanted && reached < total;) reached += work.weight[++k];
                *ancestor(i) = k;
            }
            for (int64_t s = 0; s < program.states; ++s) {
                const Matrix<T> own = next_state(s, t).rows(first);
                copy_rows<T>(n, hidden(), own, work.group);
                for (int64_t i = 0; i < n; ++i) copy(own[i], work.group[*ancestor(i)], hidden());
            }
            fill(log_weight, n);
        }
    }

    void load_state() {
        if (work.log_weight) fill(work.log_weight, shard.sequences);
        for (int64_t k = 0; k < program.states; ++k)
            for (int64_t i = 0; i < shard.sequences; ++i)
                copy(carry(k)[i], launch.state[k] + shard.sequence[i] * hidden(), hidden());
    }

    void enter_chunk() {
        for (int64_t k = 0; k < program.states; ++k) {
            const Matrix<T> first = value(buffer_state + k, chunk.row);
            for (int64_t i = 0; i < shard.active[chunk.step]; ++i) copy(first[i], carry(k)[i], hidden());
        }
    }

    void scatter_results() const {
        const Stage *sample = program.sample, *divergence = program.divergence;
        const auto matrix = [&](const Slice& s) { return value(s.buffer, chunk.row).columns(s.start); };
        scatter(launch.drawn, matrix({buffer_x, 0, 0}), program.buffers[buffer_x].width);
        if (launch.drawn) return;
        for_rows([&](int64_t row, int64_t t, int64_t b) {
            *launch.nll.at(t, b) = work.nll[row];
            *launch.kl.at(t, b) = divergence ? work.kl[row] : T(0);
        });
        scatter(launch.raw, matrix(program.output->source), program.output->source.width);
        if (!sample || !divergence) return;
        const int64_t latent = sample->target.width;
        scatter(launch.z, matrix(sample->target), latent);
        scatter(launch.mean, matrix(sample->source), latent);
        scatter(launch.std, matrix(sample->std), latent);
        scatter(launch.prior_mean, matrix(divergence->source), latent);
        scatter(launch.prior_std, matrix(divergence->std), latent);
    }

    // Again through phi_z and the decoder, with the prior's mean in the place of z.
    void predict() {
        const Stage *sample = program.sample, *divergence = program.divergence;
        if (sample && divergence) {
            const Matrix<T> prior_mean = value(divergence->source), z = value(sample->target);
            for (int64_t i = 0; i < rows; ++i) copy(z[i], prior_mean[i], sample->target.width);
            for (const Stage* s = sample + 1; s->target.buffer != program.gates; ++s) run(*s);
            for (const Stage* s = divergence + 1; s != program.output; ++s) run(*s);
        }
        const Slice& raw = program.output->source;
        scatter(launch.predicted, value(raw), raw.width);
    }

    // Padding is zero, and a sequence of length 0 keeps its state.
    void finish_idle_rows() const {
        const int64_t latent = program.buffers[buffer_eps].width;
        const int64_t output = program.output->source.width;
        const Steps<T> results[] = {launch.nll, launch.kl,         launch.z,         launch.mean,
                                    launch.std, launch.prior_mean, launch.prior_std, launch.raw};
        const int64_t widths[] = {1, 1, latent, latent, latent, latent, latent, output};
        for (int64_t i = 0; i < shard.sequences; ++i) {
            const int64_t b = shard.sequence[i];
            if (launch.ancestors)
                for (int64_t t = shard.length[i]; t < launch.steps; ++t) *launch.ancestors.at(t, b) = -1;
            for (int r = 0; r < 8; ++r)
                if (results[r])
                    for (int64_t t = shard.length[i]; t < launch.steps; ++t) fill(results[r].at(t, b), widths[r]);
            if (shard.length[i] == 0)
                for (int64_t k = 0; k < program.states; ++k)
                    copy(launch.final_state[k] + b * hidden(), launch.state[k] + b * hidden(), hidden());
        }
    }

    // ---- backward

    void gather_upstream() {
        if (launch.d_nll) gather(launch.d_nll, work.nll);
        if (launch.d_kl) gather(launch.d_kl, work.kl);
        const int64_t latent = program.buffers[buffer_eps].width;
        const Steps<const T> from[] = {launch.d_z, launch.d_mean, launch.d_std, launch.d_prior_mean,
                                       launch.d_prior_std};
        const Matrix<T> to[] = {work.on_z, work.on_mean, work.on_std, work.on_prior_mean, work.on_prior_std};
        for (int k = 0; k < 5; ++k)
            if (from[k]) gather(from[k], to[k], latent);
        const Slice& raw = program.output->source;
        const Matrix<T> d_raw = gradient(raw.buffer, chunk.row).columns(raw.start);
        for_rows([&](int64_t row, int64_t t, int64_t b) {
            copy(d_raw[row], launch.d_raw ? launch.d_raw.at(t, b) : nullptr, raw.width);
        });
        if (launch.d_x)
            for (int64_t row = 0; row < chunk.rows(); ++row)
                fill(work.gradient[buffer_x][row], program.buffers[buffer_x].width);
    }

    // Given h, c, z and the posterior's parameters of every step, nothing is sequential any more.
    void restore() {
        for (const Stage& stage : program.stages) {
            if (stage.op == Op::divergence)
                prior_std_forward(stage);
            else if (stage.op == Op::likelihood || stage.op == Op::resample || !work.chunked[stage.target.buffer])
                continue;
            else if (stage.op == Op::recur)
                update(stage, 0, rows, stage.output.width ? value(stage.output) : Matrix<T>{}, {});
            else
                run(stage);
        }
    }

    void prior_std_forward(const Stage& d) {
        const Matrix<T> raw = value(d.source), std = value(d.std);
        with_deviation<T>(d.deviation, [&](auto deviation) {
            for (int64_t i = 0; i < rows; ++i)
                for_vectors<T>(d.std.width, [&](int64_t j, int64_t n) {
                    store(std[i] + j, deviation(load(raw[i] + d.std.width + j, n)), n);
                });
        });
    }

    void run_backward(Span<Stage> stages) {
        for (int64_t i = stages.size - 1; i >= 0; --i) run_backward(stages[i]);
    }

    void run_backward(const Stage& s) {
        const int64_t at = begin - chunk.row;
        const auto part = [&](const Steps<const T>& given, const Matrix<T>& m) {
            return given ? Matrix<T>{m[at], m.stride} : Matrix<T>{};
        };
        const T* const d_kl = launch.d_kl ? work.kl + at : nullptr;  // nobody's gradient is none, not 0 times infinity
        switch (s.op) {
            case Op::bias: return;
            case Op::dense: {
                if (!wants_gradient(s.source)) return;
                const Matrix<T> from = gradient(s.target), to = gradient(s.source);
                return packed_product<T>(rows, s.source.width, s.target.width, from.data, from.stride,
                                         launch.packed_backward + s.packed, to.data, to.stride,
                                         s.first_gradient ? Start::zero : Start::keep, nullptr, padded(s.source));
            }
            case Op::activate:
                return activate_backward<T>(static_cast<Activation>(s.kind), rows, s.target.width, value(s.target),
                                            gradient(s.target));
            case Op::add: return add_rows<T>(rows, s.target.width, gradient(s.target), gradient(s.source));
            case Op::sample: {
                const Matrix<T> dz = gradient(s.target);
                if (launch.d_z) add_rows<T>(rows, s.target.width, part(launch.d_z, work.on_z), dz);
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    sample_backward<T>(rows, s.target.width, deviation, value(s.source), value(buffer_eps, begin),
                                       value(s.std), dz, gradient(s.source),
                                       program.divergence->z.width ? d_kl : nullptr,
                                       launch.d_eps ? gradient(buffer_eps, begin) : Matrix<T>{});
                });
            }
            case Op::divergence:
                return with_deviation<T>(s.deviation, [&](auto deviation) {
                    const Upstream<T> on_q{part(launch.d_mean, work.on_mean), part(launch.d_std, work.on_std)};
                    const Upstream<T> on_p{part(launch.d_prior_mean, work.on_prior_mean),
                                           part(launch.d_prior_std, work.on_prior_std)};
                    if (s.z.width)
                        log_ratio_backward<T>(rows, s.std.width, deviation, d_kl, on_q, on_p, value(s.posterior_std),
                                              value(s.source), value(s.std), value(s.z), gradient(s.posterior),
                                              gradient(s.source), gradient(s.z), !s.first_gradient);
                    else
                        divergence_backward<T>(rows, s.std.width, deviation, d_kl, on_q, on_p, value(s.posterior),
                                               value(s.posterior_std), value(s.source), value(s.std),
                                               gradient(s.posterior), gradient(s.source));
                });
            case Op::likelihood: {
                if (!launch.d_nll) return;
                const Matrix<T> x = value(buffer_x, begin), dx = launch.d_x ? gradient(buffer_x, begin) : Matrix<T>{};
                const Matrix<T> mask = work.mask ? work.mask.rows(at) : Matrix<T>{};
                const int64_t width = program.buffers[buffer_x].width;
                if (static_cast<Loss>(s.kind) == Loss::bernoulli)
                    return bernoulli_backward<T>(rows, width, work.nll + at, value(s.source), x, mask,
                                                 gradient(s.source), dx);
                if (static_cast<Loss>(s.kind) == Loss::gaussian)
                    return with_deviation<T>(s.deviation, [&](auto deviation) {
                        gaussian_backward<T>(rows, width, deviation, work.nll + at, value(s.source), x, mask,
                                             gradient(s.source), dx);
                    });
                return;
            }
            case Op::recur:
            case Op::resample:
            case Op::draw: return;
        }
    }

    // What a row gave to others comes back from all of them, in their order.
    void resample_backward(int64_t t) {
        const int64_t n = launch.particles;
        for (int64_t first = 0; first < shard.active[t + 1]; first += n) {
            const auto ancestor = [&](int64_t i) { return *launch.ancestors.at(t, shard.sequence[first + i]); };
            if (ancestor(0) < 0) continue;
            for (int64_t s = 0; s < program.states; ++s) {
                const Matrix<T> own =
                    (t + 1 < chunk.end_step ? gradient(buffer_state + s, shard.offset[t + 1]) : carry(s)).rows(first);
                copy_rows<T>(n, hidden(), own, work.group);
                for (int64_t i = 0; i < n; ++i) fill(own[i], hidden());
                for (int64_t i = 0; i < n; ++i) add_rows<T>(1, hidden(), work.group.rows(i), own.rows(ancestor(i)));
            }
        }
    }

    // The gradient of h_t comes from the sequence's row of step t + 1 or, at its end, from its final state; and from
    // the layer above.
    void retreat(const Stage& s, int64_t t) {
        const int64_t going = shard.active[t + 1], all = shard.active[t];
        const int64_t states[] = {s.h, s.c};
        Matrix<T> later[2], end[2];
        for (int k = 0; k < 2 && states[k] >= 0; ++k) {
            const int64_t state = states[k] - buffer_state;
            later[k] = t + 1 < chunk.end_step ? gradient(states[k], shard.offset[t + 1]) : carry(state);
            end[k] = work.d_final[state].rows(going);
        }
        if (s.first_gradient)
            for (int64_t i = 0; i < all; ++i) fill(gradient(s.h, begin)[i], hidden());
        if (s.output.width) {
            const Matrix<T> above = gradient(s.output);
            add_rows<T>(going, hidden(), later[0], above);
            add_rows<T>(all - going, hidden(), end[0], above.rows(going));
            later[0] = above;
            end[0] = above.rows(going);
        }
        update_backward(s, 0, going, later[0], later[1]);
        update_backward(s, going, all, end[0], end[1]);
    }

    void update_backward(const Stage& s, int64_t from, int64_t to, Matrix<T> d_h, Matrix<T> d_c) {
        const int64_t row = begin + from;
        const Matrix<T> gates = value(s.target.buffer, row).columns(s.target.start);
        const Matrix<T> d_gates = gradient(s.target.buffer, row).columns(s.target.start);
        switch (static_cast<Cell>(s.kind)) {
            case Cell::gru:
                return gru_backward<T>(to - from, hidden(), gates,
                                       value(s.candidate.buffer, row).columns(s.candidate.start), value(s.h, row), d_h,
                                       d_gates, gradient(s.candidate.buffer, row).columns(s.candidate.start),
                                       gradient(s.h, row));
            case Cell::lstm:
                return lstm_backward<T>(to - from, hidden(), gates, value(s.c, row), d_h, d_c, d_gates,
                                        gradient(s.c, row));
            case Cell::rnn: return copy_rows<T>(to - from, hidden(), d_h, d_gates);
        }
    }

    void add_weight_gradients() {
        const bool first = chunk.end_step == shard.steps;
        T* biases = weight_gradients + program.gradient_size - program.bias_size;
        for (const Stage& s : program.stages) {
            if (s.op != Op::dense && s.op != Op::bias) continue;
            const Matrix<T> d = gradient(s.target);
            if (!s.accumulate) add_column_sums<T>(rows, s.target.width, d, first, biases + s.weights);
            if (s.op == Op::bias) continue;
            const Matrix<T> source = value(s.source);
            T* to = weight_gradients + s.gradient;
            weight_gradient<T>(rows, s.target.width, s.source.width, d.data, d.stride, source.data, source.stride, to,
                               gradient_stride(s), first ? Start::zero : Start::keep, work.tiles);
        }
    }

    void scatter_gradients() {
        scatter(launch.d_x, work.gradient[buffer_x], program.buffers[buffer_x].width);
        scatter(launch.d_eps, work.gradient[buffer_eps], program.buffers[buffer_eps].width);
        if (launch.d_cond) scatter(launch.d_cond, work.gradient[program.cond], program.buffers[program.cond].width);
        for (int64_t k = 0; k < program.states; ++k) {
            const Matrix<T> first = gradient(buffer_state + k, chunk.row);
            for (int64_t i = 0; i < shard.active[chunk.step]; ++i) copy(carry(k)[i], first[i], hidden());
        }
    }

    void store_state_gradient() const {
        const int64_t started = shard.steps ? shard.active[0] : 0;
        for (int64_t k = 0; k < program.states; ++k)
            for (int64_t i = 0; i < shard.sequences; ++i)
                copy(launch.d_state[k] + shard.sequence[i] * hidden(), i < started ? carry(k)[i] : work.d_final[k][i],
                     hidden());
        const Steps<T> results[] = {launch.d_x, launch.d_eps, launch.d_cond};
        const int64_t buffers[] = {buffer_x, buffer_eps, program.cond};
        for (int r = 0; r < 3; ++r)
            if (results[r])
                for (int64_t i = 0; i < shard.sequences; ++i)
                    for (int64_t t = shard.length[i]; t < launch.steps; ++t)
                        fill(results[r].at(t, shard.sequence[i]), program.buffers[buffers[r]].width);
    }
};

template <class T>
static void pack_blocks(const Launch<T>& launch, const Stage& s, bool backward) {
    for (const Block& b : s.blocks) {
        const int64_t columns = launch.columns[b.parameter];
        const T* w = launch.parameters[b.parameter] + b.row * columns + b.column;
        if (backward)
            pack<T>(launch.packed_backward + s.packed, s.source.width, s.target.width,
                    {0, s.source.width, b.at, b.rows}, w, 1, columns);
        else
            pack<T>(launch.packed + s.packed, s.target.width, s.source.width, {b.at, b.rows, 0, s.source.width}, w,
                    columns, 1);
    }
}

// Packs every weight once per call: transposed, with the stacked biases, for forward; as it stands for backward. Of
// `shares` threads each packs the stages that begin in its part of what is packed, and the first one all biases.
template <class T>
static void pack_weights(const Launch<T>& launch, bool backward, int64_t share, int64_t shares) {
    const Program& program = *launch.program;
    T* biases = launch.packed + program.packed_size;
    const bool with_biases = share == 0 && !backward;
    if (with_biases) __builtin_memset(biases, 0, program.bias_size * sizeof(T));
    for (const Stage& s : program.stages) {
        if (s.packed * shares / program.packed_size == share) pack_blocks(launch, s, backward);
        if (!with_biases) continue;
        for (const Term& t : s.terms)
            for (int64_t i = 0; i < t.rows; ++i)
                biases[s.weights + t.at + i] += launch.parameters[t.parameter][t.row + i];
    }
}

// Adds the shards' weight gradients in order and writes them where the parameters' gradients belong. Every element
// of every parameter is in exactly one block or term.
template <class T>
static void reduce(const Launch<T>& launch) {
    const Program& program = *launch.program;
    const auto total = [&](int64_t offset, int64_t n, T* to) {
        const T* from = launch.weight_gradients + offset;
        for_vectors<T>(n, [&](int64_t j, int64_t count) {
            Vec<T> sum = load(from + j, count);
            for (int64_t shard = 1; shard < launch.shards.size; ++shard)
                sum += load(from + shard * program.gradient_size + j, count);
            store(to + j, sum, count);
        });
    };
    const int64_t biases = program.gradient_size - program.bias_size;
    for (const Stage& s : program.stages) {
        for (const Block& b : s.blocks) {
            const int64_t columns = launch.columns[b.parameter];
            for (int64_t i = 0; i < b.rows; ++i)
                total(s.gradient + (b.at + i) * gradient_stride(s), s.source.width,
                      launch.d_parameters[b.parameter] + (b.row + i) * columns + b.column);
        }
        for (const Term& t : s.terms)
            total(biases + s.weights + t.at, t.rows, launch.d_parameters[t.parameter] + t.row);
    }
}

}  // namespace vrnn::VRNN_ISA
