"""A clock on paper: what a step of a scan costs on a chip, by arithmetic alone. Pure. It chooses nothing yet.

A step's phases lie between barriers, and in each one multiprocessor reads weights and operands from shared memory at
128 bytes a cycle. What is not counted: the latency of the chain within a phase, and other instructions. Of these the
executed PTX of a GRU cell in bfloat16 at H = 64 has 7,600 forward and 6,900 back, which four schedulers issue in 1,900
and 1,700 cycles: as many as shared memory takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from .memory import ROWS, STEP, Memory, operand_bytes, row_bytes
from .plan import TILE, Unit, Visit

WAVEFRONT = 128  # bytes of shared memory in a cycle
MMA = 2  # cycles between two on one multiprocessor
BARRIER = 40  # from a store to shared memory, through a barrier, to what a load brings
EXCHANGE = 250  # from a push to the peers of a cluster to what a load brings there
PEER = 16  # bytes in a cycle from the peers, of one multiprocessor
STREAMED = 64  # bytes in a cycle from the second-level cache, of one multiprocessor
CLOCKS = {"sm_80": 1.41, "sm_90": 1.755}  # GHz, of an A100 and an H100


@dataclass(frozen=True)
class PaperStep:
    """What one block does in a step.

    Attributes:
        mma: products of tensor cores, of 16 rows and 8 columns.
        wavefronts: of shared memory.
        streamed: bytes of weights from the second-level cache.
        barriers: of the block.
        exchanges: with the peers of a cluster, those that a visit waits for at once being one.
        pushed: bytes that these bring.
    """

    mma: int
    wavefronts: int
    streamed: int
    barriers: int
    exchanges: int = 0
    pushed: int = 0

    @property
    def cycles(self) -> int:
        """The longest of what goes on side by side, and what does not."""
        by_side = max(self.wavefronts, MMA * self.mma, self.streamed // STREAMED)
        return by_side + BARRIER * self.barriers + EXCHANGE * self.exchanges + self.pushed // PEER

    def microseconds(self, chip: str) -> float:
        """Return what the cycles take at the clock of a chip."""
        return self.cycles / CLOCKS[chip] / 1e3


def paper_step(found: Memory) -> PaperStep:
    """Count what a step of a kernel does, whose products are those of tensor cores.

    Raises:
        ValueError: they are of full float32.
    """
    if found.kind == "f32":
        raise ValueError("products of full float32 are not those of tensor cores, which this counts")
    plan, mma, streamed, moved = found.plan, 0, 0, 0
    for visit in plan.visits:
        for product in visit.products:
            tiles, steps = found.share(product.target), row_bytes(product.source, found.kind) // STEP
            mma += tiles * steps
            weights = tiles * 8 * steps * STEP
            streamed += weights if found.place[product] == "memory" else 0
            moved += weights if found.place[product] == "shared" else 0
        for _, products in groupby(visit.products, key=lambda p: p.source):
            first = next(products)  # a source is loaded once for all sums of a tile
            moved += found.share(first.target) * 16 * row_bytes(first.source, found.kind)
        moved += sum(_moved(found, plan.units[visit.unit], visit))
    barriers = sum(visit.barrier for visit in plan.visits)
    waits, exchanges = [p for v in plan.visits for p in v.waits], sum(bool(v.waits) for v in plan.visits)
    pushed = sum(ROWS * TILE * operand_bytes(found.kind) * (found.tiles(p) - found.share(p)) for p in waits)
    return PaperStep(mma, -(-moved // WAVEFRONT), streamed, barriers, exchanges, pushed)


def _moved(found: Memory, unit: Unit, visit: Visit) -> Iterator[int]:
    """Yield bytes that a visit reads and writes of shared memory, besides products: of a tile 128 numbers, a lane's own
    four at once."""
    size = operand_bytes(found.kind)
    if visit.begins:
        for part in unit.reads:
            if part in found.ahead:
                yield 2 * 128 * size * found.share(part)  # what was fetched, and the next
        yield from (4 * WAVEFRONT * found.share(part) for part in unit.sums if part in found.bias)
    if visit.finishes:
        yield from (128 * size * found.share(part) for part in unit.writes if part in found.operand)
        yield from (128 * 4 * found.share(part) for part in (*unit.holds, *unit.writes) if part in found.held)
