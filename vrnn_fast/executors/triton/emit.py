"""Lowers stages to operations on tiles, each stage's forward beside its backward; STAGES lists them. Pure.

What is read from memory and written to it, and in which order sums are added up, is not said here: order.py sees to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import reduce
from operator import add as plus
from typing import Any, NamedTuple, TypeAlias

from ...cell.spec import Std
from ...cell.stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Dense,
    Divergence,
    Draw,
    Likelihood,
    Normalize,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
)
from ..cut import halves, observed
from .operations import (
    Back,
    Compute,
    Expression,
    Leave,
    Operation,
    RowNumber,
    Spread,
    TileOperand,
    Whole,
    access,
    add,
    bias_of,
    call,
    compute,
    forth,
    gradient,
    operand_of,
    scaling_of,
    value,
    variable,
    weights_of,
    zeros,
)
from .plan import Plan, Tile, identifier

Lower: TypeAlias = Callable[[Plan, Any], Iterator[Operation]]


class Emitter(NamedTuple):
    """How a stage is lowered in the two kernels; of a gradient that is not in the scan, why."""

    forward: Lower
    backward: Lower | str


def forward(plan: Plan, stage: Stage) -> Iterator[Operation]:
    """Write a stage of the scan as operations.

    Raises:
        TypeError: the stage has no place there.
    """
    return _emitter(stage).forward(plan, stage)


def backward(plan: Plan, stage: Stage) -> Iterator[Operation]:
    """Write as operations the gradient of a stage of the scan.

    Raises:
        TypeError: the stage has no gradient there.
    """
    lower = _emitter(stage).backward
    if isinstance(lower, str):
        raise TypeError(f"{type(stage).__name__} has no gradient in the scan: {lower}")
    return lower(plan, stage)


def _emitter(stage: Stage) -> Emitter:
    if type(stage) not in STAGES:
        raise TypeError(f"{type(stage).__name__} is not among the stages that emit.py can write")
    return STAGES[type(stage)]


# ---- sums


def _zeros_forward(plan: Plan, stage: Bias) -> Iterator[Operation]:
    if stage.terms:
        raise TypeError("a bias of parameters belongs before the scan")
    tiles = plan.tiles_of(stage.target)
    yield from (compute(tile.name, zeros(tile)) for tile in tiles)
    yield Whole(tiles=tiles)


def _dense_forward(plan: Plan, stage: Dense) -> Iterator[Operation]:
    matrix, targets = plan.matrix(stage), plan.tiles_of(stage.target)
    if stage.bias is not None:
        yield from (Spread(makes=(tile.name,), reads=(bias_of(matrix, tile),)) for tile in targets)
    for source in plan.tiles_of(stage.source):
        own = operand_of(matrix, source)
        yield TileOperand(makes=(own,), reads=(source.name,))
        for target in targets:
            yield forth(target.name, weights_of(matrix, target, source), own)
    yield Whole(tiles=targets)


def _dense_backward(plan: Plan, stage: Dense) -> Iterator[Operation]:
    for target in plan.tiles_of(stage.target):
        yield Back(matrix=plan.matrix(stage), target=target)


def _add_forward(plan: Plan, stage: Add) -> Iterator[Operation]:
    for target, source in pairs(plan, stage.target, stage.source):
        yield compute(target.name, value(target) + value(source))
    yield Whole(tiles=plan.tiles_of(stage.target))


def _add_backward(plan: Plan, stage: Add) -> Iterator[Operation]:
    for target, source in pairs(plan, stage.target, stage.source):
        yield add(source.gradient, gradient(target))


# ---- activations


def _activate_forward(plan: Plan, stage: Activate) -> Iterator[Operation]:
    for source, target in pairs(plan, stage.source, stage.target):
        yield compute(target.name, call("activate", value(source), constants=f'"{stage.activation}"'))
    yield Whole(tiles=plan.tiles_of(stage.target))


def _activate_backward(plan: Plan, stage: Activate) -> Iterator[Operation]:
    for source, target in pairs(plan, stage.source, stage.target):
        d = call("activate_backward", value(source), gradient(target), constants=f'"{stage.activation}"')
        yield compute(source.gradient, d)
        yield Whole(tiles=(source,))


# ---- layer normalisation


def _normalize_forward(plan: Plan, stage: Normalize) -> Iterator[Operation]:
    mean, inverse = yield from _moments(plan, stage)
    for source, target in pairs(plan, stage.source, stage.target):
        scale, shift = (variable(scaling_of(target, leaf)) for leaf in ("weight", "bias"))
        yield compute(target.name, call("normalize", value(source), mean, inverse, scale, shift))
    yield Whole(tiles=plan.tiles_of(stage.target))


def _normalize_backward(plan: Plan, stage: Normalize) -> Iterator[Operation]:
    mean, inverse = yield from _moments(plan, stage)
    tiles = plan.tiles_of(stage.source)
    for source, target in pairs(plan, stage.source, stage.target):
        yield Leave(tile=target)
        yield compute(source.gradient, call("scaled", gradient(target), variable(scaling_of(target, "weight"))))
    along = (gradient(tile) * call("normal", value(tile), mean, inverse) for tile in tiles)
    level = yield from _mean(stage, "level", map(gradient, tiles), tiles)
    slope = yield from _mean(stage, "slope", along, tiles)
    for tile in tiles:
        given = value(tile), mean, inverse, gradient(tile), level, slope
        yield compute(tile.gradient, call("normalize_backward", *given))
    yield Whole(tiles=tiles)


def _moments(plan: Plan, stage: Normalize) -> Generator[Operation, None, tuple[Expression, Expression]]:
    """Compute and return of each row, over all its tiles, the mean and 1 / sqrt(variance + eps)."""
    tiles = plan.tiles_of(stage.source)
    mean = yield from _mean(stage, "mean", map(value, tiles), tiles)
    variance = yield from _mean(stage, "variance", (call("squared", value(tile), mean) for tile in tiles), tiles)
    inverse = _of_rows(stage, "inverse")
    yield compute(inverse.text, call("inverse", variance, constants=repr(stage.eps)))
    return mean, inverse


def _mean(
    stage: Normalize, name: str, terms: Iterable[Expression], tiles: Iterable[Tile]
) -> Generator[Operation, None, Expression]:
    """Compute and return the mean of the terms in the tiles of each row."""
    mean, sums = _of_rows(stage, name), reduce(plus, map(total, terms, tiles))
    yield compute(mean.text, Expression(f"({sums.text}) / {stage.source.width}", sums.reads))
    return mean


def _of_rows(stage: Normalize, name: str) -> Expression:
    return variable(f"{name}_of_{identifier(stage.target.buffer)}_{stage.target.start}")


# ---- the latent variable


def _sample_forward(plan: Plan, stage: Sample) -> Iterator[Operation]:
    for mean, raw, eps, std, z in _sampled(plan, stage):
        yield compute(std.name, deviation(value(raw), stage.transform))
        yield compute(z.name, value(mean) + value(std) * value(eps))
    yield Whole(tiles=(*plan.tiles_of(stage.std), *plan.tiles_of(stage.z)))


def _sample_backward(plan: Plan, stage: Sample) -> Iterator[Operation]:
    for mean, raw, eps, _, z in _sampled(plan, stage):
        yield add(eps.gradient, gradient(z) * deviation(value(raw), stage.transform))
        yield Leave(tile=eps)
        yield add(mean.gradient, gradient(z))
        d = gradient(raw) + gradient(z) * value(eps)
        yield compute(raw.gradient, deviation_backward(value(raw), d, stage.transform))
        yield Whole(tiles=(mean, raw))


def _sampled(plan: Plan, stage: Sample) -> Iterator[tuple[Tile, ...]]:
    """Put together tiles of mean, raw, eps, std and z that belong together."""
    yield from pairs(plan, *halves(stage.source), Slice("eps", 0, stage.z.width), stage.std, stage.z)


# ---- the cell


def _recur_forward(plan: Plan, stage: Recur) -> Iterator[Operation]:
    for gates, candidate, h, c, output in _recurring(plan, stage):
        values, names = map(value, gates), tuple(gate.name for gate in gates)
        if candidate is not None:
            yield compute((*names, h.after), call("gru", *values, value(candidate), value(h)))
        elif c is not None:
            yield compute((*names, h.after, c.after), call("lstm", *values, value(c)))
        else:
            yield compute(h.after, *values)
        if output is not None:
            yield compute(output.name, variable(h.after))
        yield Whole(tiles=(*gates, *(() if output is None else (output,))))


def _recur_backward(plan: Plan, stage: Recur) -> Iterator[Operation]:
    for gates, candidate, h, c, output in _recurring(plan, stage):
        values, names = map(value, gates), tuple(gate.gradient for gate in gates)
        d = variable(h.later) if output is None else variable(h.later) + gradient(output)
        if candidate is not None:
            shares = call("gru_backward", *values, value(candidate), value(h), d)
            yield compute((*names, candidate.gradient, "past"), shares)
            yield add(h.gradient, variable("past"))
        elif c is not None:
            yield compute((*names, c.gradient), call("lstm_backward", *values, value(c), d, variable(c.later)))
        else:
            yield compute(names, d)
        yield Whole(tiles=(*gates, *(() if candidate is None else (candidate,))))


class _Recurring(NamedTuple):
    """Tiles of one cell update that belong together."""

    gates: tuple[Tile, ...]
    candidate: Tile | None
    h: Tile
    c: Tile | None
    output: Tile | None


def _recurring(plan: Plan, stage: Recur) -> Iterator[_Recurring]:
    width, tiles_of = stage.h.width, plan.tiles_of
    starts = range(stage.gates.start, stage.gates.start + stage.gates.width, width)
    gates = pairs(plan, *(Slice(stage.gates.buffer, start, width) for start in starts))
    h = tiles_of(stage.h)
    others = (tiles_of(part) if part else (None,) * len(h) for part in (stage.candidate, stage.c, stage.output))
    for own, tile, candidate, c, output in zip(gates, h, *others, strict=True):
        yield _Recurring(own, candidate, tile, c, output)


# ---- particles: what weighs them, and how they go on


def _log_ratio_forward(plan: Plan, stage: Divergence) -> Iterator[Operation]:
    if stage.z is None:
        raise TypeError("the divergence of two densities belongs behind the scan")
    parts = (stage.z, replace(stage.z, buffer="eps"), stage.posterior_std, *halves(stage.prior))
    for tiles in pairs(plan, *parts):
        *given, raw = map(value, tiles)
        yield add("kl", total(call("log_ratio", *given, deviation(raw, stage.transform)), tiles[0]))


def _likelihood_forward(plan: Plan, stage: Likelihood) -> Iterator[Operation]:
    gaussian = stage.kind == "gaussian"
    parts = halves(stage.source) if gaussian else (stage.source,)
    constants = constants_of(stage.transform) if gaussian else ""
    for x, *raw in pairs(plan, observed(stage), *parts):
        yield from masked(plan, ("terms",), call(stage.kind, *map(value, (x, *raw)), constants=constants), x)
        yield add("nll", total(variable("terms"), x))


def masked(plan: Plan, names: tuple[str, ...], expression: Expression, x: Tile) -> Iterator[Operation]:
    """Compute variables, and set them to zero where the mask hides columns of x."""
    there = f"on.load(mask, row, active, {access(plan, 'b', x).columns('PTX')})"
    hidden = (f"    {name} = tl.where({there} != 0, {name}, 0.0)" for name in names)
    lines = f"{', '.join(names)} = {expression.text}", "if mask is not None:", *hidden
    yield Compute(makes=names, reads=expression.reads, arguments=("mask",), lines=lines)


WEIGHS: tuple[tuple[type[Stage], str], ...] = (Likelihood, "nll"), (Divergence, "kl")  # a particle, by a number of it


def _resample_forward(plan: Plan, stage: Resample) -> Iterator[Operation]:
    yield Compute(makes=("since",), lines=("since = tl.zeros((ROWS,), tl.float32)",), place="once")
    yield RowNumber(makes=("uniforms",), arguments=("b_uniforms",), dtype="tl.float32")
    names = tuple(name for kind, name in WEIGHS if any(isinstance(of, kind) for of in plan.program.scan))
    lines: list[str] = []
    for name in names:
        lines += [f"since = since - {name}", f"tl.store(b_{name} + row, {name}, mask=active)"]
    lines += [
        "goes_on = on.running(t + 1, length)",
        "ancestors = on.resample(since, uniforms, enough, goes_on, ROWS, PARTICLES)",
        "since = tl.where(ancestors < 0, since, 0.0)",
        "tl.store(b_ancestors + row, ancestors.to(tl.int64), mask=active)",
        "chosen = on.chosen(ancestors, ROWS, PARTICLES)",
    ]
    states = tuple(tile.after for tile in plan.state_tiles)
    lines += [f"{after} = on.take({after}, chosen)" for after in states]
    arguments = "enough", *(f"b_{name}" for name in names), "b_ancestors"
    yield Compute(makes=states, reads=("uniforms", *names, *states), arguments=arguments, lines=tuple(lines))


def _resample_backward(plan: Plan, stage: Resample) -> Iterator[Operation]:
    yield RowNumber(makes=("ancestors",), arguments=("b_ancestors",), dtype="tl.int32")
    for later in (tile.later for tile in plan.state_tiles):
        line = where_active(later, f"on.give_back({later}, ancestors, ROWS, PARTICLES)")
        yield Compute(makes=(later,), reads=("ancestors", later), lines=(line,))


# ---- a cell that runs on its own


def _draw_forward(plan: Plan, stage: Draw) -> Iterator[Operation]:
    if stage.kind == "bernoulli":
        for logit, noise, x in pairs(plan, stage.source, stage.noise, stage.x):
            if stage.mean:
                yield compute(x.name, call("sigmoid", value(logit)))
            else:
                yield compute(x.name, call("bernoulli_draw", value(logit), value(noise)))
    else:
        for centre, raw, noise, x in pairs(plan, *halves(stage.source), stage.noise, stage.x):
            yield compute(x.name, value(centre))
            if not stage.mean:
                yield compute(x.name, value(x) + deviation(value(raw), stage.transform) * value(noise))
    yield Whole(tiles=plan.tiles_of(stage.x))


def _nothing(plan: Plan, stage: Begin) -> Iterator[Operation]:
    """Leave it to the scan, where a step begins or, on the way back, ends."""
    yield from ()


WEIGHED = "none passes from a particle's weight to a state, so it is computed behind the scan, by rows.py"

STAGES: dict[type[Stage], Emitter] = {
    Bias: Emitter(_zeros_forward, "zeros have none, and parameters are added before the scan, by rows.py"),
    Begin: Emitter(_nothing, _nothing),
    Dense: Emitter(_dense_forward, _dense_backward),
    Add: Emitter(_add_forward, _add_backward),
    Activate: Emitter(_activate_forward, _activate_backward),
    Normalize: Emitter(_normalize_forward, _normalize_backward),
    Sample: Emitter(_sample_forward, _sample_backward),
    Recur: Emitter(_recur_forward, _recur_backward),
    Divergence: Emitter(_log_ratio_forward, WEIGHED),
    Likelihood: Emitter(_likelihood_forward, WEIGHED),
    Resample: Emitter(_resample_forward, _resample_backward),
    Draw: Emitter(_draw_forward, "a cell that runs on its own is given nothing to learn from"),
}


def pairs(plan: Plan, *parts: Slice) -> Iterator[tuple[Tile, ...]]:
    """Put together tiles of slices of the same width that belong together."""
    yield from zip(*map(plan.tiles_of, parts), strict=True)


def constants_of(std: Std) -> str:
    """Return the constants of functions.deviation."""
    scale = 0.5 if std.kind == "log_variance" else std.sharpness
    low, high = (None if math.isinf(bound) else bound for bound in std.clamp)
    least = None if std.plain else std.min_std
    return ", ".join(map(repr, (std.kind == "softplus", std.offset, scale, std.floor, least, low, high)))


def deviation(raw: Expression, std: Std) -> Expression:
    return call("deviation", raw, constants=constants_of(std))


def deviation_backward(raw: Expression, d: Expression, std: Std) -> Expression:
    found = call("deviation_backward", raw, d, constants=constants_of(std))
    return Expression(found.text, d.reads + raw.reads)  # loads come in this order, d's first


def total(terms: Expression, tile: Tile) -> Expression:
    """Add up the columns of a tile."""
    return call("total", terms, constants=f"{tile.width}, {tile.padded}")


def where_active(name: str, then: str) -> str:
    """Set a variable to ``then`` in the rows that the step belongs to."""
    return f"{name} = tl.where(active[:, None], {then}, {name})"
