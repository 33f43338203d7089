// A launch that a test has recorded, once more, in a process of its own: for sanitizers.
// replay FILE ORDER WARP SEED LATE WITHOUT; a file is a number of tensors, bytes (-1: none) and data of each, then the
// numbers of the kernel's argument.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" const char* vrnn_scan(const void* call, int order, int warp, uint64_t seed, int late, int without);

namespace {

template <class T>
T read(std::FILE* file) {
    T value;
    if (std::fread(&value, sizeof value, 1, file) != 1) std::abort();
    return value;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 7) return 2;
    std::FILE* const file = std::fopen(argv[1], "rb");
    if (!file) return 2;
    std::vector<void*> tensors;
    for (auto left = read<int64_t>(file); left > 0; --left) {
        const auto bytes = read<int64_t>(file);
        void* own = nullptr;
        if (bytes >= 0 && posix_memalign(&own, 64, bytes) != 0) return 2;
        if (bytes > 0 && std::fread(own, bytes, 1, file) != 1) return 2;
        tensors.push_back(own);
    }
    int numbers[32];
    const size_t count = std::fread(numbers, sizeof(int), 32, file);
    std::fclose(file);
    std::vector<char> call(tensors.size() * sizeof(void*) + sizeof numbers);
    std::memcpy(call.data(), tensors.data(), tensors.size() * sizeof(void*));
    std::memcpy(call.data() + tensors.size() * sizeof(void*), numbers, count * sizeof(int));
    int chosen[5];
    for (int i = 0; i < 5; ++i) chosen[i] = std::atoi(argv[2 + i]);
    const char* const said = vrnn_scan(call.data(), chosen[0], chosen[1], chosen[2], chosen[3], chosen[4]);
    for (void* tensor : tensors) std::free(tensor);
    std::puts(said);
    return said[0] ? 1 : 0;
}
