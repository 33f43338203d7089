"""What this machine runs: builds of the CPU kernels, and triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from vrnn_fast import backends
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cpu, executors, triton
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


@contextmanager
def patched_once() -> Iterator[None]:
    """The interpreter patches the language at every call of a function, which takes longer than the call."""
    if not triton._INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    own = InterpretedFunction.__call__

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        function = own if self.fn.__module__.startswith("triton.") else lambda s, *a, **o: s.rewrite()(*a, **o)
        return function(self, *arguments, **options)

    with mock.patch.object(InterpretedFunction, "__call__", call):
        yield
