"""A clock on paper: what a step of a scan, a tile of a pass and a training step cost on a chip, by arithmetic. Pure.

A step's phases lie between barriers. In each, one multiprocessor reads weights and operands from shared memory at 128
bytes a cycle, issues an instruction on each of its four schedulers, multiplies, and reads from the second-level cache:
the slowest of the four is what a phase is busy with. It takes no less than the chain of one tile: operands loaded,
products that add up one behind the other, the arithmetic at their end.

What is counted (products, wavefronts, instructions, barriers) a test holds to the executed PTX of a GRU cell, within
FACTOR. Latencies and the prices of exchanges are of others' measurements, on other chips. None of it is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import NamedTuple

from .memory import ROWS, STEP, Memory, in_two, operand_bytes, row_bytes
from .plan import TILE, WARPS, KernelPlan, Kind, Through, Unit, Visit

FACTOR = 1.2  # that counts on paper may be off those of the executed code

WAVEFRONT = 128  # bytes of shared memory in a cycle
SCHEDULERS = 4  # of a multiprocessor: each issues an instruction of a warp in a cycle
MMA = 2  # cycles between two on one multiprocessor
STREAMED = 64  # bytes in a cycle from the second-level cache, of one multiprocessor
BARRIER = 40  # from a store to shared memory, through a barrier, to what a load brings
LOADED = 33  # cycles that ldmatrix takes, and that an mma takes before another may add to its sums
ADDED = 33
FOLD = 4  # instructions of a warp, and cycles, that make one of two sums
FAR = 260  # cycles to the second-level cache and back


class Trip(NamedTuple):
    """What an exchange of operands costs: cycles from a store to what a load brings elsewhere, and bytes in a cycle, of
    one multiprocessor."""

    latency: int
    bytes: int


TRIPS: dict[Through, Trip] = {"peers": Trip(250, 16), "memory": Trip(FAR + FAR // 2 + FAR + FAR, STREAMED)}
"""Through peers, a store into another block's shared memory and its gate. Through memory, four that wait for each other
behind the second-level cache: a store and the fence behind it, a flag, whoever looks for it and just missed it, a
load. It is as far there on an A100 and an H100 (Luo et al. 2024, arXiv 2402.13499)."""
FLAG = 0.8  # microseconds from a number published in memory to whoever waits for it
GRID = 1.2  # microseconds of a barrier of all blocks, through memory
BOUNDARY = 1.0  # microseconds from one launch to the next, in a CUDA graph
PACK = 2.0  # microseconds in which all multiprocessors lay weights out: two reads that follow each other, and a write

ENDS: dict[Kind, tuple[int, int]] = {
    "layer": (15, 30),
    "moments": (60, 150),
    "normalize": (120, 200),
    "sample": (720, 150),
    "divergence": (350, 200),
    "likelihood": (390, 150),
    "draw": (200, 80),
    "gru": (250, 250),
    "lstm": (400, 250),
    "rnn": (80, 80),
    "take": (40, 30),
    "gru_again": (250, 250),
    "lstm_again": (400, 250),
    "rnn_again": (80, 80),
    "layer_back": (14, 30),
    "normalize_back": (180, 250),
    "center_back": (160, 200),
    "sample_back": (250, 120),
    "divergence_back": (260, 200),
    "likelihood_back": (160, 200),
    "gru_back": (310, 120),
    "lstm_back": (400, 200),
    "rnn_back": (80, 60),
    "state_back": (31, 30),
    "give_back": (100, 60),
}
"""What makes a result of a tile's sums: instructions of a warp, and the cycles of those that follow each other.
Instructions are fitted to the executed PTX of a GRU cell, of other kinds by likeness; cycles follow the functions."""
VISIT, READ, OPERAND, HELD, STORED, BIAS, PUSH = 11, 20, 8, 6, 9, 11, 14
"""Instructions of a warp for a visit, and for a tile that is read, written as an operand, held, stored, begun with a
bias; and for 16 bytes that each lane pushes to a peer."""
ANEW = 9  # instructions of a warp more for a tile that is read or stored, where a step takes 32 rows: of so long a loop
# the compiler keeps no addresses
LANES = 32  # of a warp


@dataclass(frozen=True)
class PaperChip:
    """What the clock knows of a chip: GHz and multiprocessors."""

    clock: float
    multiprocessors: int


PAPER_CHIPS = {"sm_80": PaperChip(1.41, 108), "sm_90": PaperChip(1.755, 132)}  # an A100 and an H100


@dataclass(frozen=True)
class Work:
    """What one block does between two barriers, or in several such phases.

    Attributes:
        mma: products of tensor cores, of 16 rows and 8 columns.
        wavefronts: of shared memory,
        of_weights: of which so many are weights.
        instructions: of warps.
        streamed: bytes of weights from the second-level cache.
        barriers: of the block.
        exchanges: with the other ranks of its tile; those that a visit waits for at once are one.
        pushed: bytes that these bring.
        exchanged: cycles until they are there.
        hidden: cycles of other work meanwhile.
        chain: cycles of what follows each other.
    """

    mma: int = 0
    wavefronts: int = 0
    of_weights: int = 0
    instructions: int = 0
    streamed: int = 0
    barriers: int = 0
    exchanges: int = 0
    pushed: int = 0
    exchanged: int = 0
    hidden: int = 0
    chain: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    def beside(self, other: Work) -> Work:
        """Return what both do with no barrier between them: their chains go on side by side."""
        return replace(self + other, chain=max(self.chain, other.chain))

    @property
    def busy(self) -> int:
        """Count the cycles of the slowest of what goes on side by side."""
        issued = self.instructions // SCHEDULERS
        return max(self.wavefronts, MMA * self.mma, issued, self.streamed // STREAMED)

    @property
    def cycles(self) -> int:
        return max(self.busy, self.chain) + BARRIER * self.barriers + max(0, self.exchanged - self.hidden)


@dataclass(frozen=True)
class PaperStep:
    """A step of a scan or a tile of a pass: its phases."""

    phases: tuple[Work, ...]

    @property
    def total(self) -> Work:
        return sum(self.phases, Work())

    @property
    def cycles(self) -> int:
        return sum(phase.cycles for phase in self.phases)

    def microseconds(self, chip: str) -> float:
        """Return what the cycles take at the clock of a chip."""
        return self.cycles / PAPER_CHIPS[chip].clock / 1e3


def paper_step(found: Memory, stored: Sequence[str] = ()) -> PaperStep:
    """Count what a step of a kernel does, of a cluster one of its blocks, whose products are those of tensor cores.

    Args:
        stored: the buffers that it writes.

    Raises:
        ValueError: products are of full float32.
    """
    if found.kind == "f32":
        raise ValueError("products of full float32 are not those of tensor cores, which this counts")
    phases: list[Work] = []
    works = [_visit(found, visit, frozenset(stored)) for visit in found.plan.visits]
    apart = set(_behind_exchanges(found.plan))
    for i, visit in enumerate(found.plan.visits):
        own = replace(works[i], hidden=sum(works[n].busy for n in _meanwhile(found.plan, i)))
        if not visit.barrier and i not in apart and phases:
            own = phases.pop().beside(own)
        phases.append(own)
    return PaperStep(tuple(phases))


def taller(step: PaperStep) -> PaperStep:
    """Count a step of a scan of twice the rows, which would read each weight once: what no kernel does."""

    def twice(one: Work) -> Work:
        wavefronts, pushed = 2 * one.wavefronts - one.of_weights, one.pushed // TRIPS["peers"].bytes
        both = replace(one, mma=2 * one.mma, wavefronts=wavefronts, instructions=2 * one.instructions)
        return replace(both, pushed=2 * one.pushed, exchanged=one.exchanged + pushed, hidden=2 * one.hidden)

    return PaperStep(tuple(map(twice, step.phases)))


def _behind_exchanges(plan: KernelPlan) -> Iterator[int]:
    """Yield the visits before which an exchange through memory has a barrier."""
    for i, visit in enumerate(plan.visits):
        if plan.copies(visit):
            yield i
        if plan.publishes(visit):
            yield i + 1


def _meanwhile(plan: KernelPlan, at: int) -> Iterator[int]:
    """Yield the visits between the last push of what a visit waits for, and that visit."""
    awaited, count = set(plan.visits[at].waits), len(plan.visits)
    for n in (back % count for back in range(at - 1, at - count, -1)):
        if not awaited or (plan.visits[n].finishes and awaited & set(plan.units[plan.visits[n].unit].writes)):
            return
        yield n


def _visit(found: Memory, visit: Visit, stored: frozenset[str]) -> Work:
    plan, unit, stacked = found.plan, found.plan.units[visit.unit], found.plan.stacked
    tiles = plan.share(found.tiles(unit.sums[0]), unit.split)
    mma = loads = streamed = moved = kept = folded = 0
    depth: dict[object, int] = {}  # of the products of each sum
    for product in visit.products:
        steps = row_bytes(product.source, found.kind) // STEP
        two = in_two(product.source, found.kind)
        depth[product.target] = depth.get(product.target, 0) + (-(-steps // 2) if two else steps)
        folded += two
        mma += stacked * tiles * steps
        loads += tiles * -(-steps // 2)
        weights = tiles * 8 * steps * STEP
        streamed += weights if found.place[product] == "memory" else 0
        kept += weights if found.place[product] == "shared" else 0
    every = found.every(unit)
    times = tiles - WARPS * (every + every // -found.abreast(unit))  # that a warp reads its operands
    for _, products in groupby(visit.products, key=lambda p: p.source):
        read = row_bytes(next(products).source, found.kind)  # once for all sums of the tiles abreast
        moved += stacked * times * 16 * read
        loads += stacked * times * read // STEP
    touched = Work()
    for each in _touched(found, unit, visit, stored):
        touched += each
    issued = mma + loads + WARPS * VISIT + stacked * tiles * (touched.instructions + FOLD * folded)
    chain = LOADED + ADDED * max(depth.values(), default=0) + FOLD * folded
    if visit.finishes and unit.kind in ENDS:
        instructions, follow = ENDS[unit.kind]
        issued, chain = issued + stacked * tiles * instructions, chain + follow
    begun = 4 * sum(part in found.bias for part in unit.sums) if visit.begins else 0  # biases, once for all rows
    wavefronts = -(-(moved + kept) // WAVEFRONT) + tiles * (begun + stacked * touched.wavefronts)
    copies, size = plan.ranks - 1 if plan.through == "peers" else 1, operand_bytes(found.kind)
    made = set(unit.writes) & set(plan.exchanged) if visit.finishes else set()
    issued += tiles * len(made) * PUSH * -(-ROWS * TILE * size * copies // (16 * LANES))
    pushed = sum(ROWS * TILE * size * (found.tiles(p) - found.share(p)) for p in visit.waits)
    exchanges, trip = bool(visit.waits), TRIPS[plan.through]
    exchanged = trip.latency + pushed // trip.bytes if exchanges else 0
    issued += PUSH * pushed // (16 * LANES) if plan.through == "memory" else 0  # copied from there
    barriers = visit.barrier + plan.publishes(visit) + plan.copies(visit)
    of_weights = kept // WAVEFRONT
    return Work(mma, wavefronts, of_weights, issued, streamed, barriers, exchanges, pushed, exchanged, chain=chain)


def _touched(found: Memory, unit: Unit, visit: Visit, stored: frozenset[str]) -> Iterator[Work]:
    """Yield what a tile of a visit reads and writes besides products: 128 numbers, a lane's own four at once."""
    size = operand_bytes(found.kind)
    more = ANEW if found.plan.stacked > 1 else 0
    begins = (*(unit.reads if visit.begins else ()), *(unit.rereads if visit.finishes else ()))
    for part in begins:  # what was fetched, and the next
        yield Work(wavefronts=2 * size if part in found.ahead else 0, instructions=READ + more)
    if visit.begins:
        yield from (Work(instructions=BIAS) for part in unit.sums if part in found.bias)
    if not visit.finishes:
        return
    for part in unit.writes:
        if part in found.operand:
            yield Work(wavefronts=size, instructions=OPERAND)
    for part in (*unit.holds, *unit.writes):
        if part in found.held:
            yield Work(wavefronts=4, instructions=HELD)
    made = (*unit.sums, *unit.others, *unit.writes)
    for part in dict.fromkeys(p for p in made if p is not None):
        if part.buffer in stored:
            yield Work(instructions=STORED + more)


# ---- launches


def loading(found: Memory, chip: str) -> float:
    """Return the microseconds in which a block brings in its weights and its first inputs."""
    return (found.shared_weights + 4 * found.biases) / STREAMED / PAPER_CHIPS[chip].clock / 1e3 + FLAG


def square(side: int) -> Work:
    """Count what a block does with 32 rows of a square of a weight gradient, in 16 bits: csrc/cuda/rows/weights.h."""
    high, wide = side // 64, side // 16
    loads = WARPS * 2 * (high + wide // 2)
    mma = WARPS * 2 * high * wide
    added = WARPS * 4 * high * wide
    return Work(mma, 4 * loads + side, instructions=mma + loads + added + WARPS * 30, barriers=1)


def squares(count: int, side: int, rows: int, shares: int, chip: str) -> float:
    """Return the microseconds in which all multiprocessors multiply so many squares of a cell's weight gradients."""
    groups = -(-rows // shares // 32)
    turns = -(-count * shares // PAPER_CHIPS[chip].multiprocessors)
    return turns * (groups * square(side).cycles / PAPER_CHIPS[chip].clock / 1e3 + FLAG)


def cublas(shapes: Iterable[tuple[int, int]], rows: int) -> float:
    """Return the microseconds of cuBLAS on an H100 for products of these shapes over so many rows: a launch for each,
    and all multiprocessors busy at 0.7 of 989 TFLOP/s. An assumption."""
    return sum(BOUNDARY + FLAG + 2 * rows * m * n / (0.7 * 989e6) for m, n in shapes)


class PaperTraining(NamedTuple):
    """Microseconds of a training step on the loss alone: each launch behind the other, and one each way."""

    apart: float
    joined: float


def paper_training(
    passes: Mapping[str, tuple[Memory, Sequence[str]]],
    products: float,
    shares: int,
    steps: int,
    batch: int,
    chip: str,
    blocks: Callable[[int, Through], int],
    looks: Callable[[float, int, float], int],
) -> PaperTraining:
    """Return what a training step takes.

    Args:
        passes: where each launch keeps everything, and what it stores, by name.
        products: microseconds of weight gradients on all multiprocessors,
        shares: in so many shares of rows.
        blocks: that the chip runs at once, so many to a tile.
        looks: steps of a scan from one look at others to the next, by tiles of a step in the pass behind it, blocks
            that work beside it, and microseconds of such a tile.
    """
    of, tiles = PAPER_CHIPS[chip], -(-batch // ROWS)
    total = PaperTraining(0.0, 0.0)
    for scan in ("forward", "backward"):
        back = scan == "backward"
        own = {n: p for n, p in passes.items() if n.endswith("backward") == back}
        plan = own[scan][0].plan
        scanning = tiles * plan.ranks
        meanwhile = blocks(plan.ranks, plan.through) - scanning
        chain = loading(own[scan][0], chip) + steps * paper_step(*own[scan]).microseconds(chip)
        more = products if back else 0.0
        apart = BOUNDARY + PACK + BOUNDARY + chain + (more + 2 * BOUNDARY + FLAG if back else 0.0)
        # to bring its weights in, and a tile: microseconds, and how many of these a step of the batch has
        beside = [
            (loading(p[0], chip), paper_step(*p).microseconds(chip), tiles / p[0].plan.stacked)
            for n, p in own.items()
            if n != scan
        ]
        apart += sum(BOUNDARY + load + math.ceil(steps * n / of.multiprocessors) * us for load, us, n in beside)
        joined = apart
        if meanwhile >= scanning:
            load, us, n = beside[-1]
            every = looks(n, meanwhile, us)
            work = sum(load + steps * n * us / meanwhile for load, us, n in beside)
            work += more * of.multiprocessors / meanwhile
            joined = BOUNDARY + PACK + sum(beside[0][:2]) + 2 * FLAG  # before the first step can begin
            joined += max(chain + steps / every * FLAG, work)
            joined += load + math.ceil(every * n / meanwhile) * us  # what the last look lets go on
            if back:  # the last share, and the sums
                joined += more / shares + 2 * FLAG
        total = PaperTraining(total.apart + apart, total.joined + joined)
    return total


def gru_alone(width: int, chip: str, *, reverse: bool, apart: bool, in_two: bool = False) -> float:
    """Return the microseconds of a step of nn.GRU alone in 16 bits, by the same arithmetic.

    Args:
        apart: whether blocks share a step, as cuDNN's persistent kernels do, which then meet at a barrier of the grid,
            twice on the way back; else one block has all weights on the chip, which is the best there could be.
        in_two: whether two sums take turns there as they do in ours, which nobody outside of NVIDIA knows.
    """
    clock = PAPER_CHIPS[chip].clock
    steps, tiles = -(-width // 16), -(-width // 8)
    kind: Kind = "gru_back" if reverse else "gru"
    products = tiles * steps * 3
    ends, follow = ENDS[kind]
    instructions = products * 3 // 2 + tiles * (steps + ends + 6 * READ)
    wavefronts = products * 2 + tiles * steps * 4
    chain = LOADED + ADDED * (-(-steps // 2) if in_two else steps) * (3 if reverse else 1) + follow
    if apart:
        return chain / clock / 1e3 + GRID * (2 if reverse else 1)
    work = Work(products, wavefronts, instructions=instructions, barriers=1, chain=chain)
    return work.cycles / clock / 1e3
