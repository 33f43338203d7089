"""The kernel of all weight gradients, as source: each is one sum over all rows, added up in one order. Pure.

A program has a tile of one parameter, and walks over the rows; no two write to the same place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ...cell.stages import Bias, Block, Dense, Partition, Slice, Term
from .pack import choose
from .phases import Phase
from .plan import identifier, padded, pieces

NAME = "add_up_gradients"
STEP = 32  # rows at a time
HIGHEST = 32  # rows of a tile: from 64 on it would be products of warp groups, which no interpreter here knows


def phase(program: Partition, strides: Mapping[str, int], reached: Collection[str], widest: int) -> Phase:
    """Write all weight gradients.

    Args:
        strides: elements from row to row of each parameter.
        reached: the buffers that a gradient reaches; behind others it is zero.
        widest: columns of the widest tile.
    """
    lines = list(_programs(program, strides, reached, widest))
    targets = (*(s.target for s in _products(program)), *(target for target, _ in _biases(program)))
    named = sorted({f"b_{identifier(s.source.buffer)}" for s in _products(program)})
    named += sorted({_gradient(target) for target in targets if target.buffer in reached})
    arguments = (*(f"p_{identifier(p)}" for p in strides), *named, "count", "batch", "lengths")
    chosen = tuple(choose(0, [[line] for line in lines]))
    return Phase(NAME, arguments, chosen, str(len(lines)), {"PRECISION": "PRECISION"})


def programs(program: Partition, widest: int) -> int:
    """Count how many programs the kernel has."""
    return sum(1 for _ in _programs(program, None, (), widest))


def _products(program: Partition) -> Iterator[Dense]:
    return (s for s in program.stages if isinstance(s, Dense))


def _biases(program: Partition) -> Iterator[tuple[Slice, tuple[Term, ...]]]:
    for stage in program.stages:
        terms = stage.terms if isinstance(stage, Bias) else stage.bias if isinstance(stage, Dense) else None
        if terms:
            yield stage.target, terms  # type: ignore[union-attr]


def _gradient(part: Slice) -> str:
    return f"g_{identifier(part.buffer)}"


def _programs(
    program: Partition, strides: Mapping[str, int] | None, reached: Collection[str], widest: int
) -> Iterator[str]:
    """Write the line of every program."""
    widths = {b.name: b.width for b in program.buffers}

    def gradient(part: Slice, at: int) -> str:
        there = _gradient(part) if part.buffer in reached else None
        return f"{there}, {part.start + at}, {widths[part.buffer]}"

    for stage in _products(program):
        source = stage.source
        for block, (row, rows), (column, columns) in _blocks(stage, widest):
            place = f"{block.row + row}, {rows}, {padded(rows)}, {block.column + column}, {columns}, {padded(columns)}"
            stride = 0 if strides is None else strides[block.parameter]
            value = f"b_{identifier(source.buffer)}, {source.start + column}, {widths[source.buffer]}"
            given = f"p_{identifier(block.parameter)}, {place}, {stride}, {gradient(stage.target, block.at + row)}"
            yield f"on.weight_gradient({given}, {value}, count, batch, lengths, {STEP}, PRECISION)"
    for target, terms in _biases(program):
        for t in terms:
            for row, rows in _pieces(t.rows, widest):
                place = f"p_{identifier(t.parameter)}, {t.row + row}, {rows}, {padded(rows)}"
                yield f"on.bias_gradient({place}, {gradient(target, t.at + row)}, count, batch, lengths, {STEP})"


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
