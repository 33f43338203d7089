"""The kernel of all weight gradients, as source: each is one sum over all rows, added up in one order. Pure.

A program has a tile of one parameter, and walks over the rows; no two write to the same place. All tiles of a shape
are the same lines, for which each program finds its own pointers and numbers: a loop for every program would take
minutes to compile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import gcd
from typing import NamedTuple

from ...cell.stages import Begin, Bias, Block, Dense, Normalize, Partition, Slice, Term
from ..cut import initial
from .pack import choose
from .phases import Phase
from .plan import argument, identifier, padded, pieces
from .writer import indent

NAME = "add_up_gradients"
STEP = 32  # rows at a time
HIGHEST = 32  # rows of a tile: from 64 on it would be products of warp groups, which no interpreter here knows
EVEN = 8  # elements that one instruction reads, where all places are multiples of it


class _Sum(NamedTuple):
    """What one program adds up: the lines in which it finds its pointers and numbers, and the call that is the same for
    all of a shape."""

    call: str
    own: tuple[str, ...]


def phase(program: Partition, strides: Mapping[str, int], reached: Collection[str], widest: int) -> Phase:
    """Write all weight gradients.

    Args:
        strides: elements from row to row of each parameter.
        reached: the buffers that a gradient reaches; behind others it is zero.
        widest: columns of the widest tile.
    """
    sums = list(_sums(program, strides, reached, widest))
    shapes = {each.call: [other.own for other in sums if other.call == each.call] for each in sums}
    lines: list[str] = []
    end = 0
    for number, (call, owners) in enumerate(shapes.items()):
        first, end = end, end + len(owners)
        last = number == len(shapes) - 1
        lines.append("else:" if last and number else f"{'elif' if number else 'if'} program < {end}:")
        lines += indent(1, choose(first, owners), [call])
    of_values: list[Dense | Normalize] = [*_products(program), *_normalizations(program)]
    targets = (*(s.target for s in of_values), *(target for target, _ in _biases(program)))
    named = sorted({f"b_{identifier(s.source.buffer)}" for s in of_values})
    named += sorted({_gradient(target) for target in targets if target.buffer in reached})
    arguments = (*map(argument, strides), *named, "count", "batch", "lengths")
    return Phase(NAME, arguments, tuple(lines), str(end), {"PRECISION": "PRECISION"})


def programs(program: Partition, widest: int) -> int:
    """Count how many programs the kernel has."""
    return sum(1 for _ in _sums(program, None, (), widest))


def _products(program: Partition) -> Iterator[Dense]:
    return (s for s in program.stages if isinstance(s, Dense))


def _normalizations(program: Partition) -> Iterator[Normalize]:
    return (s for s in program.stages if isinstance(s, Normalize))


def _biases(program: Partition) -> Iterator[tuple[Slice, tuple[Term, ...]]]:
    """Yield what is added to every row of a target, a normalisation's shift and an initial state included."""
    for stage in program.stages:
        match stage:
            case Bias(target=target, terms=terms) if terms:
                yield target, terms
            case Dense(target=target, bias=terms) if terms:
                yield target, terms
            case Normalize(target=target, terms=(_, shift)):
                yield target, (replace(shift, at=0),)
            case Begin(target=target, terms=terms):
                yield initial(target), terms


def _gradient(part: Slice) -> str:
    return f"g_{identifier(part.buffer)}"


def _sums(
    program: Partition, strides: Mapping[str, int] | None, reached: Collection[str], widest: int
) -> Iterator[_Sum]:
    """Write what every program adds up."""
    widths = {b.name: b.width for b in program.buffers}

    def gradient(part: Slice, at: int) -> tuple[list[str], str, list[int]]:
        """Return lines, the argument, and the numbers that say how much an instruction may read at a time."""
        if part.buffer not in reached:
            return [], "None", []
        start, stride = part.start + at, widths[part.buffer]
        return [f"d = {_gradient(part)} + {start}", f"d_stride = {stride}"], "d", [start, stride]

    for stage in _products(program):
        source = stage.source
        for block, (row, rows), (column, columns) in _blocks(stage, widest):
            stride = 0 if strides is None else strides[block.parameter]
            place = (block.row + row) * stride + block.column + column
            start, value_stride = source.start + column, widths[source.buffer]
            found, d, numbers = gradient(stage.target, block.at + row)
            own = [f"into = {argument(block.parameter)} + {place}", f"stride = {stride}", *found]
            own += [f"rows = {rows}", f"columns = {columns}", f"value = b_{identifier(source.buffer)} + {start}"]
            own += [f"value_stride = {value_stride}"]
            given = f"into, stride, rows, columns, {d}, {'d_stride' if found else 0}, value, value_stride"
            shape = f"{padded(rows)}, {padded(columns)}, {_even(rows, *numbers)}, {_even(columns, start, value_stride)}"
            yield _Sum(f"on.weight_gradient({given}, count, batch, lengths, {shape}, {STEP}, PRECISION)", tuple(own))
    for target, terms in _biases(program):
        for t in terms:
            for row, rows in _pieces(t.rows, widest):
                found, d, numbers = gradient(target, t.at + row)
                own = [f"into = {argument(t.parameter)} + {t.row + row}", f"rows = {rows}", *found]
                given = f"into, rows, {d}, {'d_stride' if found else 0}, count, batch, lengths"
                shape = f"{padded(rows)}, {_even(rows, *numbers)}"
                yield _Sum(f"on.bias_gradient({given}, {shape}, {STEP})", tuple(own))
    for normalization in _normalizations(program):
        scale, source = normalization.terms[0], normalization.source
        for row, rows in _pieces(source.width, widest):
            found, d, numbers = gradient(normalization.target, row)
            own = [f"into = {argument(scale.parameter)} + {scale.row + row}", f"rows = {rows}", *found]
            own += [f"value = b_{identifier(source.buffer)} + {source.start}", f"first = {row}"]
            own += [f"value_stride = {widths[source.buffer]}"]
            given = f"into, rows, {d}, {'d_stride' if found else 0}, value, value_stride, first, count, batch, lengths"
            shape = f"{padded(rows)}, {_even(rows, *numbers)}, {source.width}, {min(widest, padded(source.width))}"
            yield _Sum(f"on.scale_gradient({given}, {shape}, {normalization.eps!r}, {STEP})", tuple(own))


def _even(*numbers: int) -> int:
    """Return how many elements lie together in all places that are these numbers of elements apart."""
    return gcd(EVEN, *numbers)


def _blocks(stage: Dense, widest: int) -> Iterator[tuple[Block, tuple[int, int], tuple[int, int]]]:
    """Cut the tiles of a stage's weights: the block, and where its rows and columns begin, and how many there are."""
    for block in stage.blocks:
        for row in _pieces(block.rows, HIGHEST):
            for column in _pieces(stage.source.width, widest):
                yield block, row, column


def _pieces(width: int, widest: int) -> Iterator[tuple[int, int]]:
    """Tell where the tiles of a width begin, and how wide they are."""
    start = 0
    for piece in pieces(width, widest):
        yield start, piece
        start += piece
