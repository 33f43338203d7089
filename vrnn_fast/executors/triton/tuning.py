"""Every tuning decision, and the arithmetic behind it in plain functions. Nothing here imports triton.

A choice belongs to a structure (cell, dtype, chip), never to T or B.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch

from ...spec import CellSpec
from .plan import Plan


@dataclass(frozen=True)
class Chip:
    """What one program may use: bytes of shared memory, and 32-bit registers of all its threads."""

    name: str
    shared: int
    registers: int = 65536


CHIPS = {
    "sm_80": Chip("sm_80", 166912),
    "sm_90": Chip("sm_90", 232448),
    "gfx942": Chip("gfx942", 65536, 131072),
}


@dataclass(frozen=True)
class Config:
    """How a kernel is written.

    Attributes:
        rows: of the batch in one program, a power of two from 16 on.
        warps: of one program.
        widest: columns of the widest tile, a power of two.
        ahead: whether a step reads what the next one needs from memory, in registers that it needs for that.
        resident: bytes of weights that are loaded once; the others are read from the second-level cache in every step.
    """

    rows: int
    warps: int
    widest: int
    ahead: bool
    resident: int


def candidates(chip: Chip) -> tuple[Config, ...]:
    """All configurations to choose from, the first one that fits being what runs untuned."""
    shared = chip.shared
    return tuple(
        Config(rows, warps, widest, ahead, resident)
        for resident, rows, widest, ahead, warps in product((shared, 0), (16, 32), (128, 64), (True, False), (4, 8))
    )


def choose(spec: CellSpec, dtype: torch.dtype, device: torch.device) -> Config:
    return candidates(CHIPS["sm_90"])[0]


def resident_matrices(cut: Plan, config: Config, itemsize: int) -> frozenset[int]:
    """The numbers of the matrices that are loaded once: as many, from the first on, as the configuration has bytes."""
    found, used = [], 0
    for matrix in cut.matrices:
        target, source = (sum(t.padded for t in cut.tiles_of(s)) for s in (matrix.stage.target, matrix.stage.source))
        used += target * source * itemsize
        if used <= config.resident:
            found.append(matrix.number)
    return frozenset(found)


@cache
def cache_directory() -> Path:
    """Where generated kernels and tuned choices lie: VRNN_FAST_CACHE, else ~/.cache/vrnn_fast."""
    path = Path(os.environ.get("VRNN_FAST_CACHE") or Path.home() / ".cache" / "vrnn_fast")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="vrnn_fast"))
