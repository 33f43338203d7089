"""What moves between registers and memory, and what tells warps and blocks that it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import clusters
from .machine import WARP, Block, Lanes
from .memory import SHARED_WINDOW, Bytes, Ints
from .report import Fault
from .text import Address, Instruction, Kernel, Number, Operand, Register, Unknown, Vector
from .values import SIZES, UNSIGNED, Array

Reader = Callable[[Block], Array]

_SPACES = ("param", "global", "shared", "const", "local")
_IGNORED = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "gpu", "cta", "sys", "cluster", "weak"}  # caches and scopes
_ORDERS = ("volatile", "relaxed", "acquire", "release", "acq_rel")


class Access:
    """The parts of an opcode that names memory: ``ld.global.v4.b32``."""

    def __init__(self, instruction: Instruction) -> None:
        self.space, self.order, self.count, self.kind = "generic", "", 1, instruction.modifiers[-1]
        for modifier in instruction.modifiers[:-1]:
            base = modifier.partition("::")[0]
            if base in _SPACES and modifier != "shared::cluster":
                self.space = base
            elif modifier in _ORDERS:
                self.order = modifier
            elif modifier in ("v2", "v4", "v8"):
                self.count = int(modifier[1:])
            elif base not in _IGNORED | {"L1", "L2"}:
                raise Unknown(instruction.line)
        if self.space == "local" or self.kind not in SIZES:
            raise Unknown(instruction.line)
        self.element = SIZES[self.kind]

    @property
    def size(self) -> int:
        return self.element * self.count


def address_of(
    operand: Address, kernel: Kernel, constants: dict[str, int], shared: dict[str, tuple[int, bytes]]
) -> Reader:
    """The addresses of every thread."""
    base, offset = operand.base, operand.offset
    if isinstance(base, Register):
        name = base.name
        return lambda block: block.registers[name].astype(np.int64) + offset
    start = 0 if base is None else shared[base][0] if base in shared else constants[base]
    return lambda block: np.full(block.threads, start + offset, np.int64)


def load(block: Block, lanes: Lanes, access: Access, at: Ints) -> Bytes:
    """(threads, size) bytes of the lanes, zeros elsewhere."""
    found = np.zeros((block.threads, access.size), np.uint8)
    for space, chosen in _by_space(access, lanes, at):
        where, warps = at[chosen], block.warp_of[chosen]
        _check_alignment(where, access.size)
        if access.order:
            _synchronise(block, chosen, where, space, acquire=access.order == "acquire")
        if space == "shared" and clusters.is_peers(where):
            region, where = clusters.reached(block, where)
        elif space == "shared":
            _check_shared(block, where, access.size)
            _count_wavefronts(block, chosen, where, access.size)
            region = block.shared
        else:
            region, where = block.launch.memory.find(where.view(np.uint64), access.size, block.line)
        if access.order:
            found[chosen] = region.content[where[:, None] + np.arange(access.size)]
        else:
            found[chosen] = region.load(where, access.size, warps, block.clocks, block.report, block.line)
    return found


def store(block: Block, lanes: Lanes, access: Access, at: Ints, values: Bytes) -> None:
    """(threads, size) bytes of the lanes."""
    for space, chosen in _by_space(access, lanes, at):
        where, warps = at[chosen], block.warp_of[chosen]
        _check_alignment(where, access.size)
        if space == "shared":
            _check_shared(block, where, access.size)
            _count_wavefronts(block, chosen, where, access.size)
            region, inside = block.shared, where
        else:
            region, inside = block.launch.memory.find(where.view(np.uint64), access.size, block.line)
        if access.order:
            for thread, place in zip(chosen, where, strict=True):
                key = _key(block, space, int(place))
                block.clocks.store(int(block.warp_of[thread]), key, release=access.order in ("release", "acq_rel"))
            region.content[inside[:, None] + np.arange(access.size)] = values[chosen]
            region.known[inside[:, None] + np.arange(access.size)] = True
        else:
            region.store(inside, values[chosen], warps, block.clocks, block.report, block.line)


def update(block: Block, lanes: Lanes, access: Access, at: Ints, function: Callable[[Bytes, int], Bytes]) -> Bytes:
    """An atomic operation, lane after lane: what was there, (threads, size) bytes; ``function`` makes the new value of
    the old one and the thread."""
    found = np.zeros((block.threads, access.size), np.uint8)
    for space, chosen in _by_space(access, lanes, at):
        for thread in chosen:
            place = at[thread : thread + 1]
            region, inside = (block.shared, place) if space == "shared" else block.launch.memory.find(
                place.view(np.uint64), access.size, block.line
            )  # fmt: skip
            key, warp = _key(block, space, int(place[0])), int(block.warp_of[thread])
            block.clocks.load(warp, key, acquire=access.order in ("acquire", "acq_rel"))
            where = slice(int(inside[0]), int(inside[0]) + access.size)
            if not region.known[where].all():
                block.report.unwritten[region.name, block.line] += 1
            found[thread] = region.content[where]
            region.content[where] = function(found[thread], int(thread))
            block.clocks.store(warp, key, release=access.order in ("release", "acq_rel"))
    return found


def _by_space(access: Access, lanes: Lanes, at: Ints) -> list[tuple[str, Ints]]:
    """The threads of an access, by the memory that it is in; ``at`` becomes addresses there."""
    threads = lanes.threads
    if access.space != "generic":
        return [(access.space, threads)]
    shared = (at[threads] >= SHARED_WINDOW) & (at[threads] < SHARED_WINDOW << 1)
    at[threads[shared]] -= SHARED_WINDOW
    return [
        (name, chosen) for name, chosen in (("shared", threads[shared]), ("global", threads[~shared])) if chosen.size
    ]


def _key(block: Block, space: str, at: int) -> tuple[str, int]:
    return ("global" if space != "shared" else f"shared of {block.index}", at)


def _synchronise(block: Block, chosen: Ints, where: Ints, space: str, *, acquire: bool) -> None:
    for thread, place in zip(chosen, where, strict=True):
        block.clocks.load(int(block.warp_of[thread]), _key(block, space, int(place)), acquire=acquire)


def _check_alignment(where: Ints, size: int) -> None:
    if (where % size).any():
        raise Fault(f"an access of {size} bytes at an address that is no multiple of that")


def _check_shared(block: Block, where: Ints, size: int) -> None:
    if int(where.min()) < 0 or int(where.max()) + size > block.shared.content.size:
        reach = int(where.max()) + size
        raise Fault(f"shared memory has {block.shared.content.size} bytes, and an access ends at {reach}")


def _count_wavefronts(block: Block, threads: Ints, where: Ints, size: int) -> None:
    """A warp's access is done in groups of lanes that want 128 bytes; each takes as many wavefronts as the busiest of
    the 32 banks has words in it."""
    lanes = min(WARP, 128 // max(4, size))
    group = threads // lanes
    words = (where[:, None] + np.arange(0, max(4, size), 4)) >> 2
    count_words(block, np.repeat(group, words.shape[1]), words.ravel())


def count_words(block: Block, group: Ints, words: Ints) -> None:
    """Wavefronts of accesses to these words, each of a group of lanes."""
    pairs = np.unique(group * (1 << 32) + words)
    of, bank = pairs >> 32, pairs & 31
    ids, first = np.unique(of, return_inverse=True)
    meeting = np.bincount(first * 32 + bank, minlength=ids.size * 32).reshape(-1, 32)
    block.report.wavefronts[block.line] += int(meeting.max(1).sum())
    block.report.least_wavefronts[block.line] += int(np.ceil(meeting.sum(1) / 32).sum())


def copy_later(block: Block, lanes: Lanes, into: Ints, of: Ints, size: int, real: Ints) -> None:
    """``cp.async``: lands when its thread waits for its group. ``real`` bytes come from global memory, zeros follow."""
    into, of, real = into.copy(), of.copy(), real.copy()
    _check_alignment(into[lanes.mask], size)
    _check_alignment(of[lanes.mask], size)
    _check_shared(block, into[lanes.mask], size)
    line = block.line

    def land(mask: Array) -> None:
        threads = np.flatnonzero(mask)
        block.line = line
        values = np.zeros((threads.size, size), np.uint8)
        for count in np.unique(real[threads]):
            if count:
                those = real[threads] == count
                region, where = block.launch.memory.find(of[threads[those]].view(np.uint64), int(count), line)
                warps = block.warp_of[threads[those]]
                values[those, :count] = region.load(where, int(count), warps, block.clocks, block.report, line)
        _count_wavefronts(block, threads, into[threads], size)
        block.shared.store(into[threads], values, block.warp_of[threads], block.clocks, block.report, line)

    block.copies[-1].append((lanes.mask.copy(), land))


def commit(block: Block, lanes: Lanes) -> None:
    """Close the group of the copies so far. Threads that commit at different places have groups of their own."""
    block.copies.append([])


def wait_for_copies(block: Block, lanes: Lanes, pending: int) -> None:
    """Let all groups but the last ``pending`` closed ones land, for these threads."""
    line = block.line
    closed = block.copies[:-1]
    for group in closed[: max(0, len(closed) - pending)]:
        for i, (mask, land) in enumerate(group):
            now = mask & lanes.mask
            if now.any():
                land(now)
                group[i] = (mask & ~now, land)
    block.line = line


def as_bytes(bits: Array) -> Bytes:
    return np.ascontiguousarray(bits).view(np.uint8).reshape(len(bits), -1)


def elements(operand: Operand) -> tuple[Register | Number | None, ...]:
    """Of a vector, or the operand itself."""
    if isinstance(operand, Vector):
        return operand.elements
    if not isinstance(operand, (Register, Number)):
        raise Unknown(f"operand {operand}")
    return (operand,)


def from_bytes(content: Bytes, size: int) -> Array:
    return np.ascontiguousarray(content).view(UNSIGNED[size])[:, 0]
