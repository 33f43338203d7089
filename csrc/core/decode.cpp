#include "decode.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "validate.h"

namespace vrnn {
namespace {

constexpr int64_t too_many = 1000;  // stages of a part, blocks or terms of one: no cell has as many

int64_t round_up(int64_t n) {
    return (n + line - 1) / line * line;
}

class Reader {
  public:
    Reader(const std::vector<int64_t>& code, const std::vector<double>& constants)
        : code_(code), constants_(constants) {}

    int64_t next() {
        if (at_ >= code_.size()) throw std::invalid_argument("program: the code ends in the middle of a stage");
        return code_[at_++];
    }
    int64_t next_below(int64_t end, const char* what) {
        const int64_t n = next();
        if (n < 0 || n >= end) throw std::invalid_argument(std::string("program: ") + what + " is out of range");
        return n;
    }
    double constant() { return constants_.at(next_below(static_cast<int64_t>(constants_.size()), "a constant")); }
    bool at_end() const { return at_ == code_.size(); }

  private:
    const std::vector<int64_t>& code_;
    const std::vector<double>& constants_;
    size_t at_ = 0;
};

}  // namespace

DecodedProgram::DecodedProgram(const std::vector<int64_t>& code, const std::vector<double>& constants,
                               int64_t parameters) {
    Reader in(code, constants);
    if (in.next() != program_format)
        throw std::invalid_argument("program: this build reads format " + std::to_string(program_format));
    in.next();  // the width of the decoder's raw output, for those who do not decode
    const int64_t buffers = in.next_below(most_buffers + 1, "the number of buffers");
    program.states = in.next_below(most_states + 1, "the number of states");
    const int64_t end_state = buffer_state + program.states;
    program.cond = in.next();
    if (program.states < 1 || end_state > buffers || program.cond < -1 || program.cond >= buffers)
        throw std::invalid_argument("program: a buffer that every program has is missing");
    for (int64_t i = 0; i < buffers; ++i) {
        const int64_t width = in.next(), stride = in.next();
        if (width < (i == buffer_eps ? 0 : 1) || width > most_width)
            throw std::invalid_argument("program: a buffer's width is out of range");
        if (stride < line || stride < width || stride > round_up(width) + line || stride % line)
            throw std::invalid_argument("program: a buffer's stride is bad");
        buffers_.push_back(
            {width, stride, static_cast<Keep>(in.next_below(members(Keep_names), "how long a buffer is kept"))});
    }
    const auto slice = [&] {
        Slice s{in.next_below(buffers, "a buffer"), in.next(), in.next()};
        if (s.start < 0 || s.width < 1 || s.width > buffers_[s.buffer].width - s.start)
            throw std::invalid_argument("program: a slice leaves its buffer");
        return s;
    };

    const auto deviation = [&] {
        const auto kind = static_cast<StdKind>(in.next_below(members(StdKind_names), "a standard deviation"));
        Std s{kind, in.constant(), 1, 0, 0, 0, 0};
        if (s.kind != StdKind::plain)
            for (double* value : {&s.scale, &s.shift, &s.minimum, &s.low, &s.high}) *value = in.constant();
        // what the encoding has for no bound; infinity is within
        if (s.low <= -std::numeric_limits<float>::max()) s.low = -std::numeric_limits<double>::infinity();
        if (s.high >= std::numeric_limits<float>::max()) s.high = std::numeric_limits<double>::infinity();
        return s;
    };

    int64_t counts[3];
    for (int64_t& n : counts) n = in.next_below(too_many, "the number of stages");
    std::vector<int64_t> block_count, term_count;
    for (int64_t i = 0; i < counts[0] + counts[1] + counts[2]; ++i) {
        Stage s{};
        s.op = static_cast<Op>(in.next_below(members(Op_names), "a stage's kind"));
        int64_t blocks = 0, terms = 0;
        switch (s.op) {
            case Op::dense: s.source = slice(); [[fallthrough]];
            case Op::bias:
                s.target = slice();
                s.accumulate = in.next() != 0;
                blocks = in.next_below(too_many, "the number of blocks");
                terms = in.next_below(too_many, "the number of terms");
                for (int64_t b = 0; b < blocks; ++b) {
                    const int64_t p = in.next_below(parameters, "a parameter");
                    Block block{p, in.next(), in.next(), in.next(), in.next()};
                    if (block.at < 0 || block.rows < 1 || block.rows > s.target.width - block.at)
                        throw std::invalid_argument("program: a block leaves its target");
                    blocks_.push_back(block);
                }
                for (int64_t t = 0; t < terms; ++t) {
                    const int64_t p = in.next_below(parameters, "a parameter");
                    Term term{p, in.next(), in.next(), in.next()};
                    if (term.at < 0 || term.rows < 1 || term.rows > s.target.width - term.at)
                        throw std::invalid_argument("program: a term leaves its target");
                    terms_.push_back(term);
                }
                if (!s.accumulate) {
                    s.weights = program.bias_size;
                    program.bias_size += round_up(s.target.width) + 2 * line;  // the micro-kernel reads whole panels
                }
                if (s.op == Op::dense) {
                    s.packed = program.packed_size;
                    s.gradient = program.gradient_size;
                    const int64_t by_columns = s.source.width * round_up(s.target.width);
                    const int64_t by_rows = s.target.width * round_up(s.source.width);
                    program.packed_size += round_up(by_columns > by_rows ? by_columns : by_rows);
                    program.gradient_size += s.target.width * round_up(s.source.width) + 2 * line;
                    flops_per_row += 2.0 * static_cast<double>(s.source.width) * static_cast<double>(s.target.width);
                }
                break;
            case Op::activate:
                s.target = slice();
                s.kind = in.next_below(members(Activation_names), "an activation");
                break;
            case Op::add:
                s.source = slice();
                s.target = slice();
                break;
            case Op::sample:
                s.source = slice();
                s.std = slice();
                s.target = slice();
                s.deviation = deviation();
                break;
            case Op::recur:
                s.kind = in.next_below(members(Cell_names), "a cell");
                s.target = slice();
                s.h = slice().buffer;
                if (in.next()) s.candidate = slice();
                if (in.next()) s.c = slice().buffer;
                if (in.next()) s.output = slice();
                break;
            case Op::divergence:
                s.posterior = slice();
                s.posterior_std = slice();
                s.source = slice();
                s.std = slice();
                s.deviation = deviation();
                if (in.next()) s.z = slice();
                break;
            case Op::likelihood:
                s.source = slice();
                s.kind = in.next_below(members(Loss_names), "a likelihood");
                s.deviation = deviation();
                break;
            case Op::resample: break;
            case Op::draw:
                s.source = slice();
                s.noise = slice();
                s.target = slice();
                s.kind = in.next_below(static_cast<int64_t>(Loss::external), "a likelihood to draw from");
                s.mean = in.next() != 0;
                s.deviation = deviation();
                break;
        }
        block_count.push_back(blocks);
        term_count.push_back(terms);
        stages_.push_back(s);
    }
    if (!in.at_end()) throw std::invalid_argument("program: the code goes on behind its last stage");

    const Block* block = blocks_.data();
    const Term* term = terms_.data();
    for (size_t i = 0; i < stages_.size(); ++i) {
        stages_[i].blocks = {block, block_count[i]};
        stages_[i].terms = {term, term_count[i]};
        block += block_count[i];
        term += term_count[i];
    }
    // Backward runs the stages in reverse; whoever comes first to a source's gradient overwrites what was there. That
    // of x is zeroed beforehand, since the likelihood adds to it as well.
    std::vector<Slice> written{{buffer_x, 0, 0}};
    for (auto s = stages_.rbegin(); s != stages_.rend(); ++s) {
        const bool gru = s->op == Op::recur && static_cast<Cell>(s->kind) == Cell::gru;
        const bool sampled = s->op == Op::divergence && s->z.width > 0;
        if (s->op != Op::dense && !gru && !sampled) continue;
        const Slice read = gru ? Slice{s->h, 0, 0} : sampled ? s->z : s->source;
        s->first_gradient = true;
        for (const Slice& slice : written)  // two sources are the same or have no column in common
            if (slice.buffer == read.buffer && slice.start == read.start) s->first_gradient = false;
        written.push_back(read);
    }
    const auto count = [&](Op op) {
        int64_t n = 0;
        for (const Stage& s : stages_) n += s.op == op;
        return n;
    };
    const int64_t drawn = count(Op::draw);
    if (count(Op::likelihood) + drawn != 1 || count(Op::recur) < 1 || count(Op::sample) > 1 ||
        count(Op::divergence) != (drawn ? 0 : count(Op::sample)) || count(Op::resample) > (drawn ? 0 : 1))
        throw std::invalid_argument("program: a stage that every program has is missing");
    program.gradient_size += program.bias_size;
    program.buffers = {buffers_.data(), buffers};
    program.before = {stages_.data(), counts[0]};
    program.scan = {stages_.data() + counts[0], counts[1]};
    program.after = {stages_.data() + counts[0] + counts[1], counts[2]};
    program.stages = {stages_.data(), static_cast<int64_t>(stages_.size())};
    for (const Stage& s : stages_) {
        if (s.op == Op::likelihood || s.op == Op::draw) program.output = &s;
        if (s.op == Op::sample) program.sample = &s;
        if (s.op == Op::divergence) program.divergence = &s;
        if (s.op == Op::recur && program.gates < 0) program.gates = s.target.buffer;
    }
    // [mean | raw], whose second half is no output
    const auto half = [](const Slice& s) { return Slice{s.buffer, s.start, s.width / 2}; };
    const Slice none{-1, 0, buffers_[buffer_eps].width};
    const Stage *q = program.divergence ? program.sample : nullptr, *p = program.divergence;
    program.outputs[Output::nll] = program.outputs[Output::kl] = {-1, 0, 1};
    program.outputs[Output::z] = q ? q->target : none;
    program.outputs[Output::mean] = q ? half(q->source) : none;
    program.outputs[Output::std] = q ? q->std : none;
    program.outputs[Output::prior_mean] = p ? half(p->source) : none;
    program.outputs[Output::prior_std] = p ? p->std : none;
    program.outputs[Output::raw] = program.output->source;
    validate(program);
}

}  // namespace vrnn
