"""Clusters: blocks that store into each other's shared memory, and gates (mbarriers) that count what comes.

An address of a peer's shared memory is the offset there, with the peer's rank above it. A store to a peer lands at
once, the earliest that it may; whether its reader had waited, and whether whoever read the place before was heard of,
the clocks of warps tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .memory import Bytes, Ints, Region
from .report import Fault

if TYPE_CHECKING:
    from .machine import Block, Lanes

_RANK = 1 << 24  # of a peer's address, beyond every offset


@dataclass
class Gate:
    """An mbarrier: arrivals and bytes that its phase still misses."""

    arrivals: int
    missing: int
    bytes: int = 0
    phase: int = 0


class Cluster:
    """Blocks side by side, and who has come to their barrier."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._arrived: dict[int, NDArray[np.bool_]] = {}  # of each block, who has and has not gone on

    def arrive(self, block: Block, lanes: Lanes) -> None:
        here = self._arrived.setdefault(block.index, np.zeros(block.threads, bool))
        if (here & lanes.mask).any():
            raise Fault("a thread meets the barrier of its cluster twice before the others")
        here |= lanes.mask
        if all((self._arrived.get(b.index, b.done) | b.done).all() for b in self.blocks):
            block.clocks.meet(np.concatenate([np.unique(b.warp_of[~b.done]) for b in self.blocks]))
            for b in self.blocks:
                b.waiting &= ~self._arrived.get(b.index, np.zeros(b.threads, bool))
            self._arrived.clear()

    def wait(self, block: Block, lanes: Lanes) -> None:
        here = self._arrived.get(block.index)
        if here is not None:
            block.waiting |= lanes.mask & here


def peer(at: Ints, rank: Ints) -> Ints:
    """``mapa.shared::cluster``: where a peer has what this block has here."""
    return (rank + 1) * _RANK + at


def reached(block: Block, at: Ints) -> tuple[Region, Ints]:
    """The shared memory that generic addresses of peers are in, and where."""
    (rank,) = np.unique(at // _RANK) - 1
    return block.cluster.blocks[int(rank)].shared, at % _RANK


def is_peers(at: Ints) -> bool:
    return bool((at >= _RANK).all())


def make(block: Block, lanes: Lanes, at: Ints, arrivals: int) -> None:
    for thread in lanes.threads:
        if int(at[thread]) in block.gates:
            raise Fault("a gate is made twice")
        block.gates[int(at[thread])] = Gate(arrivals, arrivals)


def arrive(block: Block, lanes: Lanes, at: Ints, to_come: Ints) -> None:
    """Arrive at gates of the block, and expect so many bytes more."""
    for thread in lanes.threads:
        _count(block, int(at[thread]), block, int(thread), 1, int(to_come[thread]))


def is_over(block: Block, lanes: Lanes, at: Ints, parity: Ints) -> NDArray[np.bool_]:
    """Whether the phase of a parity is over; whoever sees that it is has what came in it."""
    found = np.zeros(block.threads, bool)
    for thread in lanes.threads:
        place = int(at[thread])
        gate = _gate(block, place)
        if found_here := gate.phase % 2 != parity[thread]:
            block.clocks.load(int(block.warp_of[thread]), _key(block, place, gate.phase - 1), acquire=True)
        found[thread] = found_here
    return found


def push(block: Block, lanes: Lanes, at: Ints, values: Bytes, gates: Ints) -> None:
    """``st.async``: store into peers, and let the bytes count at gates there."""
    size = values.shape[1]
    for thread in lanes.threads:
        rank, place = int(at[thread]) // _RANK - 1, int(at[thread]) % _RANK
        if not 0 <= rank < len(block.cluster.blocks) or int(gates[thread]) // _RANK - 1 != rank:
            raise Fault("a store to a peer and its gate are not in one block of the cluster")
        other = block.cluster.blocks[rank]
        if other.done.all():
            raise Fault(f"a store to block {other.index}, which has ended")
        if place % size or place + size > other.shared.content.size:
            raise Fault(f"a store of {size} bytes to byte {place} of a peer's {other.shared.content.size}")
        where, warp = np.array([place]), block.warp_of[thread : thread + 1]
        other.shared.store(where, values[thread : thread + 1], warp, block.clocks, block.report, block.line)
        _count(other, int(gates[thread]) % _RANK, block, int(thread), 0, -size)


def _count(of: Block, place: int, by: Block, thread: int, arrivals: int, to_come: int) -> None:
    gate = _gate(of, place)
    of.clocks.store(int(by.warp_of[thread]), _key(of, place, gate.phase), release=True)
    gate.missing -= arrivals
    gate.bytes += to_come
    if gate.missing < 0:
        raise Fault(f"more than the {gate.arrivals} of a phase arrive at a gate")
    if not gate.missing and not gate.bytes:
        gate.phase, gate.missing = gate.phase + 1, gate.arrivals


def _gate(block: Block, place: int) -> Gate:
    if place not in block.gates:
        raise Fault(f"block {block.index} has made no gate at byte {place}")
    return block.gates[place]


def _key(block: Block, place: int, phase: int) -> tuple[str, int]:
    return f"phase {phase} of a gate of {block.index}", place
