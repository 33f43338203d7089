"""What this machine runs: executors, and builds of the CPU kernels."""

from __future__ import annotations

import os
from unittest import mock

import torch

from vrnn_fast import backends
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cpu, executors
from vrnn_fast.executors.cpu import operators

SMALLEST, ON_THE_CPU = CellSpec(1, 1, 1), torch.empty((1, 1, 1), dtype=torch.float64)
AVAILABLE = [e.name for e in executors if backends()[e.name].available and e.refuses(SMALLEST, ON_THE_CPU) is None]
"""The executors that run on the CPU in float64, by name."""


def usable_isas() -> list[str]:
    """The builds of the CPU kernels that this processor runs; none where the extension is not built."""
    if cpu.unavailable() is not None:
        return []
    found = []
    for isa in ("baseline", "avx2", "avx512"):
        with mock.patch.dict(os.environ, VRNN_FAST_ISA=isa):
            try:
                found.append(operators.chosen_isa())
            except RuntimeError:
                continue
    return found
