"""Bytes of a launch, and who touched them: guard bands around tensors, reads of nothing, races.

A warp is one party. Each has a vector clock (Fidge and Mattern); a barrier joins those of the warps that meet, a
release and an acquire of one address those of two. An access that no clock orders after another of the same byte by
another warp, one of them a store, is a race, in whatever order this run happened to take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .report import Fault, Report

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

GUARD = 4096
POISON = 0xFF  # NaN in every type
SHARED_WINDOW = 1 << 44  # where shared memory lies among generic addresses


class Clocks:
    """What each warp of the grid knows of the others."""

    def __init__(self, warps: int) -> None:
        self.of = np.eye(warps, dtype=np.int32)
        self._released: dict[tuple[str, int], NDArray[np.int32]] = {}
        self._fenced = np.zeros((warps, warps), np.int32)
        self._seen = np.zeros((warps, warps), np.int32)

    def meet(self, warps: Ints) -> None:
        """A barrier of these warps."""
        self.of[warps] = self.of[warps].max(0)
        self.of[warps, warps] += 1

    def store(self, warp: int, at: tuple[str, int], *, release: bool) -> None:
        """A synchronising store: what came before it, or before the warp's last fence, goes with it."""
        carried = self.of[warp] if release else self._fenced[warp]
        known = self._released.get(at)
        self._released[at] = carried.copy() if known is None else np.maximum(known, carried)
        if release:
            self.of[warp, warp] += 1

    def load(self, warp: int, at: tuple[str, int], *, acquire: bool) -> None:
        if (known := self._released.get(at)) is not None:
            self._seen[warp] = np.maximum(self._seen[warp], known)
            if acquire:
                self.of[warp] = np.maximum(self.of[warp], known)

    def fence(self, warps: Ints) -> None:
        self.of[warps] = np.maximum(self.of[warps], self._seen[warps])
        self._fenced[warps] = self.of[warps]
        self.of[warps, warps] += 1


@dataclass
class Region:
    """Neighbouring bytes of one name."""

    name: str
    content: Bytes
    warps: int
    initialised: bool
    base: int = 0
    writer: NDArray[np.int32] = field(init=False)  # the warp that stored a byte last, -1 for none
    written: NDArray[np.int32] = field(init=False)  # that warp's clock then
    read: NDArray[np.int32] = field(init=False)  # each warp's clock when it last read a byte
    known: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        size = self.content.size
        self.writer = np.full(size, -1, np.int32)
        self.written = np.zeros(size, np.int32)
        self.read = np.zeros((size, self.warps), np.int32)
        self.known = np.full(size, self.initialised)

    def load(self, at: Ints, size: int, warps: Ints, clocks: Clocks, report: Report, line: str) -> Bytes:
        """(lanes, size) bytes from these offsets."""
        where = at[:, None] + np.arange(size)
        self._check_stores(where, warps, clocks, report, line, "read after a store")
        self.read[where, warps[:, None]] = clocks.of[warps, warps][:, None]
        if not self.known[where].all():
            report.unwritten[self.name, line] += 1
        return self.content[where]

    def store(self, at: Ints, values: Bytes, warps: Ints, clocks: Clocks, report: Report, line: str) -> None:
        """(lanes, size) bytes to these offsets."""
        where = at[:, None] + np.arange(values.shape[1])
        changed = self.content[where] != values
        self._check_stores(where, warps, clocks, report, line, "store after a store", changed)
        behind = self.read[where] > clocks.of[warps][:, None, :]
        behind[np.arange(len(warps)), :, warps] = False
        if behind.any():
            report.races[self.name, "store after a read", line] += 1
        flat, party, value = where.ravel(), np.repeat(warps, values.shape[1]), values.ravel()
        order = np.argsort(flat, kind="stable")
        same = (flat[order][1:] == flat[order][:-1]) & (party[order][1:] != party[order][:-1])
        if same.any():
            unequal = same & (value[order][1:] != value[order][:-1])
            (report.races if unequal.any() else report.overlaps)[self.name, "two stores at once", line] += 1
        self.content[where] = values
        self.writer[where], self.written[where] = warps[:, None], clocks.of[warps, warps][:, None]
        self.known[where] = True

    def _check_stores(
        self,
        where: Ints,
        warps: Ints,
        clocks: Clocks,
        report: Report,
        line: str,
        kind: str,
        changed: NDArray[np.bool_] | None = None,
    ) -> None:
        writer = self.writer[where]
        loose = (writer >= 0) & (writer != warps[:, None]) & (self.written[where] > clocks.of[warps[:, None], writer])
        if loose.any():
            equal = changed is not None and not (loose & changed).any()
            (report.overlaps if equal else report.races)[self.name, kind, line] += 1


class Memory:
    """Global memory: the tensors of a launch, far from each other."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._next = 0x7000_0000_0000 >> 8

    def add(self, name: str, array: NDArray[np.generic], *, initialised: bool = True) -> int:
        """The address of a contiguous array from now on, whose bytes stay where they are."""
        content = array.reshape(-1).view(np.uint8)
        assert np.shares_memory(content, array) or not content.size, f"{name} is not contiguous"
        self.regions.append(Region(name, content, 0, initialised, self._next))
        self._next += -(-content.size // 256) * 256 + GUARD
        return self.regions[-1].base

    def prepare(self, warps: int) -> None:
        """Before a launch: nobody has touched anything."""
        for region in self.regions:
            region.warps = warps
            region.__post_init__()

    def find(self, addresses: NDArray[np.uint64], size: int, line: str) -> tuple[Region, Ints]:
        """The tensor that all of these accesses lie in, and where.

        Raises:
            Fault: an access is outside of every tensor, or they are in several.
        """
        at = addresses.astype(np.int64)
        low, high = int(at.min()), int(at.max()) + size
        for region in self.regions:
            if region.base <= low and high <= region.base + region.content.size:
                return region, at - region.base
        near = min(self.regions, key=lambda r: max(r.base - low, high - r.base - r.content.size), default=None)
        if near is None:
            raise Fault(f"access of global memory at {line}, and there is no tensor")
        touched = f"touched from {low - near.base} to {high - near.base}"
        raise Fault(
            f"access outside of every tensor at {line}: the next is {near.name}, {near.content.size} bytes, {touched}"
        )


def variables(layout: Mapping[str, tuple[int, bytes]], size: int, warps: int) -> Region:
    """Shared memory of a block, poisoned but for what variables begin with."""
    region = Region("shared memory", np.full(size, POISON, np.uint8), warps, False)
    for start, content in layout.values():
        region.content[start : start + len(content)] = np.frombuffer(content, np.uint8)
    return region
