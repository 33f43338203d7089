// One launch of all that a batch needs: blocks that scan, one for each tile of its rows or several, its ranks, and
// workers, which do the rest. Where clusters scan, workers are in clusters too, and know nothing of each other.
//
// What workers do is a queue of items, in an order that every block knows: weights packed; tiles of the passes ahead of
// the scan; tiles of those behind it; shares of weight gradients, and their sums. Item i is that of worker i % workers,
// and a worker takes its items in their order. An item waits for items before it and, behind the scan, for steps of the
// scan; the scan waits for items ahead of it. So of all that is not done the first can go on; and since all blocks run
// at once, which the host has seen to, nobody waits for ever. Who does an item changes no number that it leaves.
//
// Each counter has one writer. base.h and the programs of the launch come first.
#pragma once

#include "device/entry.h"

namespace vrnn {

struct Crew {
    int* done;                        // (workers) items that each has done; all counters are 0 before the launch
    int* reached;                     // (scans, ranks) steps of the batch that no longer wait for this block of a tile
    int blocks, scans, packs, looks;  // tiles; items that pack; steps of a scan from one look at others to the next
};

// The numbers of waits and barriers, for device::present, behind all that programs have.
constexpr int scan_waits_for_weights = 900, scan_waits_for_rows = 901, ahead_waits = 902, rows_wait = 903;
constexpr int shares_wait = 904, sums_wait = 905, item_barrier = 906, steps_barrier = 907, seen_barrier = 908;
constexpr int item_published = 909, steps_published = 910;

// The queue, as one block walks along it: every block takes every turn, and does its own items.
template <bool backward, int ranks>
struct Queue {
    const Crew& crew;
    int next = 0;                       // the first item of what comes next
    int packed = 0;                     // where weights end
    int ahead = 0, tiles_ahead = 0;     // the items of the last pass ahead of the scan,
    int rows_ahead = 0;                 // and rows of each of its tiles
    int steps = 0, batch = 0, own = 0;  // of the scan; and rows of one of its tiles
    int done = 0;                       // own items

    VRNN_DEVICE int scanning() const { return crew.scans * ranks; }
    VRNN_DEVICE int workers() const { return crew.blocks - scanning(); }
    VRNN_DEVICE bool scans() const { return device::block() < scanning(); }
    VRNN_DEVICE int worker() const { return device::block() - scanning(); }

    // Until these items are done, for this thread. Those of one worker are done in their order.
    VRNN_DEVICE void look_for(int number, int first, int end) const {
        if (end - first > workers()) first = end - workers();
        if (device::present(number))
            for (int item = first + device::thread(); item < end; item += device::threads())
                device::wait_for(crew.done + item % workers(), item / workers() + 1);
    }
    VRNN_DEVICE void await(int number, int first, int end) const {
        look_for(number, first, end);
        if (device::present(seen_barrier)) device::barrier();
    }

    // item(i) for those of so many that are this block's.
    template <class Item>
    VRNN_DEVICE void work(int count, Item item) {
        for (int i = (worker() + workers() - next % workers()) % workers(); !scans() && i < count; i += workers()) {
            item(i);
            if (device::present(item_barrier)) device::barrier();
            ++done;
            if (device::thread() == 0 && device::present(item_published)) device::publish(crew.done + worker(), done);
        }
        next += count;
    }

    template <class Pack, class Call>
    VRNN_DEVICE void pack(const Call& call) {
        work(crew.packs, [&](int i) { Pack::share(call, i, crew.packs); });
        packed = next;
    }

    // Until the last pass ahead of the scan has come past the tiles of these rows.
    VRNN_DEVICE void await_ahead(int number, int first, int end) const {
        const int tile = first / rows_ahead, behind = (end + rows_ahead - 1) / rows_ahead;
        const int stop = behind < tiles_ahead ? behind : tiles_ahead;
        const int begin = backward ? tiles_ahead - stop : tile;
        await(number, ahead + begin, ahead + begin + stop - tile);
    }

    // A pass ahead of the scan, in the scan's order: a tile waits for weights, or for its rows in the pass before.
    template <class Pass, class Call>
    VRNN_DEVICE void before(const Call& call) {
        typename Pass::ByTurns pass{call};
        const int count = Pass::tiles(call), own = next;
        work(count, [&](int i) {
            const int tile = backward ? count - 1 - i : i;
            if (tiles_ahead)
                await_ahead(ahead_waits, tile * Pass::rows_taken, (tile + 1) * Pass::rows_taken);
            else
                await(ahead_waits, 0, packed);
            pass.run(tile);
        });
        ahead = own, tiles_ahead = count, rows_ahead = Pass::rows_taken;
    }

    // What the scan waits for, and who waits for it.
    struct Pace {
        const Queue& queue;
        int all;  // steps of this block
        int known = 0;

        // Look for as many steps again as there have been, but no further than from one look to the next.
        VRNN_DEVICE void await(int count) {
            if (count <= known) return;
            const int looks = queue.crew.looks, more = count < looks ? count : looks;
            known = count - 1 + more < all ? count - 1 + more : all;
            const int first = backward ? all - known : 0, end = backward ? queue.steps : known;
            if (queue.tiles_ahead) queue.await_ahead(scan_waits_for_rows, first * queue.batch, end * queue.batch);
        }
        VRNN_DEVICE void publish(int count) const {
            if (count < all && count % queue.crew.looks) return;
            const int reached = count < all ? count + (backward ? queue.steps - all : 0) : queue.steps;
            if (device::present(steps_barrier)) device::barrier();
            if (device::thread() == 0 && device::present(steps_published))
                device::publish(queue.crew.reached + device::block(), reached);
        }
    };

    template <class Scan, class Call>
    VRNN_DEVICE void scan(const Call& call) {
        steps = call.steps, batch = call.batch, own = Scan::rows_of_a_tile(call);
        if (!scans()) return;
        await(scan_waits_for_weights, 0, packed);
        const int all = Scan::steps_of_block(call);
        if (all == 0) Pace{*this, 0}.publish(0);
        Scan::scan(call, Pace{*this, all});
    }

    // Until the scan has come past so many rows, a tile's: each of its ranks, for it has published its own columns.
    VRNN_DEVICE void await_rows(int first, int count) const {
        if (device::present(rows_wait))
            for (int i = device::thread(); i < count * ranks; i += device::threads()) {
                const int place = first + i / ranks, t = place / batch;
                if (t >= steps) continue;
                const int scan = place % batch / own * ranks + i % ranks;
                device::wait_for(crew.reached + scan, backward ? steps - t : t + 1);
            }
        if (device::present(seen_barrier)) device::barrier();
    }

    // Until all of the scan has come past a step.
    VRNN_DEVICE void await_steps(int t) const {
        if (device::present(rows_wait))
            for (int scan = device::thread(); scan < scanning(); scan += device::threads())
                device::wait_for(crew.reached + scan, backward ? steps - t : t + 1);
        if (device::present(seen_barrier)) device::barrier();
    }

    // Tiles of a pass behind the scan.
    template <class Pass, class Call>
    VRNN_DEVICE void after(const Call& call, int first, int count) {
        typename Pass::ByTurns pass{call};
        work(count, [&](int i) {
            await_rows((first + i) * Pass::rows_taken, Pass::rows_taken);
            pass.run(first + i);
        });
    }
    template <class Pass, class Call>
    VRNN_DEVICE void after(const Call& call) {
        after<Pass>(call, 0, Pass::tiles(call));
    }

    // Weight gradients, share by share, from that of the last rows on: behind what the pass leaves of the same steps,
    // in which a ragged batch lies in another order.
    template <class Weights, class Pass, class WeightsCall, class Call>
    VRNN_DEVICE void weights(const WeightsCall& call, const Call& before) {
        // Of the tiles of a share's steps; of those that it has in common with the one before; and of the tile behind
        // these, in which its last step may end.
        struct Items {
            int first, end;
        } own{0, 0}, later{0, 0}, last{0, 0};
        int left = Pass::tiles(before);
        for (int share = call.shares_in_all - 1; share >= 0; --share) {
            const int first = Weights::first_row(call, share) / batch * batch / Pass::rows_taken;
            if (first < left) {
                last = {later.first, later.first < later.end ? later.first + 1 : later.end};
                later = own;
                own = {next, next + left - first};
                after<Pass>(before, first, left - first);
                left = first;
            }
            work(call.tiles_in_all, [&](int i) {
                look_for(shares_wait, last.first, last.end);
                look_for(shares_wait, later.first, later.end);
                await(shares_wait, own.first, own.end);
                Weights::multiply(call, i, share);
            });
        }
    }

    // The same where no pass is behind the scan.
    template <class Weights, class WeightsCall>
    VRNN_DEVICE void weights(const WeightsCall& call) {
        for (int share = call.shares_in_all - 1; share >= 0; --share)
            work(call.tiles_in_all, [&](int i) {
                await_steps(Weights::first_row(call, share) / batch);
                Weights::multiply(call, i, share);
            });
    }

    template <class Sums, class Call>
    VRNN_DEVICE void sums(const Call& call) {
        const int before = next;
        work(workers(), [&](int i) {
            await(sums_wait, 0, before);
            for (int place = i; place < call.blocks; place += workers()) Sums::add_up(call, place);
        });
    }
};

}  // namespace vrnn
