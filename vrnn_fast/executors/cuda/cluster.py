"""Which scans run by a cluster of blocks, and what each of its ranks computes: one rule. Pure.

A block that holds all weights of a scan on its chip has no need of others. Where some would be read from the
second-level cache in every step, the ranks of a cluster share the columns of all products, each with its weights
resident; how many ranks, the clock on paper says. Of what they share, products need all columns, which costs an
exchange. Where that costs more than what it saves, each rank computes all of a unit: of a small latent variable, and
of what is made of it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from ...cell.spec import CellSpec
from ...cell.stages import Slice
from .cycles import EXCHANGE, PEER, WAVEFRONT, paper_step
from .memory import ROWS, Memory, Operand, memory
from .plan import KernelPlan, Kind, Unit

RANKS = 2, 4, 8, 16  # of a cluster
PORTABLE = 8  # that every chip with clusters has; more must be allowed to a kernel, and find a free group of processors
ALONE: tuple[Kind, ...] = ("divergence", "likelihood", "total", "resample", "take", "give_back")
"""Whose rows are added up, or move, within one block."""
_EITHER: tuple[Kind, ...] = ("layer", "sample", "draw", "layer_back", "sample_back")
_OPERAND = 2  # bytes, by which a unit's weights are weighed against its exchange


class Cluster(NamedTuple):
    """Blocks that share a tile of rows.

    Attributes:
        ranks: how many.
        alike: whether each computes all of a unit where that costs less than an exchange.
    """

    ranks: int
    alike: bool = True


def shared_out(units: Iterable[Unit], cluster: Cluster | None) -> tuple[Unit, ...]:
    """Mark the units whose tiles the ranks of a cluster share."""
    every = tuple(units)
    if cluster is None:
        return every
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
    peers = 1 - 1 / cluster.ranks
    return saved * peers <= EXCHANGE + ROWS * pushed * _OPERAND * peers / PEER


def fastest(plans: Callable[[Cluster | None], KernelPlan], kind: Operand, limit: int, ranks: int) -> Cluster | None:
    """Choose how a scan runs: None for one block to a tile.

    Args:
        plans: its plan by a cluster, or by a block.
        limit: bytes of shared memory of a block.
        ranks: that a cluster may have.
    """
    own = memory(plans(None), kind, limit)
    if own is not None and not _streams(own):
        return None
    clusters = (Cluster(n, alike) for n in RANKS if n <= ranks for alike in (True, False))
    found = ((cluster, memory(plans(cluster), kind, limit)) for cluster in clusters)
    prices = {cluster: _price(m) for cluster, m in found if m is not None}
    best = min(prices, key=prices.__getitem__, default=None)
    return None if best is None or (own is not None and _price(own) <= prices[best]) else best


def _streams(found: Memory) -> bool:
    return "memory" in found.place.values()


def _price(found: Memory) -> tuple[bool, bool, int]:
    """Price a step: weights on the chip, then a cluster that every chip has, then cycles. A step of full float32, whose
    products the clock does not count, costs what one of TF32 does, which has as many bytes."""
    cycles = paper_step(replace(found, kind="tf32") if found.kind == "f32" else found).cycles
    return _streams(found), not _streams(found) and found.plan.ranks > PORTABLE, cycles


def refuses(spec: CellSpec) -> str | None:
    """Return None, or why the scans of a cell do not run by clusters."""
    if spec.measure == "particle_filter":
        return "the rows of a particle filter exchange their states within one block"
    return None
