// The programs of this process: decoded once, then known by a number.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "core/decode.h"
#include "digest.h"

namespace vrnn::ops {

// A decoded program.
struct Known {
    int64_t parameters;
    DecodedProgram decoded;
    Digest digest;

    Known(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters)
        : parameters(parameters), decoded(code, constants, parameters) {
        digest.add(parameters);
        for (const int64_t n : code) digest.add(n);
        for (const double c : constants) digest.add(c);
    }
    int64_t weights() const { return decoded.program.packed_size + decoded.program.bias_size; }
    int64_t packed_size() const { return weights() + line; }  // a label lies behind the weights
    int64_t width(int64_t buffer) const { return decoded.program.buffers[buffer].width; }
    int64_t width(Output o) const { return decoded.program.outputs[o].width; }
    bool draws() const { return decoded.program.output->op == Op::draw; }
    bool resamples() const {
        const auto& scan = decoded.program.scan;
        return scan[scan.size - 1].op == Op::resample;
    }
    bool conditioned() const { return decoded.program.cond >= 0; }
};

// Programs by number. Those that are held stay; of all others, those of the last calls.
class KnownPrograms {
  public:
    static constexpr size_t most_idle = 256;

    std::shared_ptr<const Known> operator()(const std::vector<int64_t>& code, const std::vector<double>& constants,
                                            int64_t parameters) {
        const std::lock_guard<std::mutex> guard(mutex_);
        return of(code, constants, parameters)->second.known;
    }
    std::shared_ptr<const Known> operator[](int64_t number) {
        const std::lock_guard<std::mutex> guard(mutex_);
        return used(at(number))->second.known;
    }
    int64_t number(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters) {
        const std::lock_guard<std::mutex> guard(mutex_);
        return of(code, constants, parameters)->first;
    }
    int64_t hold(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters) {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = of(code, constants, parameters);
        if (found->second.held++ == 0) idle_.erase(found->second.place);
        return found->first;
    }
    // How many are known then.
    int64_t release(int64_t number) {
        const std::lock_guard<std::mutex> guard(mutex_);
        Entry& entry = at(number)->second;
        STD_TORCH_CHECK(entry.held > 0, "program ", number, " is not held");
        if (--entry.held == 0) entry.place = idle_.insert(idle_.end(), number);
        forget();
        return static_cast<int64_t>(known_.size());
    }

  private:
    using Numbers = std::map<std::tuple<int64_t, std::vector<int64_t>, std::vector<double>>, int64_t>;
    struct Entry {
        std::shared_ptr<const Known> known;
        Numbers::iterator code;
        int64_t held = 0;
        std::list<int64_t>::iterator place;  // in idle_, where it is not held
    };
    using Entries = std::map<int64_t, Entry>;

    Entries::iterator at(int64_t number) {
        const auto found = known_.find(number);
        STD_TORCH_CHECK(found != known_.end(), "there is no program ", number);
        return found;
    }
    Entries::iterator used(Entries::iterator entry) {
        if (entry->second.held == 0) idle_.splice(idle_.end(), idle_, entry->second.place);
        return entry;
    }
    Entries::iterator of(const std::vector<int64_t>& code, const std::vector<double>& constants, int64_t parameters) {
        const auto [place, unknown] = numbers_.try_emplace({parameters, code, constants}, next_);
        if (!unknown) return used(at(place->second));
        try {
            std::list<int64_t> idle{next_};
            auto decoded = std::make_shared<const Known>(code, constants, parameters);
            const auto made = known_.emplace(next_, Entry{std::move(decoded), place, 0, idle.begin()}).first;
            idle_.splice(idle_.end(), idle);
            ++next_;
            forget();
            return made;
        } catch (...) {
            numbers_.erase(place);
            throw;
        }
    }
    void forget() {
        for (; idle_.size() > most_idle; idle_.pop_front()) {
            const auto oldest = known_.find(idle_.front());
            numbers_.erase(oldest->second.code);
            known_.erase(oldest);
        }
    }

    std::mutex mutex_;
    Numbers numbers_;
    Entries known_;
    std::list<int64_t> idle_;  // the last one was used last
    int64_t next_ = 0;
};

inline KnownPrograms programs;

// What calls take for a program: its whole code, or its number alone.
inline std::shared_ptr<const Known> known(const std::vector<int64_t>& program, const std::vector<double>& constants,
                                          int64_t parameters) {
    return program.size() == 1 ? programs[program[0]] : programs(program, constants, parameters);
}

}  // namespace vrnn::ops
