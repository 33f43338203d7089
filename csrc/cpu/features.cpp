#include "features.h"

#include <cstdlib>
#include <stdexcept>

#include "launch.h"

namespace vrnn {

std::vector<Feature> cpu_features() {
#ifdef VRNN_X86
    __builtin_cpu_init();
    return {
        {"avx2", __builtin_cpu_supports("avx2") != 0},         {"fma", __builtin_cpu_supports("fma") != 0},
        {"avx512f", __builtin_cpu_supports("avx512f") != 0},   {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
        {"avx512dq", __builtin_cpu_supports("avx512dq") != 0}, {"avx512bw", __builtin_cpu_supports("avx512bw") != 0}};
#else
    return {};
#endif
}

std::vector<std::string> usable_isas() {
    std::vector<std::string> isas{"baseline"};
#ifdef VRNN_X86
    const auto all = [](std::initializer_list<const char*> names) {
        for (const char* name : names)
            for (const Feature& feature : cpu_features())
                if (std::string(feature.name) == name && !feature.present) return false;
        return true;
    };
    if (all({"avx2", "fma"})) isas.emplace_back("avx2");
    if (all({"avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw"})) isas.emplace_back("avx512");
#endif
    return isas;
}

std::string chosen_isa() {
    static const std::vector<std::string> isas = usable_isas();
    const char* wanted = std::getenv("VRNN_FAST_ISA");
    if (wanted == nullptr || *wanted == '\0') return isas.back();
    std::string known;
    for (const std::string& isa : isas) {
        if (isa == wanted) return isa;
        known += (known.empty() ? "" : ", ") + isa;
    }
    throw std::runtime_error("VRNN_FAST_ISA is '" + std::string(wanted) + "'; this machine can run: " + known);
}

const Isa& chosen_kernels() {
    const std::string name = chosen_isa();
#ifdef VRNN_X86
    for (const Isa* isa : {&isa_avx2, &isa_avx512})
        if (name == isa->name) return *isa;
#endif
    return isa_baseline;
}

}  // namespace vrnn
