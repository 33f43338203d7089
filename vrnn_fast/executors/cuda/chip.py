"""What a device has for kernels: a GPU as its driver says, or the emulator, which stands for an H100."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import count

import torch

from ...cell.spec import CellSpec
from . import driver
from .cluster import Cluster, ranks_of, through_of, workers
from .memory import CHIPS, ROWS, Operand
from .steps import H100, ScanRoom, chosen

OLDEST = 8, 0  # compute capability: what copy_async and mma of bf16 need
EMULATED_MULTIPROCESSORS = 4


def gpu(device: torch.device) -> int | None:
    """Return the number of a GPU; None for a CPU, where the emulator is."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def limit(device: torch.device) -> int:
    """Return the bytes of shared memory of a block; in the emulator, those of an H100."""
    index = gpu(device)
    return CHIPS["sm_90"] if index is None else driver.chip(index).shared


def room(device: torch.device) -> ScanRoom:
    """Return what a chip has for scans: clusters of Hopper's chips and of Blackwell's large ones, as many as the driver
    says, and a block on each multiprocessor where it promises to run all of a launch at once. The emulator has those of
    an H100."""
    index = gpu(device)
    if index is None:
        return H100._replace(shared=limit(device))
    found = driver.chip(index)
    clusters = _clusters(index) if found.capability[0] in (9, 10) else None
    return ScanRoom(found.shared, found.multiprocessors, clusters, found.multiprocessors if found.cooperative else 0)


@cache
def _clusters(index: int) -> Callable[[int], int]:
    """Return what tells how many clusters a device runs at once: the same every time, for choices are kept by it."""
    return partial(driver.clusters, index)


def multiprocessors(device: torch.device) -> int:
    """Count those of the chip."""
    index = gpu(device)
    return EMULATED_MULTIPROCESSORS if index is None else driver.chip(index).multiprocessors


def at_once(device: torch.device, cluster: Cluster | None) -> int:
    """Count the blocks that run at once, each with a multiprocessor to itself, where such share a tile."""
    ranks = ranks_of(cluster)
    if gpu(device) is None:
        return EMULATED_MULTIPROCESSORS // ranks * ranks
    return room(device).blocks(ranks, through_of(cluster))


def cooperates(device: torch.device) -> bool:
    """Tell whether the driver promises to run all blocks of a launch at once."""
    index = gpu(device)
    return index is None or driver.chip(index).cooperative


def rows_together(spec: CellSpec, kind: Operand, device: torch.device) -> int:
    """Count the rows up to which a training step is one launch each way."""

    def joins(tiles: int) -> bool:
        there, back, _ = chosen(spec, kind, room(device), tiles * ROWS).clusters
        return all(workers(tiles, ranks_of(own), at_once(device, own)) for own in (there, back))

    return ROWS * next(tiles for tiles in count() if not (cooperates(device) and joins(tiles + 1)))


def too_old(device: torch.device) -> str | None:
    """Return None, or why kernels do not run on this device whatever the cell is."""
    index = gpu(device)
    found = OLDEST if index is None else driver.chip(index).capability
    if found >= OLDEST:
        return None
    return f"its kernels need compute capability {OLDEST[0]}.{OLDEST[1]}, and {device} has {found[0]}.{found[1]}"
