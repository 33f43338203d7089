"""What the lanes of a warp do together: shuffles, votes, matrices of 8 x 8, products on the tensor cores.

Where an element of a fragment lies is written as the manual's tables say it, by lane and register.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .machine import WARP, Block, Lanes
from .moves import _check_alignment, _check_shared, count_words
from .report import Fault
from .values import Array, typed

_LANE = np.arange(WARP)
_GROUP, _IN_GROUP = _LANE >> 2, _LANE & 3


def members(block: Block, lanes: Lanes, mask: Array) -> None:
    """Of a ``.sync`` instruction with this mask of lanes.

    Raises:
        Fault: a lane that the mask names is not here, or one is here that it does not name.
    """
    here = lanes.mask.reshape(-1, WARP)
    of = here.any(1)
    wanted = np.where(here, mask.reshape(-1, WARP), 0).max(1).astype(np.uint32)
    named = (wanted[:, None] >> _LANE.astype(np.uint32) & np.uint32(1)).astype(bool)
    if (named[of] != here[of]).any():
        raise Fault("lanes of a warp are missing from an instruction that their mask names")


def shuffle(mode: str, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """``shfl.sync``: the values, and whether each lane's source was in its segment; the manual's pseudo-code."""
    lane = np.tile(_LANE, a.size // WARP)
    by = (b & np.uint32(31)).astype(np.int64)
    clamp, segment = (c & np.uint32(31)).astype(np.int64), ((c >> np.uint32(8)) & np.uint32(31)).astype(np.int64)
    highest = (lane & segment) | (clamp & ~segment)
    lowest = lane & segment
    if mode == "up":
        source, inside = lane - by, lane - by >= highest
    elif mode == "down":
        source, inside = lane + by, lane + by <= highest
    elif mode == "bfly":
        source, inside = lane ^ by, (lane ^ by) <= highest
    else:
        source = lowest | (by & ~segment)
        inside = source <= highest
    source = np.where(inside, source, lane)
    return a.reshape(-1, WARP)[np.arange(a.size) // WARP, source], inside


def reduce_lanes(function: np.ufunc, a: Array, lanes: Lanes) -> Array:
    """``redux.sync``: every lane's, for all lanes that are here."""
    result = np.zeros_like(a)
    for warp in np.unique(lanes.threads // WARP):
        threads = lanes.threads[lanes.threads // WARP == warp]
        result[threads] = function.reduce(a[threads])
    return result


def ballot(value: Array, lanes: Lanes) -> Array:
    """(threads,) for each lane the bits of its warp's lanes that are here and true."""
    true = (value & lanes.mask).reshape(-1, WARP)
    word = (true.astype(np.uint32) << _LANE.astype(np.uint32)).sum(1, dtype=np.uint32)
    return np.repeat(word, WARP)


# ---- 8 x 8 matrices of 16 bits: row i from the address of lane 8 q + i, for matrix q of the instruction


def load_matrices(block: Block, lanes: Lanes, at: Array, count: int, transposed: bool) -> list[Array]:
    """``ldmatrix``: a register for each matrix; lane l holds row l / 4, columns 2 (l % 4) and the next."""
    warps = lanes.warps
    rows = at.reshape(-1, WARP)[warps, : 8 * count].reshape(-1, count, 8)
    _touch(block, rows, warps)
    party = np.repeat(block.warp_of.reshape(-1, WARP)[warps, 0], count * 8)
    content = block.shared.load(rows.ravel(), 16, party, block.clocks, block.report, block.line)
    matrices = np.ascontiguousarray(content).view(np.uint16).reshape(-1, count, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, WARP)
    found = np.zeros((count, block.threads // WARP, WARP), np.uint32)
    found[:, warps] = words.swapaxes(0, 1)
    return [f.ravel() for f in found]


def store_matrices(block: Block, lanes: Lanes, at: Array, values: Sequence[Array], transposed: bool) -> None:
    """``stmatrix``: the other way round."""
    warps, count = lanes.warps, len(values)
    rows = at.reshape(-1, WARP)[warps, : 8 * count].reshape(-1, count, 8)
    _touch(block, rows, warps)
    words = np.stack([v.reshape(-1, WARP)[warps] for v in values], 1).reshape(-1, count, 8, 4)
    matrices = np.ascontiguousarray(words).view(np.uint16)
    if transposed:
        matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
    party = np.repeat(block.warp_of.reshape(-1, WARP)[warps, 0], count * 8)
    block.shared.store(
        rows.ravel(), matrices.view(np.uint8).reshape(-1, 16), party, block.clocks, block.report, block.line
    )


def _touch(block: Block, rows: Array, warps: Array) -> None:
    _check_alignment(rows, 16)
    _check_shared(block, rows.ravel(), 16)
    words = (rows[..., None] + np.arange(0, 16, 4)) >> 2  # (warps, matrices, rows, words): a matrix is 128 bytes
    group = np.arange(rows.shape[0] * rows.shape[1]).repeat(32)
    count_words(block, group, words.reshape(-1))


# ---- products: D (16, 8) = A (16, k) B (k, 8) + C


def accumulator() -> list[tuple[Array, Array]]:
    """Row and column of each register of C and D, by lane: m16n8, float32."""
    return [(_GROUP + 8 * (i >> 1), 2 * _IN_GROUP + (i & 1)) for i in range(4)]


def fragments(k: int, kind: str) -> tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]:
    """(row, k) of each element of A, and (k, column) of B, by lane: registers in order, low half first.

    Raises:
        KeyError: the manual has no such shape, or it is not known here.
    """
    if kind == "tf32":
        halves_a, halves_b = {4: (2, 1), 8: (4, 2)}[k]
        a = [(_GROUP + 8 * (i & 1), _IN_GROUP + 4 * (i >> 1)) for i in range(halves_a)]
        return a, [(_IN_GROUP + 4 * i, _GROUP) for i in range(halves_b)]
    registers = {8: (2, 1), 16: (4, 2)}[k]
    a = [(_GROUP + 8 * (i & 1), 2 * _IN_GROUP + j + 8 * (i >> 1)) for i in range(registers[0]) for j in (0, 1)]
    return a, [(2 * _IN_GROUP + j + 8 * i, _GROUP) for i in range(registers[1]) for j in (0, 1)]


def multiply(k: int, kind: str, a: Sequence[Array], b: Sequence[Array], c: Sequence[Array]) -> list[Array]:
    """``mma.sync.m16n8`` with sums in float64, rounded to float32 once. TF32 operands lose their last 13 bits."""
    places_a, places_b = fragments(k, kind)
    warps = a[0].size // WARP
    left, right = np.zeros((warps, 16, k)), np.zeros((warps, k, 8))
    for matrix, places, registers in ((left, places_a, a), (right, places_b, b)):
        for (row, column), element in zip(places, _elements(kind, registers), strict=True):
            matrix[:, row, column] = element.reshape(-1, WARP)
    total = np.zeros((warps, 16, 8))
    for (row, column), register in zip(accumulator(), c, strict=True):
        total[:, row, column] = register.reshape(-1, WARP)
    total = (total + left @ right).astype(np.float32)
    return [np.ascontiguousarray(total[:, row, column]).ravel() for row, column in accumulator()]


def _elements(kind: str, registers: Sequence[Array]) -> list[Array]:
    if kind == "tf32":
        return [typed(r, "tf32") for r in registers]
    return [typed(r, f"{kind}x2")[:, j] for r in registers for j in (0, 1)]
