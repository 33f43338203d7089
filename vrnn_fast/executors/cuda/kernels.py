"""The kernels of a call: each planned launch, those that every cell has, and one that is all of them. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from . import crew, weights
from .cluster import Cluster, clocked, ranks_of, through_of
from .driver import Kernel
from .header import VALUES, header, source
from .memory import Memory, Operand, memory
from .steps import PlannedLaunch


class PlannedKernel(NamedTuple):
    """The kernel of a step, its program in C++, where it keeps everything, the buffers that it reads and writes, in the
    order of its arguments, and microseconds of a step by the clock on paper, at that of an H100."""

    step: PlannedLaunch
    memory: Memory
    buffers: tuple[str, ...]
    body: str
    kernel: Kernel
    microseconds: float


@lru_cache(maxsize=1024)
def program(step: PlannedLaunch, kind: Operand, most: int, dtype: torch.dtype) -> PlannedKernel:
    """Write the kernel of a step.

    Raises:
        ValueError: it does not fit into ``most`` bytes of shared memory.
    """
    found = memory(step.plan, kind, most)
    if found is None:
        raise ValueError(f"no kernel of this cell fits into {most >> 10} KB of shared memory")
    reads = (part.buffer for unit in step.plan.units for part in (*unit.reads, *unit.rereads))
    buffers = tuple(dict.fromkeys((*reads, *step.stored)))
    body = header(found, buffers, step.stored, str(dtype).partition(".")[2], step.results)
    ranks, waits = step.plan.cluster, step.plan.cluster < step.plan.ranks
    kernel = Kernel(step.name, source(body, ranks), found.shared, ranks, cooperative=waits)
    return PlannedKernel(step, found, buffers, body, kernel, clocked(found).microseconds("sm_90"))


@lru_cache(maxsize=256)
def together(programs: tuple[crew.JoinedProgram, ...], limit: int, cluster: Cluster | None = None) -> Kernel:
    """Return the kernel that stands for all of these launches, where such blocks share a tile of the scan."""
    name = next(p.name for p in programs if p.name in crew.SCANS)
    shared = max(p.shared for p in programs)
    ranks = ranks_of(cluster) if through_of(cluster) == "peers" else 1
    return Kernel(f"all of {name}", crew.joined(programs, limit, cluster), shared, ranks, cooperative=True)


class FixedKernel(NamedTuple):
    """A kernel, and its program in C++."""

    kernel: Kernel
    body: str


@lru_cache(maxsize=64)
def fixed(name: str, kind: Operand, dtype: torch.dtype, pointers: int, side: int = weights.SIDES[0]) -> FixedKernel:
    """Return a kernel of csrc/cuda/rows, which every cell has; of weight gradients, by squares of this side."""
    value, shared = VALUES[str(dtype).partition(".")[2]], 0
    if name == "weights":
        shared = weights.shared_bytes(kind, side)
    constants = (
        f"namespace vrnn::program {{ using Value = {value}; inline constexpr Operand operand = Operand::{kind}; "
        f"inline constexpr int parameters = {pointers}, buffers = {pointers}; "
        f"inline constexpr int shared_bytes = {shared}, side = {side}; }}"
    )
    body = f'{constants}\n#include "rows/{name}.h"\n'
    known = {"weights": "weight gradients", "sums": "their sums"}.get(name, name)
    return FixedKernel(Kernel(known, source(body), shared), body)
