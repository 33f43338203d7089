// Walks a program over one shard, chunk of time by chunk of time, forward or in reverse.
#pragma once

#include "resample.h"
#include "run.h"
#include "states.h"
#include "transfer.h"

namespace vrnn::VRNN_ISA {

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
class Walker {
  public:
    Walker(const Launch<T>& launch, int64_t index, bool backward)
        : at(launch, index, backward),
          launch(launch),
          program(at.program),
          shard(at.shard),
          weight_gradients(launch.weight_gradients + index * program.gradient_size) {}

    void forward() {
        Phases phases(launch.ranges);
        if (at.work.log_weight) set_zero(at.work.log_weight, shard.sequences);
        load_states(at);
        for (int64_t step = 0; step < shard.steps; step = at.chunk.end_step) {
            at.chunk = next_chunk(shard, step);
            phases.enter("vrnn_fast.forward.before");
            gather_inputs(at);
            enter_chunk(at);
            at.set_chunk_rows();
            run(at, program.before);
            phases.enter("vrnn_fast.forward.scan");
            for (int64_t t = at.chunk.step; t < at.chunk.end_step; ++t) step_forward(t);
            phases.enter("vrnn_fast.forward.after");
            at.set_chunk_rows();
            run(at, program.after);
            scatter_results(at);
            if (launch.predicted) predict();
        }
        clear_padding_of_results(at);
        store_idle_states(at);
    }

    void backward() {
        Phases phases(launch.ranges);
        if (shard.steps == 0) set_zero(weight_gradients, program.gradient_size);
        if (shard.steps == 0 && launch.unpacked)
            for (const Stage& s : program.stages)
                if (s.op == Op::dense) write_weight_gradient<T>(launch, s, 0, {}, {});
        for (const Stage& s : program.scan)
            if (s.op == Op::begin) set_zero(biases() + s.weights, s.target.width);
        load_state_gradients(at);
        for (int64_t end = shard.steps; end > 0; end = at.chunk.step) {
            at.chunk = previous_chunk(shard, end);
            phases.enter("vrnn_fast.backward.restore");
            gather_inputs(at);
            gather_upstream(at);
            at.set_chunk_rows();
            restore();
            phases.enter("vrnn_fast.backward.after");
            run_backward(at, program.after);
            phases.enter("vrnn_fast.backward.scan");
            for (int64_t t = at.chunk.end_step - 1; t >= at.chunk.step; --t) step_backward(t);
            phases.enter("vrnn_fast.backward.before");
            at.set_chunk_rows();
            run_backward(at, program.before);
            phases.enter("vrnn_fast.backward.weights");
            add_weight_gradients();
            scatter_gradients(at);
            leave_chunk_backward(at);
        }
        clear_padding_of_gradients(at);
        store_state_gradients(at);
    }

  private:
    Position<T> at;
    const Launch<T>& launch;
    const Program& program;
    const Shard& shard;
    T* weight_gradients;

    T* biases() const { return weight_gradients + program.gradient_size - program.bias_size; }  // their gradients

    void step_forward(int64_t t) {
        at.set_step_rows(t);
        reset_states(at, t, [&](int64_t b) { return at.value(b, at.begin); });
        for (const Stage& stage : program.scan) {
            if (stage.op == Op::recur)
                update_states(at, stage, t);
            else if (stage.op == Op::resample)
                resample(at, t);
            else if (stage.op == Op::begin)
                begin_states(at, stage, t);
            else
                run(at, stage);
        }
    }

    void step_backward(int64_t t) {
        at.set_step_rows(t);
        for (int64_t i = program.scan.size - 1; i >= 0; --i) {
            const Stage& stage = program.scan[i];
            if (stage.op == Op::recur)
                update_states_backward(at, stage, t);
            else if (stage.op == Op::resample)
                resample_backward(at, t);
            else if (stage.op == Op::begin)
                begin_states_backward(at, stage, t, biases());
            else
                run_backward(at, stage);
        }
        reset_states(at, t, [&](int64_t b) { return at.gradient(b, at.begin); });
    }

    // Again through phi_z and the decoder, with the prior's mean in the place of z.
    void predict() {
        const Stage *sample = program.sample, *divergence = program.divergence;
        if (sample && divergence) {
            const Matrix<T> prior_mean = at.value(divergence->source), z = at.value(sample->target);
            for (int64_t i = 0; i < at.rows; ++i) copy(z[i], prior_mean[i], sample->target.width);
            for (const Stage* s = sample + 1; s->target.buffer != program.gates && s->op != Op::recur; ++s) run(at, *s);
            for (const Stage* s = divergence + 1; s != program.output; ++s) run(at, *s);
        }
        const Slice& raw = program.output->source;
        scatter(at, at.value(raw), launch.predicted, raw.width);
    }

    // Given h, c, z and the posterior's parameters of every step, nothing is sequential any more.
    void restore() {
        for (const Stage& s : program.stages) {
            if (s.op == Op::divergence)
                with_deviation<T>(s.deviation, [&](auto deviation) {
                    prior_std_forward<T>(at.rows, s.std.width, deviation, at.value(s.source), at.value(s.std));
                });
            else if (s.op == Op::likelihood || s.op == Op::resample || !at.work.chunked[s.target.buffer])
                continue;
            else if (s.op == Op::recur)
                update_rows(at, s, 0, at.rows, s.output.width ? at.value(s.output) : Matrix<T>{}, {});
            else
                run(at, s);
        }
    }

    void add_weight_gradients() {
        const bool first = at.chunk.end_step == shard.steps;
        for (const Stage& s : program.stages) {
            if (s.op != Op::dense && s.op != Op::bias && s.op != Op::normalize) continue;
            const Matrix<T> d = at.gradient(s.target);
            if (s.op == Op::normalize) {
                add_scaling_gradients<T>(at.rows, s.target.width, s.epsilon, at.value(s.source), d, first,
                                         biases() + s.weights);
                continue;
            }
            if (!s.accumulate) add_column_sums<T>(at.rows, s.target.width, d, first, biases() + s.weights);
            if (s.op == Op::bias) continue;
            if (launch.unpacked) {
                write_weight_gradient<T>(launch, s, at.rows, d, at.value(s.source));
                continue;
            }
            const Sizes size{s.target.width, s.source.width, at.rows};
            weight_gradient<T>(size, d, at.value(s.source), {weight_gradients + s.gradient, gradient_stride(s)},
                               first ? Start::zero : Start::keep, at.work.tiles);
        }
    }
};

}  // namespace vrnn::VRNN_ISA
