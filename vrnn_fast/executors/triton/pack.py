"""The kernel that lays out the weights of others, and the batch in the order of its lengths, as source. Pure.

Each program writes the weights of one tile's columns and their bias, as plan.py says where: without gaps in the order
in which they are read, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...cell.stages import Term
from .phases import TURNS, Phase
from .plan import Matrix, Plan, Tile, argument
from .writer import indent

NAME = "pack_weights"
SEQUENCES = 64  # that a program finds the places of


def phase(plans: Sequence[Plan], strides: Mapping[str, int]) -> Phase:
    """Write the weights of all ``plans``, begin the numbers that the programs of the next launch draw, and let further
    programs order the batch by its ``lengths``.

    ``strides`` are the elements from row to row of each parameter.
    """
    arguments = ("workspace", TURNS, *map(argument, parameters(plans)), "lengths", "order", "batch")
    of_weights = list(_programs(plans, strides))
    ordered = f"on.by_length(program - {len(of_weights)}, lengths, order, batch, {SEQUENCES}, PARTICLES)"
    lines = ["if program == 0:", f"    on.begin_turns({TURNS})", f"if program < {len(of_weights)}:"]
    lines += [*indent(1, choose(0, of_weights)), "elif lengths is not None:", f"    {ordered}"]
    constants = {"PRECISION": "PRECISION", "PARTICLES": "PARTICLES"}
    return Phase(NAME, arguments, tuple(lines), str(len(of_weights)), constants)


def parameters(plans: Sequence[Plan]) -> list[str]:
    """List the parameters that it reads, in the order of its arguments."""
    found = {b.parameter for plan in plans for m in plan.matrices for b in m.stage.blocks}
    return sorted(found | {t.parameter for plan in plans for m in plan.matrices for t in _bias_of(plan, m) or ()})


def programs(plans: Sequence[Plan]) -> int:
    """Count how many programs the kernel has."""
    return sum(len(matrix.targets) for plan in plans for matrix in plan.matrices)


def _bias_of(plan: Plan, matrix: Matrix) -> tuple[Term, ...] | None:
    return None if plan.reverse else matrix.stage.bias


def choose(first: int, of: Sequence[Sequence[str]]) -> list[str]:
    """Write the lines of so many programs from ``first`` on, found by halving."""
    if len(of) == 1:
        return list(of[0])
    half = len(of) // 2
    below, above = choose(first, of[:half]), choose(first + half, of[half:])
    return [f"if program < {first + half}:", *indent(1, below), "else:", *indent(1, above)]


def _programs(plans: Sequence[Plan], strides: Mapping[str, int]) -> Iterator[list[str]]:
    """Write the lines of every program: all that makes one tile."""
    for plan, matrix in ((of, matrix) for of in plans for matrix in of.matrices):
        terms = _bias_of(plan, matrix)
        for target in matrix.targets:
            lines = [_weights(plan, matrix, target, source, strides) for source in matrix.sources]
            yield [*lines, *([] if terms is None else [_bias(matrix, target, terms)])] or ["pass"]


def _weights(plan: Plan, matrix: Matrix, target: Tile, source: Tile, strides: Mapping[str, int]) -> str:
    stage, into = matrix.stage, f"workspace + {matrix.weights(target, source)}"
    at = target.start - stage.target.start
    block = next(b for b in stage.blocks if b.at <= at < b.at + b.rows)
    rows = f"{block.row + at - block.at}, {target.width}, {target.padded}"
    columns = f"{block.column + source.start - stage.source.start}, {source.width}, {source.padded}"
    options = f"{strides[block.parameter]}, {not plan.reverse}, PRECISION"
    return f"on.pack({into}, {argument(block.parameter)}, {rows}, {columns}, {options})"


def _bias(matrix: Matrix, target: Tile, terms: tuple[Term, ...]) -> str:
    """Write the sum of all terms that reach a tile."""
    begin, total = target.start - matrix.stage.target.start, f"tl.zeros(({target.padded},), tl.float32)"
    for t in terms:
        first, end = max(t.at, begin), min(t.at + t.rows, begin + target.width)
        if first < end:
            place = f"{t.row + first - t.at}, {end - first}, {first - begin}, {target.padded}"
            total = f"on.term({total}, {argument(t.parameter)}, {place})"
    return f"on.pack_bias(workspace + {matrix.bias(target)}, {total}, {target.padded})"
