// The resampling of a sequence's particles, and the way back of what came to them.
#pragma once

#include "states.h"

namespace vrnn::VRNN_ISA {

// weight (n) = exp(log_weight - its largest); returns their effective number, (sum w)^2 / sum w^2, or NaN
template <class T>
static double effective_number(int64_t n, const T* log_weight, T* weight) {
    T most = log_weight[0];
    for (int64_t i = 1; i < n; ++i) most = log_weight[i] > most ? log_weight[i] : most;
    for_vectors<T>(
        n, [&](int64_t j, int64_t count) { store(weight + j, exp(load(log_weight + j, count) - most), count); });
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
        sum += weight[i];
        squares += double(weight[i]) * weight[i];
    }
    return sum * sum / squares;
}

// Where the weights of a sequence's particles have become too uneven, each takes over the state of one that is drawn by
// them. The last step's are never drawn from: no bound depends on it.
template <class T>
static void resample(const Position<T>& p, int64_t t) {
    const Launch<T>& launch = p.launch;
    const Workspace<T>& work = p.work;
    const int64_t n = launch.particles, at = p.in_chunk(), hidden = p.hidden();
    for (int64_t i = 0; i < p.rows; ++i)
        work.log_weight[i] -= work.nll[at + i] + (p.program.divergence ? work.kl[at + i] : T(0));
    for (int64_t first = 0; first < p.rows; first += n) {
        T* const log_weight = work.log_weight + first;
        const auto ancestor = [&](int64_t i) { return launch.ancestors.at(t, p.shard.sequence[first + i]); };
        if (first >= p.shard.active[t + 1] ||
            !(effective_number(n, log_weight, work.weight) < launch.threshold * double(n))) {
            for (int64_t i = 0; i < n; ++i) *ancestor(i) = -1;
            continue;
        }
        double total = 0, last = 0, reached = work.weight[0];
        for (int64_t i = 0; i < n; ++i) total += work.weight[i];
        for (int64_t i = 0, k = 0; i < n; ++i) {
            const double wanted = *launch.uniforms.at(t, p.shard.sequence[first + i]) * total;
            if (wanted < last) reached = work.weight[k = 0];
            for (last = wanted; reached <= wanted && reached < total;) reached += work.weight[++k];
            *ancestor(i) = k;
        }
        for (int64_t s = 0; s < p.program.states; ++s) {
            const Matrix<T> own = next_state(p, s, t).rows(first);
            copy_rows<T>(n, hidden, own, work.group);
            for (int64_t i = 0; i < n; ++i) copy(own[i], work.group[*ancestor(i)], hidden);
        }
        set_zero(log_weight, n);
    }
}

// What a row gave to others comes back from all of them, in their order.
template <class T>
static void resample_backward(const Position<T>& p, int64_t t) {
    const int64_t n = p.launch.particles, hidden = p.hidden();
    const Matrix<T>& group = p.work.group;
    for (int64_t first = 0; first < p.shard.active[t + 1]; first += n) {
        const auto ancestor = [&](int64_t i) { return *p.launch.ancestors.at(t, p.shard.sequence[first + i]); };
        if (ancestor(0) < 0) continue;
        for (int64_t s = 0; s < p.program.states; ++s) {
            const Matrix<T> own = next_state_gradient(p, s, t).rows(first);
            copy_rows<T>(n, hidden, own, group);
            for (int64_t i = 0; i < n; ++i) set_zero(own[i], hidden);
            for (int64_t i = 0; i < n; ++i) add_rows<T>(1, hidden, group.rows(i), own.rows(ancestor(i)));
        }
    }
}

}  // namespace vrnn::VRNN_ISA
