"""What is not sequential, as kernels over tiles of rows: before and after the scan, and their gradients. Pure.

The stages are written as those of a scan are (emit.py), without a recurrence. A row is t * B + b, padding included: its
values are finite and its gradients zero. Where a gradient is taken, values that were not kept are computed again in
the same kernel; what weight gradients are made of, it leaves in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ...cell.spec import CellSpec, Std
from ...cell.stages import Activate, Add, Bias, Dense, Divergence, Keep, Likelihood, Slice, Stage
from ..cut import halves, observed, written
from .emit import STAGES, Emitter, constants_of, deviation_of, pairs
from .phases import Phase
from .plan import Plan, Tile, plan, rows_plan
from .scan import Backward, Forward

BEFORE, AFTER = "before_rows", "after_rows"
AFTER_BACKWARD, BEFORE_BACKWARD = "after_rows_backward", "before_rows_backward"
HEIGHT = "HEIGHT"  # the constant of a kernel that says how many rows one of its tiles has
BEGIN = ["row, active = on.row_tile(program, count, ROWS)"]


@dataclass(frozen=True, eq=False)
class RowPass:
    """The stages of one kernel over rows.

    Attributes:
        values: what it computes, on the way forward.
        gradients: whose gradients it computes, on the way back; None where it does not.
        z: the tiles whose gradient from outside it adds to its own.
    """

    values: Plan
    gradients: Plan | None
    z: tuple[Tile, ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.values,) if self.gradients is None else (self.values, self.gradients)


@dataclass(frozen=True, eq=False)
class Passes:
    """The kernels over rows around one scan, and the scan's own plan.

    The workspace of a direction holds the weights of ``plans``, one after the other.
    """

    scan: Plan
    first: RowPass
    last: RowPass

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.scan, *self.first.plans, *self.last.plans)


@lru_cache(maxsize=256)
def passes(spec: CellSpec, widest: int, *, reverse: bool) -> Passes:
    """Return the kernels around a scan that goes forward, the one before and the one after it; or those around its
    reverse, the one after it, which comes first, and the one before."""
    scan = plan(spec, widest, reverse=reverse)
    program, offset = scan.program, scan.workspace

    def cut(stages: tuple[Stage, ...], *, back: bool) -> Plan:
        nonlocal offset
        found = rows_plan(program, tuple(map(_as_product, stages)), widest, offset, reverse=back)
        offset = max(offset, found.workspace)
        return found

    if not reverse:
        return Passes(
            scan, RowPass(cut(program.before, back=False), None), RowPass(cut(program.after, back=False), None)
        )
    after = cut(program.after, back=True)
    z = () if scan.sample is None else after.tiles_of(scan.sample.z) or scan.tiles_of(scan.sample.z)
    again = RowPass(cut(_lost(scan), back=False), after, z)
    inputs = tuple(s for s in program.before if _touched(s).buffer not in scan.parts)
    return Passes(scan, again, RowPass(cut(inputs, back=False), cut(program.before, back=True)))


def _lost(scan: Plan) -> tuple[Stage, ...]:
    """List the stages whose results forward does not keep, and what is after the scan."""
    program = scan.program
    there = {b.name for b in program.buffers if b.keep >= Keep.STORED} | {"x", "eps", "cond"}
    of_scan = [s for s in program.before if _touched(s).buffer in scan.parts]
    stages = (s for s in (*of_scan, *program.scan) if isinstance(s, Bias | Dense | Activate | Add))
    return (*(s for s in stages if _touched(s).buffer not in there), *program.after)


def _touched(stage: Stage) -> Slice:
    return written(stage)[0]


def _as_product(stage: Stage) -> Stage:
    """Turn a bias of parameters as a product with nothing."""
    if isinstance(stage, Bias) and stage.terms:
        return Dense(Slice(stage.target.buffer, stage.target.start, 0), stage.target, (), stage.terms)
    return stage


def needed(scan: Plan) -> frozenset[str]:
    """List the buffers that weight gradients and the reverse scan find in memory: what products read, and values."""
    sources = {s.source.buffer for s in scan.program.stages if isinstance(s, Dense)}
    return frozenset(sources | set(scan.values))


def phase(name: str, of: RowPass, options: RowOptions) -> Phase:
    """Write what is done to a tile of rows."""
    values = _Values(of.values, options)
    for values.number, stage in enumerate(of.values.program.scan):
        _emitter(stage).forward(values, stage)
        values.save(*values.last_writer)
    if of.gradients is not None:
        back = _GradientPass(of.gradients, values, options)
        for back.number, stage in reversed(tuple(enumerate(of.gradients.program.scan))):
            emit = _emitter(stage).backward
            if not isinstance(emit, str):
                emit(back, stage)
        back.add_given("z", of.z)
        back.keep_given(of.z)
    of_scans = {"weights", "steps", "batch", "lengths", "order", "resets"}
    arguments = ("weights", "count", *(a for a in values.arguments if a not in of_scans))
    constants = {"ROWS": HEIGHT, "PRECISION": "PRECISION", "PTX": "PTX"}
    return Phase(name, arguments, values.settle(BEGIN + values.step), f"tl.cdiv(count, {HEIGHT})", constants)


@dataclass(frozen=True)
class RowOptions:
    """What differs between calls of one cell.

    Attributes:
        stored: the buffers whose values a kernel writes.
        given: the results whose gradients reach it from outside.
        wanted: the inputs whose gradients somebody wants.
        begun: buffers whose gradients it finds in memory.
        results: whether it writes the numbers of each row, nll and kl.
    """

    std: Std
    results: bool = False
    stored: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    begun: frozenset[str] = frozenset()


class _Values(Forward):
    """Values of a tile of rows."""

    def __init__(self, plan: Plan, options: RowOptions) -> None:
        super().__init__(plan, frozenset(), tuple(options.stored), ahead=False, late=False)
        self.reads, self.options = "where needed", options


class _GradientPass(Backward):
    """Gradients of a tile of rows, behind the lines of their values."""

    def __init__(self, plan: Plan, values: _Values, options: RowOptions) -> None:
        super().__init__(plan, frozenset(), ahead=False, late=False, on_z=False, on_eps=False)
        self.options = options
        self.arguments, self.step, self.known = values.arguments, values.step, values.known
        self.reads_from, self.writes_to = values.reads_from, values.writes_to
        for buffer in options.begun:
            self.begun.update(plan.tiles.get(buffer, ()))
            if buffer not in options.wanted:
                self.stored.update(plan.tiles.get(buffer, ()))

    def passes(self, tile: Tile) -> bool:
        return tile.buffer not in ("x", "cond") or tile.buffer in self.options.wanted

    def given(self, name: str, tile: Tile, start: int, width: int) -> str | None:
        """Return the variable of the gradient of a result, which is the columns from ``start`` on of the tile's buffer;
        None where nothing reaches it."""
        if name not in self.options.given:
            return None
        at = replace(tile, buffer=name, start=tile.start - start)
        variable = f"u_{at.name}"
        pointer = self.argument(f"u_{name}")
        columns = f"{at.start}, {at.width}, {at.padded}, {width}, {self.tile_at(pointer, write=False)}"
        self.step.append(f"{variable} = on.load({pointer}, row, active, {columns}).to(tl.float32)")
        return variable

    def total_of(self, tile: Tile, whole: Slice, share: str | None, name: str) -> str:
        """Add a share of a tile's gradient and that of a result, whose columns are ``whole``, together."""
        terms = [t for t in (share, self.given(name, tile, whole.start, whole.width)) if t is not None]
        return " + ".join(terms) if terms else zeros(tile)

    def of_row(self, name: str) -> str | None:
        """Return the variable of the gradient of a number of each row."""
        if name not in self.options.given:
            return None
        if f"u_{name}" not in self.known:
            self.known.add(f"u_{name}")
            pointer = self.argument(f"u_{name}")
            self.step.append(f"d_{name} = on.number({pointer}, row, active)")
        return f"d_{name}"

    def add_given(self, name: str, tiles: tuple[Tile, ...]) -> None:
        """Add the gradient of a result that is a whole buffer."""
        for tile in tiles:
            if (given := self.given(name, tile, 0, self.plan.width(tile.buffer))) is not None:
                self.add(tile, given)

    def keep_given(self, others: tuple[Tile, ...]) -> None:
        """Write what goes on to others: gradients of what was read from memory, and those of ``others``."""
        for tiles in (*self.plan.tiles.values(), others):
            for tile in tiles:
                if self.passes(tile) and f"d_{tile.name}" in self.known and not self.products[tile]:
                    self.keep(tile)


def zeros(tile: Tile) -> str:
    return f"tl.zeros((ROWS, {tile.padded}), tl.float32)"


def _emitter(stage: Stage) -> Emitter:
    return ROW_STAGES.get(type(stage)) or STAGES[type(stage)]


def _divergence_forward(scan: _Values, stage: Divergence) -> None:
    for q_mean, q_raw, p_mean, p_raw, p_std, *sampled in _densities(scan.plan, stage):
        for tile in (q_mean, q_raw, p_mean, p_raw):  # all as memory would give them: equal densities are then equal
            scan.put(tile, f"on.rounded({scan.value(tile)}, weights)")
        scan.put(p_std, deviation_of(p_raw.name, stage.transform))
        q_std = f"q_std_{q_raw.start}"
        scan.step.append(f"{q_std} = {deviation_of(q_raw.name, scan.options.std)}")
        if not scan.options.results:
            continue
        if sampled:
            z, eps = map(scan.value, sampled)
            terms = f"on.log_ratio({z}, {eps}, {q_std}, {p_mean.name}, {p_std.name})"
        else:
            terms = f"on.divergence({q_mean.name}, {q_std}, {p_mean.name}, {p_std.name})"
        scan.add_up("kl", terms, p_std)
    if p_std.buffer in scan.stored:
        for tile in scan.plan.tiles[p_std.buffer]:
            scan.store("b", tile, tile.name)
    if scan.options.results:
        scan.step.append(f"on.store_number({scan.argument('b_kl')}, row, active, kl)")


def _divergence_backward(scan: _GradientPass, stage: Divergence) -> None:
    g = scan.of_row("kl")
    for q_mean, q_raw, p_mean, p_raw, p_std, *sampled in _densities(scan.plan, stage):
        at = sampled[0] if sampled else q_mean
        shares: dict[str, str] = {}
        if g is not None:
            shares = {name: f"share_{name}" for name in ("at", "q_std", "p_mean", "p_std")}
            given = f"{scan.value(at)}, q_std_{q_raw.start}, {p_mean.name}, {p_std.name}, {g}, {bool(sampled)}"
            scan.step.append(f"{', '.join(shares.values())} = on.divergence_backward({given})")
        if sampled:
            scan.add(at, shares.get("at") or zeros(at))
            if g is not None and "eps" in scan.options.wanted:
                eps = sampled[1]
                given = f"-{g}[:, None] * {scan.value(eps)}, {scan.columns(eps, 'g_past_eps', write=True)}"
                scan.step.append(f"on.store({scan.argument('g_past_eps')}, row, active, {given})")
        means = None if sampled else shares.get("at")
        posterior, prior = halves(stage.posterior), halves(stage.prior)
        scan.put(q_mean, scan.total_of(q_mean, posterior[0], means, "mean"))
        scan.put(q_raw, scan.total_of(q_raw, posterior[1], shares.get("q_std"), "std"))
        scan.put(p_mean, scan.total_of(p_mean, prior[0], shares.get("p_mean"), "prior_mean"))
        d_std = scan.total_of(p_raw, prior[1], shares.get("p_std"), "prior_std")
        scan.put(p_raw, f"on.deviation_backward({p_raw.name}, {d_std}, {constants_of(stage.transform)})")
        scan.complete(p_mean, p_raw)


def _densities(plan: Plan, stage: Divergence) -> Iterator[tuple[Tile, ...]]:
    """Put together tiles that belong together: means and raw deviations of both, the prior's deviation and, where there
    is a sample, z and eps."""
    parts = (*halves(stage.posterior), *halves(stage.prior), stage.prior_std)
    yield from pairs(plan, *parts, *(() if stage.z is None else (stage.z, replace(stage.z, buffer="eps"))))


def _likelihood_forward(scan: _Values, stage: Likelihood) -> None:
    if stage.kind != "external" and scan.options.results:
        forward = STAGES[Likelihood].forward
        forward(scan, stage)
        scan.step.append(f"on.store_number({scan.argument('b_nll')}, row, active, nll)")


def _likelihood_backward(scan: _GradientPass, stage: Likelihood) -> None:
    g = None if stage.kind == "external" else scan.of_row("nll")
    gaussian = stage.kind == "gaussian"
    parts = halves(stage.source) if gaussian else (stage.source,)
    raws = [scan.plan.tiles_of(part) for part in parts]
    inputs = (None,) * len(raws[0]) if stage.kind == "external" else scan.plan.tiles_of(observed(stage))
    for x, *raw in zip(inputs, *raws, strict=True):
        shares = [f"share_{tile.name}" for tile in raw]
        if g is not None and x is not None:
            given = f"{scan.value(x)}, {', '.join(map(scan.value, raw))}"
            options = f", {constants_of(stage.transform)}" if gaussian else ""
            there = f"on.load({scan.argument('mask')}, row, active, {scan.columns(x, 'mask')})"
            names = ", ".join(("share_x", *shares))
            scan.step.append(f"{names} = on.{stage.kind}_backward({given}, {g}{options})")
            scan.step.append("if mask is not None:")
            scan.step += [f"    {name} = tl.where({there} != 0, {name}, 0.0)" for name in ("share_x", *shares)]
        for tile, share in zip(raw, shares, strict=True):
            scan.put(tile, scan.total_of(tile, stage.source, share if g is not None else None, "raw"))
        if x is not None and "x" in scan.options.wanted:
            scan.add(x, "share_x" if g is not None else zeros(x))
    scan.complete(*(tile for tiles in raws for tile in tiles))


ROW_STAGES: dict[type[Stage], Emitter] = {
    Divergence: Emitter(_divergence_forward, _divergence_backward),
    Likelihood: Emitter(_likelihood_forward, _likelihood_backward),
}
