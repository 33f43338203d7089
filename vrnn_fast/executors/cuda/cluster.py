"""Which scans run by several blocks to a tile of rows, and what each of their ranks computes: one rule, by the clock on
paper. Pure.

The ranks share the columns of all products, each with its weights resident. Of what they share, products need all
columns, which costs an exchange: through each other's shared memory where the ranks are a cluster of Hopper's or of a
later chip, else through memory, at four times the price. Where an exchange costs more than what it saves, each rank
computes all of a unit: of a small latent variable, and of what is made of it alone. Several ranks win where one block
reads its weights from the second-level cache in every step, or where a batch is so small that most of a chip would have
nothing to do. They are more only as long as they leave room for what goes on beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple, TypeAlias

from ...cell.partition import partition
from ...cell.spec import CellSpec
from ...cell.stages import Normalize, Slice
from .cycles import BARRIER, TRIPS, WAVEFRONT, PaperStep, paper_step
from .exchange import RanksApart
from .memory import ROWS, Memory, Operand, memory
from .plan import KernelPlan, Kind, Through, Unit

RANKS: dict[Through, tuple[int, ...]] = {"peers": (2, 4, 8, 16), "memory": (2, 4, 8, 16, 32)}  # that share a tile
GROUP = 16  # multiprocessors, at least, of a whole chip's groups, one of which has a whole cluster
PORTABLE = 8  # that every chip with clusters has; more must be allowed to a kernel, and find a free group of processors
_EITHER: tuple[Kind, ...] = ("layer", "sample", "draw", "layer_back", "sample_back")
SAME = 1.1  # times the cycles of the fastest way, that a way of fewer ranks may take: their counts err alike
NORMALIZES = "layer normalisation adds up a row's columns within one block"
_OPERAND = 2  # bytes, by which a unit's weights are weighed against its exchange


class Cluster(NamedTuple):
    """Blocks that share a tile of rows.

    Attributes:
        ranks: how many.
        alike: whether each computes all of a unit where that costs less than an exchange.
        through: how they exchange operands; of peers, they are a cluster as the hardware knows it.
    """

    ranks: int
    alike: bool = True
    through: Through = "peers"


Prices: TypeAlias = tuple[tuple[Cluster | None, int], ...]
Beside: TypeAlias = tuple[tuple[int, int], ...]  # cycles of passes for 16 rows, by how often 16 rows a step takes
RankPlaces: TypeAlias = Callable[[int, Through], int]  # of blocks that run at once, so many to a tile


def ranks_of(cluster: Cluster | None) -> int:
    """Count the blocks that scan a tile."""
    return 1 if cluster is None else cluster.ranks


def through_of(cluster: Cluster | None) -> Through:
    """Tell how the blocks that scan a tile exchange operands."""
    return "peers" if cluster is None else cluster.through


def at_once(multiprocessors: int, ranks: int) -> int:
    """Count the clusters that a whole chip runs at once, on paper."""
    return multiprocessors // GROUP * (GROUP // ranks)


def workers(tiles: int, ranks: int, blocks: int) -> int:
    """Count the blocks that work beside those that scan, of all that run at once; 0 where they are too few: fewer than
    those that scan would be later than these.

    Args:
        tiles: of rows, each of which a cluster of so many ranks scans.
    """
    beside = blocks - tiles * ranks
    return beside if 0 < tiles * ranks <= beside else 0


def shared_out(units: Iterable[Unit], cluster: Cluster | None) -> tuple[Unit, ...]:
    """Tell which units' tiles the ranks that share a tile of rows share.

    Raises:
        ValueError: one of them normalises.
    """
    every = tuple(units)
    if cluster is None:
        return every
    if _normalizes(every):
        raise ValueError(f"{cluster.ranks} blocks cannot share this scan: {NORMALIZES}")
    read = {p.source for unit in every for p in unit.products}
    split = {u for u, unit in enumerate(every) if not _alike(unit, read, cluster)}
    makers = {part: u for u, unit in enumerate(every) for part in unit.writes}
    for _ in every:  # what a unit holds of another one is in the same lanes
        split |= {u for u, unit in enumerate(every) if any(makers.get(part) in split for part in unit.holds)}
    return tuple(replace(unit, split=u in split) for u, unit in enumerate(every))


def _alike(unit: Unit, read: set[Slice], cluster: Cluster) -> bool:
    """Tell whether each rank computes all of a unit. None may leave its result where others have yet to read what it
    begins with."""
    pushed = sum(part.width for part in unit.writes if part in read)
    in_place = set(unit.reads) & {*unit.sums, *unit.writes}
    if unit.kind not in _EITHER or not cluster.alike or not pushed or in_place:
        return False
    saved = _OPERAND * sum(p.source.width * p.target.width for p in unit.products) / WAVEFRONT
    peers, trip = 1 - 1 / cluster.ranks, TRIPS[cluster.through]
    return saved * peers <= trip.latency + ROWS * pushed * _OPERAND * peers / trip.bytes


def priced(
    plans: Callable[[Cluster | None], KernelPlan], kind: Operand, limit: int, through: Iterable[Through]
) -> Prices:
    """Find the ways in which a scan can run, and the cycles of a step in each: none where one block has no room for it,
    for of a batch that is large enough one has each tile.

    Args:
        plans: its plan by several blocks to a tile, or by one.
        limit: bytes of shared memory of a block.
        through: how several may exchange operands, the cheapest first.
    """
    alone = plans(None)
    own = memory(alone, kind, limit)
    if own is None:
        return ()
    found: list[tuple[Cluster | None, int]] = [(None, clocked(own).cycles)]
    for way in () if _normalizes(alone.units) else through:
        if clocked(own).cycles <= _least(clocked(own), way):
            continue
        clusters = (Cluster(n, alike, way) for n in RANKS[way] for alike in (True, False))
        laid = ((cluster, _laid(partial(plans, cluster), kind, limit)) for cluster in clusters)
        found += [(cluster, clocked(m).cycles) for cluster, m in laid if m is not None]
    return tuple(found)


def _laid(plan: Callable[[], KernelPlan], kind: Operand, limit: int) -> Memory | None:
    """Return where a scan keeps everything; None where that does not fit, or its ranks would come apart."""
    try:
        return memory(plan(), kind, limit)
    except RanksApart:
        return None


class ScanWay(NamedTuple):
    """How a scan runs: the blocks to a tile of rows, None for one, and how often 16 rows a step of the passes beside it
    takes."""

    cluster: Cluster | None = None
    stacked: int = 1


def fastest(prices: Prices, tiles: int, blocks: RankPlaces, beside: Beside) -> ScanWay:
    """Choose how a scan of so many tiles of rows runs. Of what the clock cannot tell apart, the fewest ranks, then the
    fewest rows beside it, which come sooner to the first step and behind the last one.

    Args:
        blocks: tells how many the chip runs at once, so many to a tile. What has no place is not chosen; tiles take
            turns where blocks do not wait for each other through memory.
        beside: cycles of what a tile of rows costs a step besides: on workers meanwhile, or on all of the chip behind
            the scan.
    """

    def time(cluster: Cluster | None, cycles: int, more: int) -> float:
        ranks, places = ranks_of(cluster), room(cluster)
        if meanwhile := workers(tiles, ranks, places):
            return max(cycles, tiles * more / meanwhile)
        return cycles * -(-tiles // (places // ranks)) + tiles * more / room(None)

    def room(cluster: Cluster | None) -> int:
        return blocks(ranks_of(cluster), through_of(cluster))

    def has_place(cluster: Cluster | None) -> bool:
        least = max(1, tiles) * ranks_of(cluster) if through_of(cluster) == "memory" else 1
        return room(cluster) >= least

    there = product((choice for choice in prices if has_place(choice[0])), beside)
    times = {ScanWay(cluster, stacked): time(cluster, cycles, more) for (cluster, cycles), (stacked, more) in there}
    least = min(times.values(), default=0.0)
    return next((way for way, own in times.items() if own <= SAME * least), ScanWay())


def clocked(found: Memory) -> PaperStep:
    """Count a step; of full float32, whose products the clock does not count, as of TF32, which has as many bytes."""
    return paper_step(replace(found, kind="tf32") if found.kind == "f32" else found)


def _least(own: PaperStep, through: Through) -> int:
    """Bound the cycles of a step by several blocks from below: what follows each other in one, and two exchanges."""
    return sum(phase.chain + BARRIER * phase.barriers for phase in own.phases) + 2 * TRIPS[through].latency


def _normalizes(units: Iterable[Unit]) -> bool:
    return any(unit.normalizes is not None for unit in units)


def refuses(spec: CellSpec) -> str | None:
    """Return None, or why one block scans a tile of a cell's rows, never several."""
    if spec.measure == "particle_filter":
        return "the rows of a particle filter exchange their states within one block"
    if any(isinstance(stage, Normalize) for stage in partition(spec).scan):
        return NORMALIZES
    return None
