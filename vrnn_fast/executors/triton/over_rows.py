"""A pass over rows as operations: stages that are before or after the scan, and their gradients. Pure.

They are lowered as those of a scan are (emit.py), but for a divergence and a likelihood, without a recurrence. A row is
t * B + b. Nothing is read of padding, and results and gradients are zero there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

from ...cell.spec import Std
from ...cell.stages import Divergence, Likelihood, Slice, Stage
from ..cut import halves, observed
from . import order
from .emit import STAGES, constants_of, deviation, deviation_backward, masked, pairs, total
from .operations import (
    Access,
    Compute,
    Expression,
    Leave,
    Operation,
    Whole,
    access,
    add,
    call,
    compute,
    load,
    store,
    value,
    variable,
    zeros,
)
from .passes import RowPass
from .phases import Phase
from .plan import Plan, Tile
from .writer import Printer, arguments, indent

BEFORE, AFTER = "before_rows", "after_rows"
AFTER_BACKWARD, BEFORE_BACKWARD = "after_rows_backward", "before_rows_backward"
AGAIN = "rows_again"
HEIGHT = "HEIGHT"  # the constant of a kernel that says how many rows one of its tiles has
BEGIN = "row, inside, active = on.row_tile(program, count, batch, lengths, ROWS)"


@dataclass(frozen=True)
class RowOptions:
    """What differs between calls of one cell.

    Attributes:
        stored: the buffers whose values a kernel writes.
        given: the results whose gradients reach it from outside.
        wanted: the inputs whose gradients somebody wants.
        begun: buffers whose gradients it finds in memory.
        results: whether it writes the numbers of each row, nll and kl, and the posterior's means.
        cleared: arguments that point to results of the scan, which writes none at padding, and their widths.
    """

    std: Std
    results: bool = False
    stored: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    begun: frozenset[str] = frozenset()
    cleared: tuple[tuple[str, int], ...] = ()


def phase(name: str, of: RowPass, options: RowOptions) -> Phase:
    """Write what is done to a tile of rows."""
    operations = [*_values(of.values, options)]
    if of.gradients is not None:
        made = {name for operation in operations for name in operation.makes}
        operations += _gradients(of.gradients, options, of.finds, of.z, made)
    pointers = (pointer for pointer, _ in options.cleared)
    named = arguments((*FIRST, *arguments((), operations), *pointers), ())
    constants = {"ROWS": HEIGHT, "PRECISION": "PRECISION", "PTX": "PTX"}
    cleared = [f"on.clear({pointer}, row, inside, active, {width})" for pointer, width in options.cleared]
    begin = [BEGIN, *(["if lengths is not None:", *indent(1, cleared)] if cleared else [])]
    printer = Printer("where needed", order.both_ways(operations), padding=True)
    lines = (*begin, *(line for operation in operations for line in printer.lines(operation)))
    return Phase(name, named, lines, f"tl.cdiv(count, {HEIGHT})", constants)


FIRST = "weights", "count", "batch", "lengths"


def _values(plan: Plan, options: RowOptions) -> Iterator[Operation]:
    """Compute values of a tile of rows."""
    memory = order.memory(plan, (), ())
    lowered = [operation for stage in plan.program.scan for operation in _forward(plan, stage, options)]
    return order.found(order.begun(order.saved(lowered, plan, options.stored), memory), memory)


def _gradients(
    plan: Plan, options: RowOptions, finds: frozenset[Slice], z: tuple[Tile, ...], made: set[str]
) -> Iterator[Operation]:
    """Compute gradients of a tile of rows, behind its values, which have ``made`` variables."""
    inputs = {name for name in ("x", "cond", "eps") if name not in options.wanted}
    unwanted = [tile for name in inputs for tile in plan.tiles.get(name, ())]
    parts = (*(part for name in options.begun for part in plan.parts.get(name, ())), *finds)
    begun = [tile for part in parts for tile in plan.tiles_of(part) if tile not in unwanted]
    memory = order.memory(plan, (), begun)
    lowered = [operation for stage in reversed(plan.program.scan) for operation in _backward(plan, stage, options)]
    lowered += _add_to_z(plan, z, options)
    led = {tile for matrix in plan.matrices for tile in matrix.targets}
    others = (tile for tiles in (*plan.tiles.values(), z) for tile in tiles if tile not in led)
    gradients = order.at_once([*lowered, *(Leave(tile=tile) for tile in others)], plan)
    summed = order.begun(order.wanted(gradients, unwanted), memory)
    return order.found(order.kept(summed, plan, begun, begun), memory, made)


def _forward(plan: Plan, stage: Stage, options: RowOptions) -> Iterator[Operation]:
    match stage:
        case Divergence():
            yield from _divergence_forward(plan, stage, options)
        case Likelihood():
            yield from _likelihood_forward(plan, stage, options)
        case _:
            yield from STAGES[type(stage)].forward(plan, stage)


def _backward(plan: Plan, stage: Stage, options: RowOptions) -> Iterator[Operation]:
    match stage:
        case Divergence():
            yield from _divergence_backward(plan, stage, options)
        case Likelihood():
            yield from _likelihood_backward(plan, stage, options)
        case _:
            lower = STAGES[type(stage)].backward
            if not isinstance(lower, str):
                yield from lower(plan, stage)


# ---- gradients from outside


def _given(
    options: RowOptions, name: str, tile: Tile, start: int, width: int
) -> Generator[Operation, None, Expression | None]:
    """Read and return the gradient of a result, which is the columns from ``start`` on of the tile's buffer; None where
    nothing reaches it."""
    if name not in options.given:
        return None
    at = replace(tile, buffer=name, start=tile.start - start)
    yield load(f"u_{at.name}", Access(f"u_{name}", at.start, at.width, at.padded, width))
    return variable(f"u_{at.name}")


def _of_row(options: RowOptions, name: str) -> Generator[Operation, None, Expression | None]:
    """Read and return the gradient of a number of each row; None where nothing reaches it."""
    if name not in options.given:
        return None
    line = f"d_{name} = on.number(u_{name}, row, active)"
    yield Compute(makes=(f"d_{name}",), arguments=(f"u_{name}",), lines=(line,))
    return variable(f"d_{name}")


def _with_given(
    options: RowOptions, name: str, tile: Tile, whole: Slice, share: Expression | None
) -> Generator[Operation, None, Expression]:
    """Return the sum of a share of a tile's gradient and of that of a result, whose columns are ``whole``."""
    given = yield from _given(options, name, tile, whole.start, whole.width)
    if share is None or given is None:
        return share or given or zeros(tile)
    return share + given


def _add_to_z(plan: Plan, z: tuple[Tile, ...], options: RowOptions) -> Iterator[Operation]:
    for tile in z:
        given = yield from _given(options, "z", tile, 0, plan.width(tile.buffer))
        if given is not None:
            yield add(tile.gradient, given)


# ---- densities, and what they are of


def _divergence_forward(plan: Plan, stage: Divergence, options: RowOptions) -> Iterator[Operation]:
    for q_mean, q_raw, p_mean, p_raw, p_std, *sampled in _densities(plan, stage):
        for tile in (q_mean, q_raw, p_mean, p_raw):  # all as memory would give them: equal densities are then equal
            yield compute(tile.name, call("rounded", value(tile), constants="weights"))
        yield compute(p_std.name, deviation(value(p_raw), stage.transform))
        yield compute(_posterior_std(q_raw).text, deviation(value(q_raw), options.std))
        if options.results:
            yield store(q_mean.name, replace(access(plan, "b", replace(p_std, buffer="z")), pointer="b_mean"))
            densities = _posterior_std(q_raw), value(p_mean), value(p_std)
            if sampled:
                terms = call("log_ratio", *map(value, sampled), *densities)
            else:
                terms = call("divergence", value(q_mean), *densities)
            yield add("kl", total(terms, p_std))
    yield Whole(tiles=plan.tiles_of(stage.prior_std))
    if options.results:
        yield _store_number("kl")


def _divergence_backward(plan: Plan, stage: Divergence, options: RowOptions) -> Iterator[Operation]:
    g = yield from _of_row(options, "kl")
    posterior, prior = halves(stage.posterior), halves(stage.prior)
    for q_mean, q_raw, p_mean, p_raw, p_std, *sampled in _densities(plan, stage):
        at = sampled[0] if sampled else q_mean
        shares: dict[str, Expression] = {}
        if g is not None:
            shares = {name: variable(f"share_{name}") for name in ("at", "q_std", "p_mean", "p_std")}
            densities = value(at), _posterior_std(q_raw), value(p_mean), value(p_std)
            d = call("divergence_backward", *densities, g, constants=str(bool(sampled)))
            yield compute([share.text for share in shares.values()], d)
        if sampled:
            yield add(at.gradient, shares.get("at") or zeros(at))
            eps = sampled[1]
            yield compute(
                eps.gradient, zeros(eps) if g is None else Expression(f"-{g.text}[:, None]", g.reads) * value(eps)
            )
        means = None if sampled else shares.get("at")
        for name, tile, whole, share in (
            ("mean", q_mean, posterior[0], means),
            ("std", q_raw, posterior[1], shares.get("q_std")),
            ("prior_mean", p_mean, prior[0], shares.get("p_mean")),
        ):
            yield compute(tile.gradient, (yield from _with_given(options, name, tile, whole, share)))
        d_std = yield from _with_given(options, "prior_std", p_raw, prior[1], shares.get("p_std"))
        yield compute(p_raw.gradient, deviation_backward(value(p_raw), d_std, stage.transform))
        yield Whole(tiles=(p_mean, p_raw))


def _densities(plan: Plan, stage: Divergence) -> Iterator[tuple[Tile, ...]]:
    """Put together tiles that belong together: means and raw deviations of both, the prior's deviation and, where there
    is a sample, z and eps."""
    parts = (*halves(stage.posterior), *halves(stage.prior), stage.prior_std)
    yield from pairs(plan, *parts, *(() if stage.z is None else (stage.z, replace(stage.z, buffer="eps"))))


def _posterior_std(raw: Tile) -> Expression:
    return variable(f"q_std_{raw.start}")


def _likelihood_forward(plan: Plan, stage: Likelihood, options: RowOptions) -> Iterator[Operation]:
    if stage.kind != "external" and options.results:
        yield from STAGES[Likelihood].forward(plan, stage)
        yield _store_number("nll")


def _likelihood_backward(plan: Plan, stage: Likelihood, options: RowOptions) -> Iterator[Operation]:
    external, gaussian = stage.kind == "external", stage.kind == "gaussian"
    g = None if external else (yield from _of_row(options, "nll"))
    raws = [plan.tiles_of(part) for part in (halves(stage.source) if gaussian else (stage.source,))]
    inputs = (None,) * len(raws[0]) if external else plan.tiles_of(observed(stage))
    for x, *raw in zip(inputs, *raws, strict=True):
        shares = [None if g is None else variable(f"share_{tile.name}") for tile in raw]
        if g is not None and x is not None:
            constants = constants_of(stage.transform) if gaussian else ""
            d = call(f"{stage.kind}_backward", *map(value, (x, *raw)), g, constants=constants)
            yield from masked(plan, ("share_x", *(f"share_{tile.name}" for tile in raw)), d, x)
        for tile, share in zip(raw, shares, strict=True):
            yield compute(tile.gradient, (yield from _with_given(options, "raw", tile, stage.source, share)))
        if x is not None:
            yield add(x.gradient, zeros(x) if g is None else variable("share_x"))
    yield Whole(tiles=tuple(tile for tiles in raws for tile in tiles))


def _store_number(name: str) -> Compute:
    line = f"on.store_number(b_{name}, row, inside, active, {name})"
    return Compute(reads=(name,), arguments=(f"b_{name}",), lines=(line,))
