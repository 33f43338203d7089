"""Activation memory: how much a forward and backward pass needs beside parameters, gradients and inputs.

Contenders allocate by torch, by XLA and by plain C++, so no allocator's own books hold all of it: what counts is how
far the process itself grew. A fresh process prepares the contender and runs its pass twice; the heap's free pages go
back to the system, Linux resets the highest resident size it has seen (VmHWM, by writing 5 to /proc/self/clear_refs),
the pass runs once more, and VmHWM is read again. Parameters and inputs were resident before, and so were gradients: a
pass leaves its own behind and drops the last one's first, so they are in both numbers. Large blocks are mapped one by
one and huge pages are off, so that what is freed is returned and what is not touched does not count. Exact to some
hundred kilobytes, by which the kernel's per-processor counters may be late.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vrnn_fast.executors.cpu import operators

from .contender import TRAINING, Contender
from .shapes import Shape

if TYPE_CHECKING:
    from typing_extensions import Self

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_M_MMAP_THRESHOLD, _PR_SET_THP_DISABLE = -3, 41


def measurable() -> bool:
    """Tell whether this system keeps the books that :func:`growth` reads: Linux with glibc."""
    return _CLEAR.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")


def growth(call: Callable[[], object]) -> int:
    """Measure by how many bytes the resident memory of this process rises above its present size during a call."""

    def resident(entry: str) -> int:
        return 1024 * next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(entry))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = resident("VmRSS")
    held = call()
    after = resident("VmHWM")
    del held
    return max(0, after - before)


def prepare_process() -> None:
    """Let this process return what it frees, and touch only what it uses."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def _activations(contender: Contender, shape: Shape, threads: int) -> int:
    torch.set_num_threads(threads)
    train = contender.prepare(shape, torch.float32).passes[TRAINING]
    for _ in range(2):
        train()
    operators.release_memory()  # or what our last pass needed would count as resident before
    return growth(train)


class Scales:
    """Weighs contenders, one after another in a process of its own. Use as a context manager."""

    def __enter__(self) -> Self:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), prepare_process)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def weigh(self, contender: Contender, shape: Shape, threads: int) -> int | None:
        """Measure bytes of activations; None where they cannot be measured."""
        if not measurable():
            return None
        try:
            return self._pool.submit(_activations, contender, shape, threads).result()
        except BrokenProcessPool:  # the system may end a process that takes too much
            return None
