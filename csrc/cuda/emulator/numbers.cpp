#include "../device/emulator.h"

namespace vrnn::device {

u16 f16_bits(float x) {
    const u32 bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<u16>(sign | 0x7c00);  // 65520 and more
    if (magnitude < 0x38800000) {  // a subnormal: the sum with 0.5 has its bits last
        return static_cast<u16>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    return static_cast<u16>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

float f16_value(u16 bits) {
    const u32 sign = static_cast<u32>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace vrnn::device
