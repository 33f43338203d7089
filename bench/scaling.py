"""How time grows with T, B and h on each number of threads; what a second process gains; what many GPUs would."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .record import Measurement

EXPERIMENT = "scaling"
VARIED: dict[str, Callable[[Measurement], int]] = {
    "T": lambda row: row.steps,
    "B": lambda row: row.batch,
    "h": lambda row: row.sizes[1],
}


@dataclass(frozen=True)
class Curve:
    """Forward and backward passes by the number of threads, then by the size that was varied."""

    varied: str
    fixed: str
    rows: Mapping[int, Mapping[int, Measurement]]

    @property
    def milliseconds(self) -> dict[int, dict[int, float]]:
        """Of the passes, in the same order."""
        return {n: {size: row.milliseconds or math.nan for size, row in by.items()} for n, by in self.rows.items()}

    @property
    def sizes(self) -> list[int]:
        """What was measured, ascending."""
        return sorted({size for times in self.milliseconds.values() for size in times})

    def fastest(self, size: int) -> int:
        """Return the number of threads that took the least time."""
        return min((t[size], n) for n, t in self.milliseconds.items() if size in t)[1]

    def exponent(self, threads: int) -> float:
        """Compute the power of the size that time grows with."""
        times = self.milliseconds[threads]
        return exponent(list(times), list(times.values()))


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Compute the slope of a least-squares line through the logarithms. NaN for fewer than two sizes."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def curves(rows: Sequence[Measurement]) -> list[Curve]:
    """Find the curves that were measured, out of all rows of a record."""
    found = []
    for varied, size in VARIED.items():
        mine = [r for r in rows if r.experiment == EXPERIMENT and r.shape == varied and r.milliseconds]
        if mine:
            others = {"T": mine[0].steps, "B": mine[0].batch, "h": mine[0].sizes[1]}
            fixed = ", ".join(f"{name} = {value}" for name, value in others.items() if name != varied)
            by_threads: dict[int, dict[int, Measurement]] = {}
            for row in sorted(mine, key=size):
                by_threads.setdefault(row.threads, {})[size(row)] = row
            found.append(Curve(varied, fixed, dict(sorted(by_threads.items()))))
    return found


@dataclass(frozen=True)
class Link:
    """What joins GPUs: bytes a second each way for each of them, and seconds until the first one is there."""

    bandwidth: float
    latency: float


NVLINK, NETWORK = Link(450e9, 2e-6), Link(50e9, 5e-6)  # NVLink 4, and 400 Gb/s for each GPU, as their makers say
NODE = 8  # GPUs


def all_reduce_seconds(size: int, gpus: int) -> float:
    """Compute how long summing ``size`` bytes over GPUs takes, in nodes of eight: around a ring in each node, then
    each GPU its eighth along a tree of nodes.
    """
    inside, nodes = min(gpus, NODE), -(-gpus // NODE)
    ring = 2 * (inside - 1) * (size / inside / NVLINK.bandwidth + NVLINK.latency)
    if nodes == 1:
        return ring
    tree = 2 * (nodes - 1) / nodes * size / inside / NETWORK.bandwidth + 2 * math.log2(nodes) * NETWORK.latency
    return ring + tree


def efficiency(step: float, size: int, gpus: int) -> float:
    """Compute the share of a step's time that remains for computing, where each GPU keeps its batch (weak scaling).

    Nothing overlaps: the backward pass is one operator, which gives all gradients at its end.
    """
    return step / (step + all_reduce_seconds(size, gpus))
