"""Small programs around a few instructions, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .arithmetic import Rounding
from .machine import run
from .memory import Memory
from .report import Report
from .text import parse

_REGISTERS = {"p": "pred", "h": "b16", "r": "b32", "d": "b64", "f": "f32"}


@dataclass
class Snippet:
    """A kernel of a body, whose parameters are addresses of arrays; ``%p``, ``%h``, ``%r``, ``%d`` and ``%f`` are its
    registers, ``shared`` its shared memory. ``%d0`` and on hold the addresses of the arrays in their order."""

    body: str
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    unwritten: Sequence[str] = ()  # arrays that nobody has written yet
    threads: int = 32
    shared: int = 1024
    grid: int = 1

    @property
    def text(self) -> str:
        parameters = ", ".join(f".param .u64 {name}" for name in self.arrays)
        declared = "\n".join(f".reg .{kind} %{letter}<100>;" for letter, kind in _REGISTERS.items())
        loads = "\n".join(f"ld.param.u64 %d{i}, [{name}];" for i, name in enumerate(self.arrays))
        return (
            ".version 8.4\n.target sm_90\n.address_size 64\n"
            f".visible .entry snippet({parameters})\n.reqntid {self.threads}\n{{\n{declared}\n"
            f".shared .align 128 .b8 shared[{self.shared}];\n{loads}\n{self.body}\nret;\n}}\n"
        )

    def run(self, rounding: Rounding | None = None, limit: int = 100_000) -> Report:
        """Execute it; the arrays hold what it stored."""
        memory = Memory()
        addresses = {
            name: memory.add(name, array, initialised=name not in self.unwritten) for name, array in self.arrays.items()
        }
        return run(parse(self.text), self.grid, addresses, memory, rounding=rounding, limit=limit)


def thread_address(array: str, into: str, size: int) -> str:
    """The address of this thread's element of ``size`` bytes."""
    return f"mov.u32 %r99, %tid.x; mul.wide.u32 %d99, %r99, {size}; add.s64 {into}, {array}, %d99;"
