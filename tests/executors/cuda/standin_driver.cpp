// NVIDIA's driver, as far as vrnn_fast/executors/cuda/driver.py calls it, for a machine without a GPU: it refuses what
// a driver would, and hands each launch to whoever has asked for them. Memory of the device is that of the host.
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

namespace {

// of a launch: module, grid, block, blocks of a cluster, bytes of shared memory, stream, the argument
using Launched = int (*)(int module, const unsigned* grid, const unsigned* block, unsigned ranks, unsigned shared,
                         void* stream, const void* argument);
using Loaded = int (*)(const void* image);  // the number of a module, or minus a code

struct Function {
    int module, shared = 48 << 10;
};

struct Attribute {  // CUlaunchAttribute
    int number, padding;
    unsigned value[16];
};
struct Configuration {  // CUlaunchConfig
    unsigned grid[3], block[3], shared;
    void* stream;
    const Attribute* attributes;
    unsigned count;
};

// What a launch asks for: 2, that all blocks run at once; 4, clusters of so many.
unsigned asked(const Configuration& how, int number) {
    for (unsigned i = 0; i < how.count; ++i)
        if (how.attributes[i].number == number) return how.attributes[i].value[0];
    return number == 4 ? 1 : 0;
}

Launched on_launch = nullptr;
Loaded on_load = nullptr;
std::map<std::string, int> failures;  // by function: the code that it returns
std::map<int, int> attributes{{75, 9}, {76, 0}, {97, 227 << 10}, {16, 4}, {95, 1}, {1001, 1}, {1002, 16}};
int contexts = 0, capturing = 0, cleared = 0, large_clusters = 0;
bool begun = false;
Function functions[4096];
int functions_in_all = 0;
int context;

int code(const char* function) {
    const auto found = failures.find(function);
    if (found != failures.end()) return found->second;
    return begun || !std::strcmp(function, "cuInit") ? 0 : 3;
}

}  // namespace

extern "C" {

void standin_begin(Launched launched, Loaded loaded) {
    on_launch = launched, on_load = loaded;
    failures.clear();
    attributes = {{75, 9}, {76, 0}, {97, 227 << 10}, {16, 4}, {95, 1}, {1001, 1}, {1002, 16}};
    contexts = capturing = cleared = large_clusters = 0;
}
void standin_fail(const char* function, int with) {
    failures[function] = with;
}
void standin_attribute(int number, int value) {
    attributes[number] = value;
}
void standin_capture(int whether) {
    capturing = whether;
}
int standin_cleared() {
    return cleared;
}
int standin_large_clusters() {
    return large_clusters;
}
int standin_contexts() {
    return contexts;
}

int cuInit(unsigned flags) {
    begun = true;
    return flags ? 1 : code("cuInit");
}
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
int cuGetErrorName(int number, const char** name) {
    *name = number == 1     ? "CUDA_ERROR_INVALID_VALUE"
            : number == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
            : number == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : number == 701 ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
            : number == 720 ? "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"
                            : nullptr;
    return *name ? 0 : 1;
}
int cuGetErrorString(int number, const char** text) {
    *text = number == 1     ? "invalid argument"
            : number == 209 ? "no kernel image is available for execution on the device"
            : number == 700 ? "an illegal memory access was encountered"
            : number == 701 ? "too many resources requested for launch"
            : number == 720 ? "too many blocks in cooperative launch"
                            : nullptr;
    return *text ? 0 : 1;
}
int cuDeviceGet(int* device, int ordinal) {
    *device = 40 + ordinal;
    return ordinal == 0 ? code("cuDeviceGet") : 101;
}
int cuDeviceGetAttribute(int* value, int number, int device) {
    if (device != 40 || !attributes.count(number)) return 1;
    *value = attributes[number];
    return code("cuDeviceGetAttribute");
}
int cuDevicePrimaryCtxRetain(void** to, int device) {
    *to = &context;
    return device == 40 ? code("cuDevicePrimaryCtxRetain") : 101;
}
int cuCtxPushCurrent_v2(void* pushed) {
    if (pushed != &context) return 201;
    ++contexts;
    return code("cuCtxPushCurrent_v2");
}
int cuCtxPopCurrent_v2(void** popped) {
    if (!contexts) return 201;
    --contexts;
    *popped = &context;
    return 0;
}
int cuStreamIsCapturing(void*, int* whether) {
    *whether = capturing;
    return code("cuStreamIsCapturing");
}

// An ELF file for CUDA; what is in it, on_load looks at.
int cuModuleLoadData(void** module, const void* image) {
    if (const int failed = code("cuModuleLoadData")) return failed;
    if (!contexts) return 201;
    if (capturing) return 900;
    uint16_t machine;
    std::memcpy(&machine, static_cast<const char*>(image) + 18, 2);
    if (std::memcmp(image, "\177ELF", 4) || machine != 190) return 200;
    const int number = on_load(image);
    if (number < 0) return -number;
    *module = reinterpret_cast<void*>(static_cast<intptr_t>(number + 1));
    return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    if (std::strcmp(name, "vrnn_scan") || functions_in_all == 4096) return 500;
    Function& made = functions[functions_in_all++];
    made.module = static_cast<int>(reinterpret_cast<intptr_t>(module)) - 1;
    *function = &made;
    return code("cuModuleGetFunction");
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute == 14) return large_clusters = value, 0;
    if (attribute != 8 || value > attributes[97]) return 1;
    static_cast<Function*>(function)->shared = value;
    return code("cuFuncSetAttribute");
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int, size_t shared) {
    *blocks = attributes[1001] && shared <= static_cast<size_t>(static_cast<Function*>(function)->shared);
    return code("cuOccupancyMaxActiveBlocksPerMultiprocessor");
}
int cuMemsetD8Async(void* to, unsigned char value, size_t bytes, void*) {
    std::memset(to, value, bytes);
    ++cleared;
    return code("cuMemsetD8Async");
}
int cuOccupancyMaxActiveClusters(int* clusters, void* function, const Configuration* how) {
    const int ranks = static_cast<int>(asked(*how, 4));
    if (ranks > attributes[1002]) return 912;
    if (how->shared > static_cast<unsigned>(static_cast<Function*>(function)->shared)) return 1;
    *clusters = attributes[1001] ? attributes[16] / ranks : 0;
    return code("cuOccupancyMaxActiveClusters");
}
int cuLaunchKernelEx(const Configuration* how, void* function, void** parameters, void** extra) {
    if (const int failed = code("cuLaunchKernelEx")) return failed;
    if (!contexts) return 201;
    const Function& own = *static_cast<const Function*>(function);
    const unsigned *grid = how->grid, blocks = grid[0] * grid[1] * grid[2], ranks = asked(*how, 4);
    if (!blocks || extra || how->shared > static_cast<unsigned>(own.shared)) return 1;
    if (blocks % ranks || static_cast<int>(ranks) > attributes[1002]) return 912;
    if (asked(*how, 2) && blocks > static_cast<unsigned>(attributes[16])) return 720;
    return on_launch(own.module, grid, how->block, ranks, how->shared, how->stream, parameters[0]);
}

}  // extern "C"
