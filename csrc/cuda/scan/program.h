// The words in which the program of a scan is written down. vrnn_fast/executors/cuda/header.py writes one as tables of
// these, constants all; the templates beside this file fold over them, so that every index is known to the compiler and
// every sum is a register.
#pragma once

#include "device/types.h"

namespace vrnn {

constexpr int rows = 16;         // of the batch in a block: one mma's
constexpr int tile_width = 8;    // columns of a tile of sums: one mma's
constexpr int row_padding = 16;  // bytes behind each row of operands: eight rows then meet all banks
constexpr int none = -1;
constexpr int others = 16;  // most parts that a unit names besides its sums

// The numbers of waits and barriers, for device::present; behind those before visits come those of particles.h or
// exchange.h.
constexpr int weights_wait = 0, first_barrier = 1, step_wait = 2, first_visit = 3;

enum class Activation { identity, relu, leaky_relu, tanh, elu, silu, gelu };

// What is done to a unit's sums once they are complete; in a reverse scan they are gradients. forward.h, particles.h,
// again.h and reverse.h have a function for each.
enum class Kind {
    layer,
    moments,
    normalize,
    sample,
    divergence,
    likelihood,
    total,
    draw,
    gru,
    lstm,
    rnn,
    resample,
    take,
    gru_again,
    lstm_again,
    rnn_again,
    layer_back,
    normalize_back,
    center_back,
    sample_back,
    divergence_back,
    likelihood_back,
    gru_back,
    lstm_back,
    rnn_back,
    state_back,
    give_back,
};

// Where the weights of a product lie while the scan runs.
enum class Place {
    shared,     // rows of operands, as ldmatrix reads them
    registers,  // of the lanes that multiply by them
    memory,     // read in every step from the second-level cache, in the order of lanes
};

// vrnn_fast.cell.spec.Std: max(s((clamp(raw) + shift) * scale) + floor, minimum)
struct Deviation {
    bool softplus;
    float shift, scale, floor;
    bool has_minimum;
    float minimum;
    bool has_low;
    float low;
    bool has_high;
    float high;
    bool bounded;  // whether there is any bound, if only infinity: NaN is beyond each, and passes no gradient
};

// Columns of a buffer, in tiles. Tile n is columns 8 n to 8 n + 7 of it; those from width on are padding.
struct Part {
    int width, tiles;
    int buffer, column, stride;  // where it is in memory: Call::buffers[buffer][row * stride + column]; or none
    bool given, stored;          // sums begin with what is there; the result goes there
    bool result;                 // and zeros at padding
    int state;                   // which of Call::start and Call::last it is; or none
    int bias;                    // sums, or a state, begin with so many floats into the biases; or none
    int operand;                 // bytes into shared memory of the result as an operand, 16 rows; or none
    int ahead;                   // bytes into shared memory of what the next step reads, lane by lane; or none
    bool pairs;                  // whether two neighbours lie on a multiple of their size, and so are copied as one
    int held;                    // bytes into shared memory of the result as float32, a tile lane by lane; or none
    bool split;                  // whether a rank has but some of its tiles:
    int share;                   // so many, at most
    int exchange;                // its number among operands that the ranks push to each other; or none
    bool for_next;               // whether what a step writes of that is read by the next one
    int maker;                   // the visit that finishes it
    int pushed;                  // bytes into a tile's share of Call::pushed, where it goes through memory; or none
};

// sums[sum] += source (16 x columns) times weights.
struct Product {
    int source;  // a part that is an operand
    int sum;     // of the unit
    Place place;
    int weights;   // bytes into shared memory, or into those in the order of lanes
    int resident;  // the first of the words in registers; or none
    int unit;      // whose sums they are
    bool in_two;   // whether two sums take turns
};

// Parts that are computed together: tile n of each in the same lanes.
struct Unit {
    Kind kind;
    int tiles;                 // of all ranks
    bool split;                // whether each of them has but some,
    int share;                 // so many, at most; else all
    int every;                 // that each warp of each rank has,
    int abreast;               // of which so many are multiplied at a time
    int first_warp;            // tile n of the block is that of warp (first_warp + n) % warps
    int count, sums[4];        // the parts that add up
    int others[vrnn::others];  // the parts it reads and writes besides; what each is, its kind says
    bool resumes;              // sums begin with what is held of them, and have been stored
    int kept;                  // the first tile of sums that lives from visit to visit; or none
    int state;                 // the first tile of the state that lives from step to step; or none
    bool from_state;           // whether its first sum begins with that
    bool means;                // what is drawn is its mean
    int total, totals;  // which Call::totals it gives shares of or adds up, and bytes into shared memory; or none
    Activation activation;
    Deviation deviation;
    Deviation posterior;  // of a divergence's gradient, that of the other distribution
    int normalizes;       // the part whose rows are normalised; or none
    int moments, slopes;  // bytes into shared memory of what its tiles give of each row: normalize.h; or none
    float eps;            // added to the variance
};

// Some of a unit's work, between two barriers.
struct Visit {
    int unit, first, products;
    bool begins, finishes;
    bool barrier;           // before it
    int first_wait, waits;  // behind the barrier, for the exchanges of these parts: see exchange.h
    bool publishes;         // whether other ranks read in memory what it ends with
};

}  // namespace vrnn
