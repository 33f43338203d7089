"""The gradients of all parameters as tables, for csrc/cuda/rows/weights.h (products) and sums.h. Pure.

Every element of a parameter is in exactly one block or term of a stage, whose gradient is one product over all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cell.reach import reached
from ...cell.spec import CellSpec
from ...cell.stages import Begin, Bias, Dense, Normalize, Slice, Stage, Term
from ..cut import initial, learned
from .forward import with_room
from .memory import Operand, operand_bytes
from .plan import scaled

SIDES = 64, 128  # of a block's share of a product
DEPTH, GROUPS = 32, 3  # rows of the batch that are multiplied at a time, and such groups on the chip
THREADS = 256  # elements of a gradient that a block of sums.h adds up
ROWS_OF_A_SHARE = 512  # of the batch, at least: fewer rows are not worth a share of their own
MOST_SHARES = 32


@dataclass(frozen=True, eq=False)
class Jobs:
    """The tables of a cell's weight gradients.

    Attributes:
        buffers: the values and, with ``d`` before it, the gradients that products read.
        jobs, tiles: structs Job and Square of weights.h, as rows of integers.
        blocks, places: struct Block of sums.h, and which 256 elements of which block each block of threads has.
        elements: floats of one share.
        side: rows and columns of a product that a block has.
    """

    buffers: tuple[str, ...]
    jobs: NDArray[np.int32]
    tiles: NDArray[np.int32]
    blocks: NDArray[np.int32]
    places: NDArray[np.int32]
    elements: int
    side: int


def shared_bytes(kind: Operand, side: int) -> int:
    """Count the bytes of struct Shared of weights.h: groups of rows of two operands, so many columns and padding."""
    return GROUPS * 2 * DEPTH * (side + 8) * operand_bytes(kind)


def _squares(jobs: Iterable[tuple[int, ...]], side: int) -> list[tuple[int, int, int]]:
    """Cut the products of jobs into squares."""
    return [
        (j, row, column)
        for j, job in enumerate(jobs)
        for row, column in product(range(0, job[6], side), range(0, max(1, job[7]), side))
    ]


def _side(jobs: list[tuple[int, ...]], kind: Operand) -> int:
    """Choose the side of squares: large ones are multiplied in half the time, by the clock on paper, but not where a
    quarter of them is padding, and there is room for operands of 16 bits alone."""
    small, large = SIDES
    if operand_bytes(kind) != 2 or 4 * len(_squares(jobs, large)) > 1.25 * len(_squares(jobs, small)):
        return small
    return large


def shares(rows: int) -> int:
    """Tell in how many shares the rows are added up: of their number alone, so that repeats are equal everywhere."""
    return max(1, min(MOST_SHARES, -(-rows // ROWS_OF_A_SHARE)))


def _added(stages: Iterable[Stage]) -> Iterator[tuple[Dense | Bias | Begin | Normalize, Slice, tuple[Term, ...]]]:
    """Yield what has parameters: a stage, whose gradient its terms are the sums of, and these."""
    for stage in stages:
        match stage:
            case Bias():
                yield stage, stage.target, stage.terms
            case Begin():
                yield stage, initial(stage.target), stage.terms
            case Dense():
                yield stage, stage.target, stage.bias or ()
            case Normalize():
                gain, shift = (replace(term, at=0) for term in stage.terms)
                yield stage, scaled(stage.target), (gain,)
                yield stage, stage.target, (shift,)


@lru_cache(maxsize=256)
def jobs(spec: CellSpec, upstream: frozenset[str], kind: Operand) -> Jobs:
    """Find what gives the gradients of a cell's parameters, where results of these names have one."""
    program = with_room(learned(spec))
    reach, widths = reached(program, set(upstream)), {b.name: b.width for b in program.buffers}
    names = {p.name: (i, p.shape) for i, p in enumerate(spec.parameters())}
    buffers: dict[str, int] = {}
    found, blocks = list[tuple[int, ...]](), list[tuple[int, ...]]()
    elements = 0

    def place(name: str) -> int:
        return buffers.setdefault(name, len(buffers))

    for stage, target, terms in _added(program.stages):
        rows, source = target.width, stage.source if isinstance(stage, Dense) else None
        columns = 0 if source is None else source.width
        there = stage.target.buffer in reach and bool(columns or terms)
        to, bias = elements, elements + rows * columns
        if there:
            read = (-1, 0, 0) if source is None else (place(source.buffer), source.start, widths[source.buffer])
            of = place(f"d {target.buffer}"), target.start, widths[target.buffer]
            found.append((*of, *read, rows, columns, to, bias if terms else -1))
            elements = bias + (rows if terms else 0)
        for b in stage.blocks if isinstance(stage, Dense) else ():
            number, shape = names[b.parameter]
            at = b.row * shape[1] + b.column
            blocks.append((number, at, shape[1], b.rows, columns, to + b.at * columns if there else -1))
        for t in terms:
            blocks.append((names[t.parameter][0], t.row, 1, t.rows, 1, bias + t.at if there else -1))
    side = _side(found, kind)
    tiles = _squares(found, side)
    places = [(i, part) for i, b in enumerate(blocks) for part in range(-(-b[3] * b[4] // THREADS))]

    def table(rows: list[Any], width: int) -> NDArray[np.int32]:
        return np.array(rows, np.int32).reshape(-1, width)

    tables = table(found, 10), table(tiles, 3), table(blocks, 6), table(places, 2)
    return Jobs(tuple(buffers), *tables, max(1, elements), side)
