// What this processor can do, and which build of the kernels it should run.
#pragma once

#include <string>
#include <vector>

namespace vrnn {

struct Feature {
    const char* name;
    bool present;
};

std::vector<Feature> cpu_features();

// The instruction sets that this build carries and this processor can run, best last: "baseline", "avx2", "avx512".
std::vector<std::string> usable_isas();

// The best of them, or what VRNN_FAST_ISA asks for. Throws std::runtime_error if that cannot be had.
std::string chosen_isa();

// The build of the kernels that it names.
struct Isa;
const Isa& chosen_kernels();

}  // namespace vrnn
