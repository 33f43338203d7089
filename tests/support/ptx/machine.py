"""Threads, blocks and grids: who runs next, who waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .arithmetic import Rounding
from .clusters import Cluster, Gate
from .memory import Bytes, Clocks, Ints, Memory, Region, variables
from .report import Fault, Report
from .text import Instruction, Kernel

Mask = NDArray[np.bool_]
WARP = 32
TOGETHER = ("bar", "barrier", "ldmatrix", "stmatrix", "mma", "shfl", "vote", "redux")  # by whole warps, as a rule


@dataclass(frozen=True)
class Lanes:
    """The threads of a block that execute an instruction."""

    mask: Mask

    @cached_property
    def all_threads(self) -> bool:
        return bool(self.mask.all())

    @cached_property
    def threads(self) -> Ints:
        return np.flatnonzero(self.mask)

    @cached_property
    def warps(self) -> Ints:
        """Those that are in it whole.

        Raises:
            Fault: one is split.
        """
        each = self.mask.reshape(-1, WARP)
        if (each.any(1) != each.all(1)).any():
            raise Fault("a warp is divergent at an instruction that all its lanes must execute together")
        return np.flatnonzero(each[:, 0])


Step: TypeAlias = Callable[["Block", Lanes], None]


@dataclass(frozen=True)
class Launch:
    """What the blocks of a launch have in common."""

    kernel: Kernel
    steps: tuple[Step, ...]
    grid: int
    threads: int
    arguments: Mapping[str, Bytes]
    shared: Mapping[str, tuple[int, bytes]]  # variables: where they begin, and their first bytes
    shared_size: int
    memory: Memory
    clocks: Clocks
    rounding: Rounding
    constants: Mapping[str, int]  # addresses of parameters, and of variables in global and constant memory


class Block:
    """One block: its registers, its shared memory, and where its threads are."""

    def __init__(self, launch: Launch, index: int, cluster: Cluster) -> None:
        n = launch.threads
        self.cluster, self.gates = cluster, dict[int, Gate]()
        cluster.blocks.append(self)
        self.launch, self.index, self.report = launch, index, Report()
        self.registers: dict[str, NDArray[np.generic]] = {}
        self.holes: dict[str, int] = {}  # a bit for each byte of a register that nobody has written
        self.shared: Region = variables(launch.shared, launch.shared_size, launch.clocks.of.shape[0])
        self.warp_of = np.arange(n) // WARP + index * (n // WARP)  # among those of the grid
        self.copies: list[list[tuple[Mask, Callable[[Mask], None]]]] = [[]]  # cp.async, by group
        self.at = np.zeros(n, np.int64)
        self.done = np.zeros(n, bool)
        self.waiting = np.zeros(n, bool)
        self._jumped = np.zeros(n, bool)
        self._arrived: dict[int, Mask] = {}
        self._wanted: dict[int, int | None] = {}
        self.line = ""

    @property
    def threads(self) -> int:
        return self.launch.threads

    @property
    def clocks(self) -> Clocks:
        return self.launch.clocks

    def advance(self, limit: int) -> int:
        """Run until all threads wait, are done or have jumped back once; returns how many instructions that took.

        Raises:
            Fault: what a GPU would not survive, with the line.
        """
        code, steps, ran = self.launch.kernel.code, self.launch.steps, 0
        self._jumped[:] = False
        held = np.zeros(self.threads, bool)  # at an instruction that their warp-mates have yet to come to
        while ran < limit:
            ready = ~(self.waiting | self.done | self._jumped)
            if not ready.any():
                break
            moving = ready & ~held if (ready & ~held).any() else ready
            at = int(self.at[moving].min())
            active = ready & (self.at == at)
            instruction = code[at]
            if instruction.name in TOGETHER and moving is not ready:
                early = active & np.repeat((ready & ~active & ~held).reshape(-1, WARP).any(1), WARP)
                held |= early
                active &= ~early
                if not active.any():
                    continue
            held &= ~active
            self.line = f"{at}: {instruction.line}"
            self.at[active] = at + 1
            lanes = Lanes(active if instruction.guard is None else active & self.predicate(instruction))
            if lanes.mask.any():
                self.report.issued[instruction.name] += int(lanes.mask.reshape(-1, WARP).any(1).sum())
                try:
                    steps[at](self, lanes)
                except Fault as fault:
                    raise Fault(f"{fault} (block {self.index}, {self.line})") from None
            ran += 1
            if int(self.at.max()) >= len(code) and (self.at[~self.done] >= len(code)).any():
                raise Fault(f"a thread ran past the end of {self.launch.kernel.name}")
        return ran

    def predicate(self, instruction: Instruction) -> Mask:
        assert instruction.guard is not None
        value = self.registers[instruction.guard.name]
        return ~value if instruction.guard.negated else value

    def jump(self, lanes: Lanes, target: int) -> None:
        if (lanes.mask & (target < self.at)).any():  # its warp-mates wait for it, other warps go first
            self._jumped |= np.repeat(lanes.mask.reshape(-1, WARP).any(1), WARP)
        self.at[lanes.mask] = target

    def end(self, lanes: Lanes) -> None:
        self.done |= lanes.mask
        for number in list(self._arrived):
            self._open(number)

    def arrive(self, lanes: Lanes, number: int, count: int | None, *, wait: bool) -> None:
        """At a barrier, of ``count`` threads or of all that are not done."""
        if wait:
            self.waiting |= lanes.mask
        here = self._arrived.setdefault(number, np.zeros(self.threads, bool))
        if self._wanted.setdefault(number, count) != count:
            raise Fault(f"barrier {number} is met with {self._wanted[number]} and with {count} threads")
        if (here & lanes.mask).any():
            raise Fault(f"a thread meets barrier {number} twice before the others")
        here |= lanes.mask
        self._open(number)

    def _open(self, number: int) -> None:
        here, count = self._arrived[number], self._wanted[number]
        wanted = int((~self.done).sum()) if count is None else count
        if int(here.sum()) < wanted or not here.any():
            return
        self.waiting &= ~here
        self.clocks.meet(np.unique(self.warp_of[here]))
        self.report.barriers += 1
        del self._arrived[number], self._wanted[number]

    def waits(self) -> str:
        """What this block waits for, in words."""
        at = [f"barrier {n}: {int(m.sum())} of {self._wanted[n] or 'all'} threads" for n, m in self._arrived.items()]
        lines = sorted({int(p) - 1 for p in self.at[self.waiting]})
        code = self.launch.kernel.code
        return f"block {self.index} waits at " + "; ".join([*at, *(f"{p}: {code[p].line}" for p in lines)])


def run(
    kernel: Kernel,
    grid: int,
    arguments: Mapping[str, int | float | bytes],
    memory: Memory,
    *,
    dynamic_shared: int = 0,
    threads: int | None = None,
    rounding: Rounding | None = None,
    limit: int = 20_000_000,
) -> Report:
    """Run a launch of ``grid`` blocks to its end.

    Args:
        arguments: of each parameter: an address of ``memory``, an integer, a float, or the bytes of a struct.
        dynamic_shared: bytes of shared memory that the launch gives.
        threads: of a block, where the program does not say.
        rounding: of the elementary functions; exact by default.
        limit: of instructions of one block, so that what does not end does.

    Raises:
        Fault: a launch that a GPU would not survive, or would not end.
        Unknown: an instruction that this interpreter does not know.
    """
    from .decode import decode

    count = kernel.threads or threads
    if count is None or count % WARP:
        raise ValueError(f"a block must have whole warps, got {count} threads")
    if grid % kernel.cluster:
        raise ValueError(f"a grid is whole clusters of {kernel.cluster} blocks, got {grid}")
    if arguments.keys() != kernel.parameters.keys():
        raise ValueError(f"{kernel.name} takes {list(kernel.parameters)}, got {list(arguments)}")
    shared, size = _shared_layout(kernel, dynamic_shared)
    constants = {
        name: memory.add(name, np.frombuffer(v.content.ljust(v.size or 0, b"\0"), np.uint8).copy())
        for name, v in kernel.variables.items()
        if v.space != "shared"
    }
    given = {name: _bytes(value, kernel.parameters[name]) for name, value in arguments.items()}
    constants |= {name: memory.add(name, content.copy()) for name, content in given.items()}
    memory.prepare(grid * count // WARP)
    launch = Launch(
        kernel,
        tuple(decode(instruction, kernel, constants, shared) for instruction in kernel.code),
        grid,
        count,
        given,
        shared,
        size,
        memory,
        Clocks(grid * count // WARP),
        rounding or Rounding(),
        constants,
    )
    with np.errstate(all="ignore"):
        clusters = [Cluster() for _ in range(grid // kernel.cluster)]
        blocks = [Block(launch, index, clusters[index // kernel.cluster]) for index in range(grid)]
        left, ran = list(blocks), 0
        while left:
            went = sum(block.advance(limit) for block in left)
            left = [block for block in left if not block.done.all()]
            ran += went
            if left and not went:
                raise Fault("deadlock: " + "; ".join(block.waits() for block in left))
            if ran > limit * grid:
                raise Fault(f"no end after {ran} instructions: " + "; ".join(block.line for block in left))
    return sum((block.report for block in blocks[1:]), blocks[0].report)


def _shared_layout(kernel: Kernel, dynamic: int) -> tuple[dict[str, tuple[int, bytes]], int]:
    """Variables of a size first, those of the launch's size behind them, all from one place."""
    layout, end = {}, 0
    found = {name: v for name, v in kernel.variables.items() if v.space == "shared"}
    for name, v in found.items():
        if v.size is not None:
            start = -(-end // v.align) * v.align
            layout[name], end = (start, v.content), start + v.size
    start = -(-end // 128) * 128
    layout |= {name: (start, b"") for name, v in found.items() if v.size is None}
    return layout, (start + dynamic) if dynamic else end


def _bytes(value: float | bytes, size: int) -> Bytes:
    if isinstance(value, bytes):
        if len(value) != size:
            raise ValueError(f"a parameter has {size} bytes, got {len(value)}")
        return np.frombuffer(value, np.uint8)
    if isinstance(value, float):
        return np.frombuffer(np.array(value, {4: np.float32, 8: np.float64}[size]).tobytes(), np.uint8)
    return np.frombuffer(int(value).to_bytes(size, "little", signed=value < 0), np.uint8)
