#include "reach.h"

#include <algorithm>

namespace vrnn {
namespace {

// From what a stage writes to what it reads.
void spread(const Stage& s, bool* reached) {
    switch (s.op) {
        case Op::dense:
        case Op::activate:
        case Op::normalize:
        case Op::add:
        case Op::sample:
            if (reached[s.target.buffer]) reached[s.source.buffer] = true;
            break;
        case Op::recur:
            if (reached[s.h] || (s.c >= 0 && reached[s.c]) || (s.output.width && reached[s.output.buffer])) {
                reached[s.target.buffer] = reached[s.h] = true;
                if (s.c >= 0) reached[s.c] = true;
                if (s.candidate.width) reached[s.candidate.buffer] = true;
            }
            break;
        case Op::bias:
        case Op::divergence:
        case Op::likelihood:
        case Op::resample:
        case Op::draw:
        case Op::begin: break;
    }
}

}  // namespace

void reach(const Program& program, const PerOutput<bool>& given, bool state, bool* reached) {
    const Stage *sample = program.sample, *divergence = program.divergence, *output = program.output;
    const auto add = [&](const Slice& s) { reached[s.buffer] = true; };
    std::fill(reached, reached + program.buffers.size, false);
    if (given[Output::raw] || (given[Output::nll] && static_cast<Loss>(output->kind) != Loss::external))
        add(output->source);
    if (sample && given[Output::z]) add(sample->target);
    if (sample && (given[Output::mean] || given[Output::std])) add(sample->source);
    if (divergence && (given[Output::prior_mean] || given[Output::prior_std])) add(divergence->source);
    if (divergence && given[Output::kl]) {
        add(divergence->source);
        add(divergence->posterior);
        if (divergence->z.width) add(divergence->z);
    }
    if (state) std::fill(reached + buffer_state, reached + buffer_state + program.states, true);
    const auto count = [&] { return std::count(reached, reached + program.buffers.size, true); };
    for (auto before = count() - 1; before != count();) {
        before = count();
        for (int64_t i = program.stages.size - 1; i >= 0; --i) spread(program.stages[i], reached);
    }
}

}  // namespace vrnn
