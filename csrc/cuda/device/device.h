// What a kernel may know of the machine: one set of names, by CUDA (cuda.h) or by fibers on a CPU (emulator.h).
//
//   thread, threads, block, blocks, lane, warp   where a thread is
//   shared                                       the block's dynamic shared memory, from a multiple of 128 bytes on
//   barrier, sync_warp                           meetings of a block, of some of its warps (1 to 15), of a warp
//   present                                      whether a barrier or a wait is there: always, on a GPU
//   shuffle_xor                                  a float of the lane whose number differs in some bits
//   load_matrices, load_matrices_transposed      ldmatrix: 2 or 4 matrices of 8 rows of 16 bytes; see lanes.h
//   mma                                          sums (16 x 8) += A (16 rows of 32 bytes) times B (8 columns likewise)
//   copy_async, copy_commit, copy_wait           memory to shared memory; there once the thread has waited, not before
//   publish, wait_for                            a counter in memory between blocks: release, and acquire
//   wait_shortly_for                             the same, for what comes within a step
//   pack, round_tf32                             two floats in 16 bits each; a float with 10 bits of fraction
//   read, write                                  numbers in memory as float
//   erfc, exp, expm1, log, log1p, sqrt, tanh     of float
//
// and from sm_90 on, of a cluster of blocks, which reach each other's shared memory:
//
//   rank, ranks                                  which of its cluster's blocks this one is, and of how many
//   cluster_barrier                              a meeting of all threads of a cluster
//   peer                                         where another block of the cluster has what this one has here
//   Gate                                         an mbarrier in shared memory, which counts arrivals, and bytes
//   make_gate, show_gates                        for so many arrivals a phase; to the cluster, before its barrier
//   arrive, arrive_and_expect                    one arrival; and so many bytes to come in this phase
//   wait_at                                      until the phase of a parity, 0 at first, is over
//   store_async                                  4, 8 or 16 bytes to a peer; there once its gate's phase is over
#pragma once

#include "lanes.h"
#include "types.h"

#if defined(__CUDACC__)
#    include "cuda.h"
#else
#    include "emulator.h"
#endif
