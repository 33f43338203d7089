// The programs of this process: decoded once, then known by a number.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "core/decode.h"

namespace vrnn::ops {

// A decoded program. Kept for good under a number, since a process runs few cells.
struct Known {
    int64_t parameters;
    DecodedProgram decoded;

    Known(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters)
        : parameters(parameters), decoded(code, constants, parameters) {}
    int64_t weights() const { return decoded.program.packed_size + decoded.program.bias_size; }
    // Behind the weights a line: the number of the build that they are packed for, and into how many shards the batch
    // of that call was dealt.
    int64_t packed_size() const { return weights() + line; }
    int64_t width(int64_t buffer) const { return decoded.program.buffers[buffer].width; }
    int64_t output() const { return decoded.program.output->source.width; }
    bool draws() const { return decoded.program.output->op == Op::draw; }
    bool resamples() const {
        const auto& scan = decoded.program.scan;
        return scan[scan.size - 1].op == Op::resample;
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

inline KnownPrograms programs;

// What calls take for a program: its whole code, or its number alone.
inline const Known& known(const std::vector<int64_t>& program, const std::vector<double>& constants,
                          int64_t parameters) {
    return programs[program.size() == 1 ? program[0] : programs.number(program, constants, parameters)];
}

}  // namespace vrnn::ops
