// A launch that a test has recorded, once more, in a process of its own: for sanitizers.
// replay FILE ORDER WARP SEED LATE WITHOUT; a file is a number of pieces of memory, bytes and data of each; then a
// number of structs of the kernel's argument, how many pointers and numbers each has, where each pointer is (a piece,
// -1 for none, and bytes into it), and the numbers.
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
    std::vector<char*> pieces;
    for (auto left = read<int64_t>(file); left > 0; --left) {
        const auto bytes = read<int64_t>(file);
        void* own = nullptr;
        if (posix_memalign(&own, 64, bytes) != 0) return 2;
        if (bytes > 0 && std::fread(own, bytes, 1, file) != 1) return 2;
        pieces.push_back(static_cast<char*>(own));
    }
    std::vector<char> call;
    const auto add = [&](const void* from, size_t bytes) {
        call.insert(call.end(), static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    };
    for (auto left = read<int64_t>(file); left > 0; --left) {
        const auto pointers = read<int64_t>(file), numbers = read<int64_t>(file);
        for (int64_t i = 0; i < pointers; ++i) {
            const auto piece = read<int64_t>(file), at = read<int64_t>(file);
            char* const pointer = piece < 0 ? nullptr : pieces[piece] + at;
            add(&pointer, sizeof pointer);
        }
        for (int64_t i = 0; i < numbers; ++i) {
            const auto number = read<int>(file);
            add(&number, sizeof number);
        }
        call.resize((call.size() + 7) / 8 * 8);  // as a struct is padded
    }
    std::fclose(file);
    int chosen[5];
    for (int i = 0; i < 5; ++i) chosen[i] = std::atoi(argv[2 + i]);
    const char* const said = vrnn_scan(call.data(), chosen[0], chosen[1], chosen[2], chosen[3], chosen[4]);
    for (char* piece : pieces) std::free(piece);
    std::puts(said);
    return said[0] ? 1 : 0;
}
