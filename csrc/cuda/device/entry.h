// How a kernel is entered, by the one name that all have: on a GPU, and in the emulator. Before VRNN_ENTRY come
// vrnn::Call, its one argument, which says how many blocks there are, VRNN_RANKS, where these are clusters of so many,
// and
//
//   struct vrnn::Kernel {
//       static constexpr int threads, blocks;  // of a block; blocks that one multiprocessor shall have room for
//       static constexpr int shared, limit;    // bytes of shared memory of a block, and of the chip for one
//       static void run(const Call&);
//   };
#pragma once

#include "device.h"

#if defined(VRNN_RANKS)
#    define VRNN_CLUSTER __cluster_dims__(VRNN_RANKS, 1, 1)
#else
#    define VRNN_CLUSTER
#    define VRNN_RANKS 1
#endif

#if defined(__CUDACC__)

#    define VRNN_ENTRY                                                                                         \
        extern "C" __global__ void VRNN_CLUSTER __launch_bounds__(vrnn::Kernel::threads, vrnn::Kernel::blocks) \
            vrnn_scan(const __grid_constant__ vrnn::Call call) {                                               \
            vrnn::Kernel::run(call);                                                                           \
        }

#else

// Nothing, or what went wrong.
#    define VRNN_ENTRY                                                                                           \
        extern "C" const char* vrnn_scan(const vrnn::Call* call, int order, int warp, uint64_t seed, int late,   \
                                         int without) {                                                          \
            using namespace vrnn;                                                                                \
            const device::Shape shape{call->blocks, Kernel::threads, Kernel::shared, Kernel::limit, VRNN_RANKS}; \
            const auto by = static_cast<device::Order>(order);                                                   \
            return device::launch(shape, {by, warp, seed, late != 0, without}, [&] { Kernel::run(*call); });     \
        }

#endif
