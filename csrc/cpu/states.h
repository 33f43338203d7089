// The recurrent states on their way from step to step: in their buffers within a chunk, in the carry between chunks.
#pragma once

#include "position.h"
#include "stages/recur.h"

namespace vrnn::VRNN_ISA {

// ---- forward

template <class T>
static void load_states(const Position<T>& p) {
    for (int64_t k = 0; k < p.program.states; ++k)
        for (int64_t i = 0; i < p.shard.sequences; ++i)
            copy(p.carry(k)[i], p.launch.state[k] + p.shard.sequence[i] * p.hidden(), p.hidden());
}

template <class T>
static void enter_chunk(const Position<T>& p) {
    for (int64_t k = 0; k < p.program.states; ++k) {
        const Matrix<T> first = p.value(buffer_state + k, p.chunk.row);
        for (int64_t i = 0; i < p.shard.active[p.chunk.step]; ++i) copy(first[i], p.carry(k)[i], p.hidden());
    }
}

// Calls f(i) for each sequence that begins anew at step t.
template <class T, class F>
static void for_resets(const Position<T>& p, int64_t t, F f) {
    if (!p.launch.resets) return;
    for (int64_t i = 0; i < p.shard.active[t]; ++i)
        if (*p.launch.resets.at(t, p.shard.sequence[i])) f(i);
}

// Zeroes what `of` a state belongs to a sequence that begins anew at step t.
template <class T, class F>
static void reset_states(const Position<T>& p, int64_t t, F of) {
    for (int64_t k = 0; k < p.program.states; ++k)
        for_resets(p, t, [&](int64_t i) { set_zero(of(buffer_state + k)[i], p.hidden()); });
}

// What it begins with in the place of zeros.
template <class T>
static void begin_states(const Position<T>& p, const Stage& s, int64_t t) {
    const T* const start = p.launch.packed + p.program.packed_size + s.weights;
    for_resets(p, t, [&](int64_t i) { copy(p.value(s.target)[i], start, p.hidden()); });
}

// The cell over the rows [from, to) of those that stages work on; next_h and next_c, or null.
template <class T>
static void update_rows(const Position<T>& p, const Stage& s, int64_t from, int64_t to, Matrix<T> next_h,
                        Matrix<T> next_c) {
    const int64_t row = p.begin + from;
    const Matrix<T> gates = p.value(s.target.buffer, row).columns(s.target.start);
    switch (static_cast<Cell>(s.kind)) {
        case Cell::gru:
            return gru_forward<T>(to - from, p.hidden(), gates,
                                  p.value(s.candidate.buffer, row).columns(s.candidate.start), p.value(s.h, row),
                                  next_h);
        case Cell::lstm: return lstm_forward<T>(to - from, p.hidden(), gates, p.value(s.c, row), next_h, next_c);
        case Cell::rnn:
            if (next_h) copy_rows<T>(to - from, p.hidden(), gates, next_h);
    }
}

// h_{t-1} -> h_t: a sequence that goes on writes into its row of step t + 1, one that ends into its final state.
template <class T>
static void update_states(const Position<T>& p, const Stage& s, int64_t t) {
    const int64_t going = p.shard.active[t + 1], all = p.shard.active[t], hidden = p.hidden();
    const int64_t states[] = {s.h, s.c};
    Matrix<T> next[2], end[2];  // rows that end here pass through the carry, whose
                                // rows [going, all) are free
    for (int k = 0; k < 2 && states[k] >= 0; ++k) {
        const Matrix<T> own = p.carry(states[k] - buffer_state);
        next[k] = t + 1 < p.chunk.end_step ? p.value(states[k], p.shard.offset[t + 1]) : own;
        end[k] = own.rows(going);
    }
    update_rows(p, s, 0, going, next[0], next[1]);
    update_rows(p, s, going, all, end[0], end[1]);
    if (s.output.width) {
        copy_rows<T>(going, hidden, next[0], p.value(s.output));
        copy_rows<T>(all - going, hidden, end[0], p.value(s.output).rows(going));
    }
    for (int k = 0; k < 2 && states[k] >= 0; ++k)
        for (int64_t i = going; i < all; ++i)
            copy(p.launch.final_state[states[k] - buffer_state] + p.shard.sequence[i] * hidden, end[k][i - going],
                 hidden);
}

// Where h_t and c_t are, once they are computed: row i of those that go on.
template <class T>
static Matrix<T> next_state(const Position<T>& p, int64_t state, int64_t t) {
    return t + 1 < p.chunk.end_step ? p.value(buffer_state + state, p.shard.offset[t + 1]) : p.carry(state);
}

// A sequence of length 0 keeps its state.
template <class T>
static void store_idle_states(const Position<T>& p) {
    for (int64_t i = 0; i < p.shard.sequences; ++i)
        if (p.shard.length[i] == 0)
            for (int64_t k = 0; k < p.program.states; ++k) {
                const int64_t at = p.shard.sequence[i] * p.hidden();
                copy(p.launch.final_state[k] + at, p.launch.state[k] + at, p.hidden());
            }
}

// ---- backward

template <class T>
static void load_state_gradients(const Position<T>& p) {
    for (int64_t s = 0; s < p.program.states; ++s)
        for (int64_t i = 0; i < p.shard.sequences; ++i) {
            const T* const given = p.launch.d_final_state[s];
            copy(p.work.d_final[s][i], given ? given + p.shard.sequence[i] * p.hidden() : nullptr, p.hidden());
        }
}

template <class T>
static void update_rows_backward(const Position<T>& p, const Stage& s, int64_t from, int64_t to, Matrix<T> d_h,
                                 Matrix<T> d_c) {
    const int64_t row = p.begin + from, hidden = p.hidden();
    const Matrix<T> gates = p.value(s.target.buffer, row).columns(s.target.start);
    const Matrix<T> d_gates = p.gradient(s.target.buffer, row).columns(s.target.start);
    switch (static_cast<Cell>(s.kind)) {
        case Cell::gru:
            return gru_backward<T>(to - from, hidden, gates,
                                   p.value(s.candidate.buffer, row).columns(s.candidate.start), p.value(s.h, row), d_h,
                                   d_gates, p.gradient(s.candidate.buffer, row).columns(s.candidate.start),
                                   p.gradient(s.h, row));
        case Cell::lstm:
            return lstm_backward<T>(to - from, hidden, gates, p.value(s.c, row), d_h, d_c, d_gates,
                                    p.gradient(s.c, row));
        case Cell::rnn: return copy_rows<T>(to - from, hidden, d_h, d_gates);
    }
}

template <class T>
static Matrix<T> next_state_gradient(const Position<T>& p, int64_t state, int64_t t) {
    return t + 1 < p.chunk.end_step ? p.gradient(buffer_state + state, p.shard.offset[t + 1]) : p.carry(state);
}

// The gradient of h_t comes from the sequence's row of step t + 1 or, at its end, from its final state; and from the
// layer above.
template <class T>
static void update_states_backward(const Position<T>& p, const Stage& s, int64_t t) {
    const int64_t going = p.shard.active[t + 1], all = p.shard.active[t], hidden = p.hidden();
    const int64_t states[] = {s.h, s.c};
    Matrix<T> later[2], end[2];
    for (int k = 0; k < 2 && states[k] >= 0; ++k) {
        const int64_t state = states[k] - buffer_state;
        later[k] = next_state_gradient(p, state, t);
        end[k] = p.work.d_final[state].rows(going);
    }
    if (s.first_gradient)
        for (int64_t i = 0; i < all; ++i) set_zero(p.gradient(s.h, p.begin)[i], hidden);
    if (s.output.width) {
        const Matrix<T> above = p.gradient(s.output);
        add_rows<T>(going, hidden, later[0], above);
        add_rows<T>(all - going, hidden, end[0], above.rows(going));
        later[0] = above;
        end[0] = above.rows(going);
    }
    update_rows_backward(p, s, 0, going, later[0], later[1]);
    update_rows_backward(p, s, going, all, end[0], end[1]);
}

// What begins anew adds to the gradient of what it begins with, biases + s.weights.
template <class T>
static void begin_states_backward(const Position<T>& p, const Stage& s, int64_t t, T* biases) {
    for_resets(p, t, [&](int64_t i) {
        const T* const d = p.gradient(s.target)[i];
        T* const total = biases + s.weights;
        for (int64_t j = 0; j < p.hidden(); ++j) total[j] += d[j];
    });
}

template <class T>
static void leave_chunk_backward(const Position<T>& p) {
    for (int64_t k = 0; k < p.program.states; ++k) {
        const Matrix<T> first = p.gradient(buffer_state + k, p.chunk.row);
        for (int64_t i = 0; i < p.shard.active[p.chunk.step]; ++i) copy(p.carry(k)[i], first[i], p.hidden());
    }
}

template <class T>
static void store_state_gradients(const Position<T>& p) {
    const int64_t started = p.shard.steps ? p.shard.active[0] : 0;
    for (int64_t k = 0; k < p.program.states; ++k)
        for (int64_t i = 0; i < p.shard.sequences; ++i)
            copy(p.launch.d_state[k] + p.shard.sequence[i] * p.hidden(),
                 i < started ? p.carry(k)[i] : p.work.d_final[k][i], p.hidden());
}

}  // namespace vrnn::VRNN_ISA
