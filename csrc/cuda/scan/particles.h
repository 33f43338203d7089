// A particle filter: the rows of a sequence, which one tile has, exchange the states that they have reached. One warp
// decides who goes on from whom; every warp then moves its own columns, by way of what is held of them.
namespace vrnn {

// Of each row of the tile; at program::filter in shared memory. Lanes see each other's through sync_warp, warps through
// the barrier behind resample.
struct Particles {
    float since[rows];    // log of its weight since its sequence last drew
    float weight[rows];   // relative to its sequence's largest
    float uniform[rows];  // what it draws with
    int chosen[rows];     // the row that it goes on from
};

// Whom the rows drew, as the reverse scan reads it: of the step, and of the one before it.
struct Heirs {
    i64 ancestors[2][rows];
};

constexpr int filter_bytes = 256;
static_assert(sizeof(Particles) == filter_bytes && sizeof(Heirs) == filter_bytes, "what memory.py leaves for them");

VRNN_DEVICE Particles& particles(const Context& c) {
    return *reinterpret_cast<Particles*>(c.shared + program::filter);
}
VRNN_DEVICE Heirs& heirs(const Context& c) {
    return *reinterpret_cast<Heirs*>(c.shared + program::filter);
}

// Rows of a tile: whole sequences of a filter.
VRNN_DEVICE int rows_in_use(const Call& call) {
    if constexpr (program::filter == none) return rows;
    return rows / call.particles * call.particles;
}

// body(half, row) for each row of the tile that a lane answers for: one of four lanes for its two rows.
template <class Body>
VRNN_DEVICE void own_particles(const Context& c, Body body) {
    for (int half = 0; half < 2; ++half) {
        const lanes::Place own = lanes::sums(device::lane(), 2 * half);
        if (own.column == 0 && own.row < rows_in_use(c.call)) body(half, own.row);
    }
}

// The first row of a row's sequence.
VRNN_DEVICE int first_particle(const Context& c, int row) {
    return row - row % c.call.particles;
}

// Begin to copy what a row draws with in the step after this one, or whom it drew in the one before.
VRNN_DEVICE void fetch_uniform(const Context& c, int half, int row) {
    if (c.goes_on(2 * half)) device::copy_async<4>(&particles(c).uniform[row], c.call.uniforms + c.next_row(2 * half));
}
VRNN_DEVICE void fetch_ancestor(const Context& c, int half, int row) {
    if (c.goes_on(2 * half))
        device::copy_async<8>(&heirs(c).ancestors[(c.t + 1) & 1][row], c.call.ancestors + c.next_row(2 * half));
}

VRNN_DEVICE float weigh(const Context& c, int row) {
    const float* const since = particles(c).since + first_particle(c, row);
    float most = since[0];
    for (int n = 1; n < c.call.particles; ++n) most = since[n] > most ? since[n] : most;
    return device::exp(particles(c).since[row] - most);
}

// The particle of its sequence whose share of the weights a row's uniform number falls into, one with weight; -1 where
// the weights are even enough, or not numbers. As vrnn_fast/resampling.py has it.
VRNN_DEVICE int draw_ancestor(const Context& c, int row) {
    const float* const weight = particles(c).weight + first_particle(c, row);
    float whole = 0, squares = 0;
    for (int n = 0; n < c.call.particles; ++n) {
        whole += weight[n];
        squares += weight[n] * weight[n];
    }
    if (!(whole * whole / squares < c.call.enough)) return none;
    const float wanted = particles(c).uniform[row] * whole;
    float upto = 0;
    int drawn = 0, last = 0;
    for (int n = 0; n < c.call.particles; ++n) {
        upto += weight[n];
        drawn += upto <= wanted;
        last += upto < whole;
    }
    return drawn < last ? drawn : last;
}

// The numbers of its two syncs, for device::present, behind those of visits.
constexpr int weights_sync = 3 + program::visits_in_all, draws_sync = weights_sync + 1;

// Who goes on from whom: what each row weighs, then what each draws.
template <int unit>
VRNN_DEVICE void resample(const Context& c) {
    if (device::warp() != program::units[unit].first_warp) return;
    if (device::present(weights_sync)) device::sync_warp();
    own_particles(c, [&](int, int row) { particles(c).weight[row] = weigh(c, row); });
    if (device::present(draws_sync)) device::sync_warp();
    own_particles(c, [&](int half, int row) {
        const int ancestor = c.goes_on(2 * half) ? draw_ancestor(c, row) : none;
        particles(c).chosen[row] = ancestor < 0 ? row : first_particle(c, row) + ancestor;
        if (ancestor >= 0) particles(c).since[row] = 0;
        if (c.rows.length[half] >= 0) c.call.ancestors[c.row(2 * half)] = ancestor;
        fetch_uniform(c, half, row);
    });
}

// Before the first step. Rows that no sequence has go on from themselves.
template <int unit>
VRNN_DEVICE void start_particles(const Context& c) {
    if (device::warp() != program::units[unit].first_warp) return;
    if (device::lane() < rows) particles(c).chosen[device::lane()] = device::lane();
    own_particles(c, [&](int half, int row) {
        particles(c).since[row] = 0;
        fetch_uniform(c, half, row);
    });
}

// Where no row runs, nobody draws.
template <int unit>
VRNN_DEVICE void pad_ancestors(const Context& c) {
    if (device::warp() != program::units[unit].first_warp) return;
    own_particles(c, [&](int half, int) {
        if (c.rows.length[half] >= 0) c.call.ancestors[c.row(2 * half)] = none;
    });
}

}  // namespace vrnn
