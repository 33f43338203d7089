#include "validate.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace vrnn {
namespace {

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("program: ") + what);
}

int64_t gates_of(Cell cell) {
    switch (cell) {
        case Cell::gru: return 3;
        case Cell::lstm: return 4;
        case Cell::rnn: return 1;
    }
    return 0;
}

class Widths {
  public:
    explicit Widths(const Program& program)
        : program_(program), input_(of(buffer_x)), latent_(of(buffer_eps)), hidden_(of(buffer_state)) {}

    void check(const Stage& s) const {
        const auto output = [&] {
            const int64_t heads = static_cast<Loss>(s.kind) == Loss::gaussian ? 2 : 1;
            require(s.source.width == heads * input_, "the decoder's output is as wide as x, a Gaussian's twice");
        };
        switch (s.op) {
            case Op::bias: require(!s.accumulate, "a bias starts a sum"); break;
            case Op::dense:
                require(!s.accumulate || s.terms.size == 0, "a product that is added to others brings no bias");
                break;
            case Op::activate:
            case Op::normalize:
                require(s.source.width == s.target.width, "an activation, or a normalisation, changes no width");
                require(s.op == Op::activate || !s.accumulate, "a normalisation has a scale and a shift");
                break;
            case Op::add: require(s.source.width == s.target.width, "two widths that are added differ"); break;
            case Op::sample: heads(s.source, s.std, s.target); break;
            case Op::recur: {
                const auto cell = static_cast<Cell>(s.kind);
                require(is_state(s.h) && (cell == Cell::lstm ? is_state(s.c) : s.c < 0),
                        "a cell update lacks its state");
                require(s.candidate.width == (cell == Cell::gru ? hidden_ : 0), "a candidate is as wide as h");
                require(s.target.width == gates_of(cell) * hidden_, "gates are as wide as h, each");
                require(s.output.width == 0 || s.output.width == hidden_, "an output is as wide as h");
                break;
            }
            case Op::divergence:
                heads(s.posterior, s.posterior_std, s.z.width ? s.z : s.std);
                heads(s.source, s.std, s.std);
                break;
            case Op::likelihood:
                if (static_cast<Loss>(s.kind) != Loss::external) output();
                break;
            case Op::resample: break;
            case Op::begin:
                require(is_state(s.target.buffer) && s.target.width == hidden_, "what begins is a whole state");
                break;
            case Op::draw:
                output();
                require(s.target.buffer == buffer_x && s.target.width == input_, "what is drawn is x");
                require(s.noise.width == input_ && of(s.noise.buffer) == input_, "the noise is as wide as x");
                break;
        }
    }
    void check_states() const {
        for (int64_t k = 0; k < program_.states; ++k)
            require(of(buffer_state + k) == hidden_, "the states are as wide as each other");
    }

  private:
    int64_t of(int64_t buffer) const { return program_.buffers[buffer].width; }
    bool is_state(int64_t buffer) const { return buffer >= buffer_state && buffer < buffer_state + program_.states; }
    // [mean | raw], and what is computed of them.
    void heads(const Slice& source, const Slice& std, const Slice& z) const {
        const bool good = source.width == 2 * latent_ && std.width == latent_ && z.width == latent_;
        require(good && latent_ > 0, "mean, standard deviation and z are as wide as eps");
    }

    const Program& program_;
    int64_t input_, latent_, hidden_;
};

std::string in_words(const Extent& e) {
    const std::string rows = "(" + std::to_string(e.rows);
    return rows + (e.dimensions == 2 ? ", " + std::to_string(e.columns) : "") + ")";
}

bool within(const Span<Stage>& stages, const Stage* s) {
    return s >= stages.begin() && s < stages.end();
}

}  // namespace

void validate(const Program& program) {
    const Widths widths(program);
    widths.check_states();
    const Stage* first_recur = nullptr;
    for (const Stage& s : program.stages) {
        widths.check(s);
        const bool in_scan = within(program.scan, &s);
        if (s.op == Op::recur || s.op == Op::sample || s.op == Op::begin)
            require(in_scan, "a stage of the chain is outside the scan");
        if (s.op == Op::resample)
            require(in_scan && &s + 1 == program.scan.end(), "resampling is not the end of the scan");
        if (s.op == Op::recur && !first_recur) first_recur = &s;
    }
    // a single step runs on from its sample to the gates, and from the divergence to the output
    require(!program.sample || program.sample < first_recur, "z is drawn behind the cell update");
    require(!program.divergence || program.divergence < program.output, "the divergence is behind the likelihood");
    require(program.packed_size > 0, "there is no product");
}

void validate(const Program& program, const Extent* parameters, int64_t count) {
    std::vector<Extent> reached(count, Extent{0, 0, 0});
    const auto reach = [&](int64_t p, const Extent& end) {
        Extent& all = reached[p];
        if (end.dimensions != parameters[p].dimensions)
            throw std::invalid_argument("parameter " + std::to_string(p) + " must have " +
                                        std::to_string(end.dimensions) + " dimensions, got " +
                                        std::to_string(parameters[p].dimensions));
        all = {end.dimensions, std::max(all.rows, end.rows), std::max(all.columns, end.columns)};
    };
    const auto place = [](int64_t at) {
        require(at >= 0 && at <= most_width, "a parameter is read where it cannot be");
        return at;
    };
    for (const Stage& s : program.stages) {
        for (const Block& b : s.blocks)
            reach(b.parameter, {2, place(b.row) + b.rows, place(b.column) + s.source.width});
        for (const Term& t : s.terms) reach(t.parameter, {1, place(t.row) + t.rows, 1});
    }
    const bool draws = program.output->op == Op::draw;  // and reads no encoder
    for (int64_t p = 0; p < count; ++p) {
        const Extent &all = reached[p], &given = parameters[p];
        const bool same = all.rows == given.rows && all.columns == given.columns;
        if (all.dimensions == 0 ? !draws : !same)
            throw std::invalid_argument("parameter " + std::to_string(p) + " must be " + in_words(all) + ", got " +
                                        in_words(given));
    }
}

}  // namespace vrnn
