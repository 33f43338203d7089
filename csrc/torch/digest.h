// A number for what was said: a program, or the call that a tensor belongs to.
#pragma once

#include <cstdint>
#include <cstring>

namespace vrnn::ops {

class Digest {
  public:
    void add(int64_t n) {
        const uint64_t mixed = (value_ ^ static_cast<uint64_t>(n)) * 0x9e3779b97f4a7c15;
        value_ = mixed ^ (mixed >> 32);
    }
    void add(double x) {
        int64_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        add(bits);
    }
    // In pieces that every precision holds exactly.
    static constexpr int pieces = 4;
    template <class T>
    void write(T* to) const {
        for (int i = 0; i < pieces; ++i) to[i] = static_cast<T>(value_ >> 16 * i & 0xffff);
    }
    template <class T>
    bool is(const T* from) const {
        T own[pieces];
        write(own);
        bool same = true;
        for (int i = 0; i < pieces; ++i) same = same && from[i] == own[i];
        return same;
    }

  private:
    uint64_t value_ = 0x2545f4914f6cdd1d;
};

}  // namespace vrnn::ops
