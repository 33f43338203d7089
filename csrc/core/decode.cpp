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
    Reader(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters)
        : code_(code), constants_(constants), parameters_(parameters) {}

    int64_t next() {
        if (at_ >= code_.size()) throw std::invalid_argument("program: the code ends in the middle of a stage");
        return code_[at_++];
    }
    int64_t next_below(int64_t end, const char* what) {
        const int64_t n = next();
        if (n < 0 || n >= end) throw std::invalid_argument(std::string("program: ") + what + " is out of range");
        return n;
    }
    bool at_end() const { return at_ == code_.size(); }

    Buffer buffer(int64_t least) {
        const int64_t width = next(), stride = next();
        if (width < least || width > most_width)
            throw std::invalid_argument("program: a buffer's width is out of range");
        if (stride < line || stride < width || stride > round_up(width) + line || stride % line)
            throw std::invalid_argument("program: a buffer's stride is bad");
        return {width, stride, static_cast<Keep>(next_below(members(Keep_names), "how long a buffer is kept"))};
    }
    Slice slice(const std::vector<Buffer>& buffers) {
        Slice s{next_below(static_cast<int64_t>(buffers.size()), "a buffer"), next(), next()};
        if (s.start < 0 || s.width < 1 || s.width > buffers[s.buffer].width - s.start)
            throw std::invalid_argument("program: a slice leaves its buffer");
        return s;
    }
    Block block(const Slice& target) {
        const int64_t p = next_below(parameters_, "a parameter");
        Block block{p, next(), next(), next(), next()};
        if (block.at < 0 || block.rows < 1 || block.rows > target.width - block.at)
            throw std::invalid_argument("program: a block leaves its target");
        return block;
    }
    Term term(const Slice& target) {
        const int64_t p = next_below(parameters_, "a parameter");
        Term term{p, next(), next(), next()};
        if (term.at < 0 || term.rows < 1 || term.rows > target.width - term.at)
            throw std::invalid_argument("program: a term leaves its target");
        return term;
    }
    Std deviation() {
        const auto kind = static_cast<StdKind>(next_below(members(StdKind_names), "a standard deviation"));
        Std s{kind, constant(), 1, 0, 0, 0, 0};
        if (s.kind != StdKind::plain)
            for (double* value : {&s.scale, &s.shift, &s.minimum, &s.low, &s.high}) *value = constant();
        // what the encoding has for no bound; infinity is within
        if (s.low <= -std::numeric_limits<float>::max()) s.low = -std::numeric_limits<double>::infinity();
        if (s.high >= std::numeric_limits<float>::max()) s.high = std::numeric_limits<double>::infinity();
        return s;
    }

    double constant() { return constants_.at(next_below(static_cast<int64_t>(constants_.size()), "a constant")); }

  private:
    const std::vector<int64_t>& code_;
    const std::vector<double>& constants_;
    int64_t parameters_;
    size_t at_ = 0;
};

// What a stage that has no weights reads and writes.
Stage read_elementwise(Reader& in, Op op, const std::vector<Buffer>& buffers) {
    const auto slice = [&] { return in.slice(buffers); };
    Stage s{};
    s.op = op;
    switch (op) {
        case Op::bias:
        case Op::dense:
        case Op::begin:
        case Op::normalize:
        case Op::resample: break;
        case Op::activate:
            s.source = slice();
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
            s.deviation = in.deviation();
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
            s.deviation = in.deviation();
            if (in.next()) s.z = slice();
            break;
        case Op::likelihood:
            s.source = slice();
            s.kind = in.next_below(members(Loss_names), "a likelihood");
            s.deviation = in.deviation();
            break;
        case Op::draw:
            s.source = slice();
            s.noise = slice();
            s.target = slice();
            s.kind = in.next_below(static_cast<int64_t>(Loss::external), "a likelihood to draw from");
            s.mean = in.next() != 0;
            s.deviation = in.deviation();
            break;
    }
    return s;
}

// Where the stage's biases, packed weights and gradient lie, behind those of the stages so far.
void lay_out(Stage& s, Program& program) {
    if (!s.accumulate) {
        s.weights = program.bias_size;
        const int64_t each = s.op == Op::normalize ? 2 : 1;               // [scale | shift]
        program.bias_size += round_up(each * s.target.width) + 2 * line;  // the micro-kernel reads whole panels
    }
    if (s.op != Op::dense) return;
    s.packed = program.packed_size;
    s.gradient = program.gradient_size;
    const int64_t by_columns = s.source.width * round_up(s.target.width);
    const int64_t by_rows = s.target.width * round_up(s.source.width);
    program.packed_size += round_up(by_columns > by_rows ? by_columns : by_rows);
    program.gradient_size += s.target.width * round_up(s.source.width) + 2 * line;
}

// Backward runs the stages in reverse; whoever comes first to a source's gradient overwrites what was there. That of x
// is zeroed beforehand, since the likelihood adds to it as well.
void mark_first_gradients(std::vector<Stage>& stages) {
    std::vector<Slice> written{{buffer_x, 0, 0}};
    for (auto s = stages.rbegin(); s != stages.rend(); ++s) {
        const bool gru = s->op == Op::recur && static_cast<Cell>(s->kind) == Cell::gru;
        const bool sampled = s->op == Op::divergence && s->z.width > 0;
        if (s->op != Op::dense && !gru && !sampled) continue;
        const Slice read = gru ? Slice{s->h, 0, 0} : sampled ? s->z : s->source;
        s->first_gradient = true;
        for (const Slice& slice : written)  // two sources are the same or have no column in common
            if (slice.buffer == read.buffer && slice.start == read.start) s->first_gradient = false;
        written.push_back(read);
    }
}

// The stages that others look for by what they are; throws where one is missing.
void find_stages(Program& program) {
    int64_t count[members(Op_names)] = {};
    for (const Stage& s : program.stages) {
        ++count[static_cast<int64_t>(s.op)];
        if (s.op == Op::likelihood || s.op == Op::draw) program.output = &s;
        if (s.op == Op::sample) program.sample = &s;
        if (s.op == Op::divergence) program.divergence = &s;
        if (s.op == Op::recur && program.gates < 0) {
            const bool activated = &s != program.stages.begin() && (&s)[-1].op == Op::activate;
            program.gates = activated ? (&s)[-1].source.buffer : s.target.buffer;
        }
    }
    const auto of = [&](Op op) { return count[static_cast<int64_t>(op)]; };
    const int64_t drawn = of(Op::draw);
    if (of(Op::likelihood) + drawn != 1 || of(Op::recur) < 1 || of(Op::sample) > 1 ||
        of(Op::divergence) != (drawn ? 0 : of(Op::sample)) || of(Op::resample) > (drawn ? 0 : 1))
        throw std::invalid_argument("program: a stage that every program has is missing");
}

// Where each output lies.
void find_outputs(Program& program) {
    // [mean | raw], whose second half is no output
    const auto half = [](const Slice& s) { return Slice{s.buffer, s.start, s.width / 2}; };
    const Slice none{-1, 0, program.buffers[buffer_eps].width};
    const Stage *q = program.divergence ? program.sample : nullptr, *p = program.divergence;
    program.outputs[Output::nll] = program.outputs[Output::kl] = {-1, 0, 1};
    program.outputs[Output::z] = q ? q->target : none;
    program.outputs[Output::mean] = q ? half(q->source) : none;
    program.outputs[Output::std] = q ? q->std : none;
    program.outputs[Output::prior_mean] = p ? half(p->source) : none;
    program.outputs[Output::prior_std] = p ? p->std : none;
    program.outputs[Output::raw] = program.output->source;
}

}  // namespace

DecodedProgram::DecodedProgram(const std::vector<int64_t>& code, const std::vector<double>& constants,
                               int64_t parameters) {
    Reader in(code, constants, parameters);
    if (in.next() != program_format)
        throw std::invalid_argument("program: this build reads format " + std::to_string(program_format));
    in.next();  // the width of the decoder's raw output, for those who do not decode
    const int64_t buffers = in.next_below(most_buffers + 1, "the number of buffers");
    program.states = in.next_below(most_states + 1, "the number of states");
    const int64_t end_state = buffer_state + program.states;
    program.cond = in.next();
    if (program.states < 1 || end_state > buffers || program.cond < -1 || program.cond >= buffers)
        throw std::invalid_argument("program: a buffer that every program has is missing");
    for (int64_t i = 0; i < buffers; ++i) buffers_.push_back(in.buffer(i == buffer_eps ? 0 : 1));

    int64_t counts[3];  // of the stages before, in and after the scan
    for (int64_t& n : counts) n = in.next_below(too_many, "the number of stages");
    std::vector<int64_t> block_count, term_count;
    for (int64_t i = 0; i < counts[0] + counts[1] + counts[2]; ++i) {
        const auto op = static_cast<Op>(in.next_below(members(Op_names), "a stage's kind"));
        Stage s = read_elementwise(in, op, buffers_);
        int64_t blocks = 0, terms = 0;
        if (op == Op::dense || op == Op::bias || op == Op::begin || op == Op::normalize) {
            if (op == Op::dense || op == Op::normalize) s.source = in.slice(buffers_);
            s.target = in.slice(buffers_);
            Slice stacked = s.target;
            if (op == Op::normalize) {
                s.epsilon = in.constant();
                stacked.width *= 2;
            }
            s.accumulate = in.next() != 0;
            blocks = in.next_below(too_many, "the number of blocks");
            terms = in.next_below(too_many, "the number of terms");
            for (int64_t b = 0; b < blocks; ++b) blocks_.push_back(in.block(s.target));
            for (int64_t t = 0; t < terms; ++t) terms_.push_back(in.term(stacked));
            lay_out(s, program);
            if (op == Op::dense)
                flops_per_row += 2.0 * static_cast<double>(s.source.width) * static_cast<double>(s.target.width);
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
    mark_first_gradients(stages_);
    program.gradient_size += program.bias_size;
    program.buffers = {buffers_.data(), buffers};
    program.before = {stages_.data(), counts[0]};
    program.scan = {stages_.data() + counts[0], counts[1]};
    program.after = {stages_.data() + counts[0] + counts[1], counts[2]};
    program.stages = {stages_.data(), static_cast<int64_t>(stages_.size())};
    find_stages(program);
    find_outputs(program);
    validate(program);
}

}  // namespace vrnn
