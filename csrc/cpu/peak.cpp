#include "peak.h"

#include <chrono>
#include <stdexcept>

#include "features.h"

namespace vrnn {
namespace {

#ifdef VRNN_X86

// Twelve independent sums in one assembly block: compilers keep an array of accumulators in memory and report a third.
#    define VRNN_TWELVE(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11)
#    define VRNN_CLOBBERS                                                                                          \
        "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
            "xmm13", "xmm14", "xmm15", "cc"
#    define VRNN_ZERO_X(i) "xorps %%xmm" #i ", %%xmm" #i "\n"
#    define VRNN_ZERO_V(i) "vxorps %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n"
#    define VRNN_PAIR(i) "mulps %%xmm12, %%xmm" #i "\naddps %%xmm13, %%xmm" #i "\n"
#    define VRNN_FMA_256(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#    define VRNN_FMA_512(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#    define VRNN_LOOP(ZERO, STEP, END)                                                                            \
        asm volatile(VRNN_TWELVE(ZERO) ZERO(12) ZERO(13) ZERO(14) "1:\n" VRNN_TWELVE(STEP) "dec %0\njnz 1b\n" END \
                     : "+r"(count)                                                                                \
                     :                                                                                            \
                     : VRNN_CLOBBERS)

void baseline_loop(long count) {
    VRNN_LOOP(VRNN_ZERO_X, VRNN_PAIR, "");
}
void avx2_loop(long count) {
    VRNN_LOOP(VRNN_ZERO_V, VRNN_FMA_256, "vzeroupper\n");
}
void avx512_loop(long count) {
    VRNN_LOOP(VRNN_ZERO_V, VRNN_FMA_512, "vzeroupper\n");
}

struct Loop {
    const char* isa;
    void (*run)(long);
    int lanes;
};
constexpr Loop loops[] = {{"baseline", baseline_loop, 4}, {"avx2", avx2_loop, 8}, {"avx512", avx512_loop, 16}};

#endif

}  // namespace

double fma_peak(const std::string& isa, [[maybe_unused]] double seconds) {
    for (const std::string& usable : usable_isas()) {
        if (usable != isa) continue;
#ifdef VRNN_X86
        for (const Loop& loop : loops) {
            if (isa != loop.isa) continue;
            constexpr long count = 1000000;
            const auto start = std::chrono::steady_clock::now();
            double elapsed = 0, best = 0, before = 0;
            while (elapsed < seconds) {
                loop.run(count);
                elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
                const double rate = 12.0 * 2 * loop.lanes * count / (elapsed - before) * 1e-9;
                best = rate > best ? rate : best;
                before = elapsed;
            }
            return best;
        }
#endif
        throw std::invalid_argument("the peak is not measured on this architecture");
    }
    throw std::invalid_argument("isa must be one that this machine can run, got '" + isa + "'");
}

}  // namespace vrnn
