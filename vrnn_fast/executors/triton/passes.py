"""What is not sequential, as kernels over tiles of rows: before and after the scan, and their gradients. Pure.

The stages are written as those of a scan are (emit.py), without a recurrence. A row is t * B + b. Nothing is read of
padding, and results and gradients are zero there. Where a gradient is taken, values that were not kept are computed
again in the same pass; what weight gradients are made of, it leaves in memory. Where a program has no room for all
that, it is several passes, which find in memory what those before have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from ...cell.spec import CellSpec, Std
from ...cell.stages import Activate, Add, Bias, Dense, Divergence, Keep, Likelihood, Slice, Stage
from ..cut import halves, observed, slices, written
from .emit import STAGES, Emitter, constants_of, deviation_of, pairs
from .phases import Phase
from .plan import Plan, Tile, padded, plan, rows_plan
from .scan import Backward, Forward, Scan
from .writer import indent

BEFORE, AFTER = "before_rows", "after_rows"
AFTER_BACKWARD, BEFORE_BACKWARD = "after_rows_backward", "before_rows_backward"
HEIGHT = "HEIGHT"  # the constant of a kernel that says how many rows one of its tiles has
WIDE = 2048  # columns that a divergence and a likelihood work on, from which on they count twice
BEGIN = ["row, inside, active = on.row_tile(program, count, batch, lengths, ROWS)"]


@dataclass(frozen=True, eq=False)
class RowPass:
    """The stages of one pass over rows.

    Attributes:
        values: what it computes, on the way forward.
        gradients: whose gradients it computes, on the way back; None where it does not.
        leaves: buffers whose values it writes for later passes.
        finds: slices whose gradients it finds in memory, from passes before.
        z: the tiles whose gradient from outside it adds to its own.
    """

    values: Plan
    gradients: Plan | None = None
    leaves: frozenset[str] = frozenset()
    finds: frozenset[Slice] = frozenset()
    z: tuple[Tile, ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.values,) if self.gradients is None else (self.values, self.gradients)

    @property
    def columns(self) -> int:
        """Count the columns of all tiles, twice of a wide divergence's or likelihood's, whose functions take many; of
        none where no product holds tiles until all of it is added up."""
        cuts = [cut for cut in self.plans if cut.matrices]
        stages = (stage for cut in cuts for stage in cut.program.scan if isinstance(stage, Divergence | Likelihood))
        again = sum(padded(part.width) for stage in stages for part in slices(stage))
        whole = sum(tile.padded for cut in cuts for of in cut.tiles.values() for tile in of)
        return whole + (again if again >= WIDE else 0)

    @property
    def products(self) -> int:
        return sum(cut.products for cut in self.plans)


@dataclass(frozen=True)
class Room:
    """What a program over rows can hold.

    Attributes:
        columns: of all its tiles together, in registers, where stages are put together.
        most: columns of what cannot be taken apart.
        products: of tiles, which take long to compile.
    """

    columns: int
    most: int
    products: int

    def holds(self, each: RowPass) -> bool:
        """Tell whether stages are one pass."""
        return each.columns <= self.columns and each.products <= self.products

    def bears(self, each: RowPass) -> bool:
        """Tell whether a pass can be run at all."""
        return each.columns <= self.most and each.products <= self.products


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes over rows around one scan, and the scan's own plan.

    The workspace of a direction holds the weights of ``plans``, one after the other.
    """

    scan: Plan
    first: tuple[RowPass, ...]
    last: tuple[RowPass, ...]

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.scan, *(plan for each in (*self.first, *self.last) for plan in each.plans))


@lru_cache(maxsize=256)
def passes(spec: CellSpec, widest: int, room: Room, *, reverse: bool) -> Passes | None:
    """Return the passes around a scan that goes forward, those before and those after it; or those around its reverse,
    the ones after it, which come first, and the ones before. None where there is no room for some stage."""
    scan = plan(spec, widest, reverse=reverse)
    program, offset = scan.program, scan.workspace

    def tried(stages: Iterable[Stage], *, back: bool = False) -> Plan:
        return rows_plan(program, tuple(map(_as_product, stages)), widest, offset, reverse=back)

    def cut(stages: Iterable[Stage], *, back: bool = False) -> Plan:
        nonlocal offset
        found = tried(stages, back=back)
        offset = max(offset, found.workspace)
        return found

    def of_values(stages: tuple[Stage, ...], leaves: Iterable[str] = ()) -> Iterator[RowPass]:
        runs = _runs(stages, lambda run: room.holds(RowPass(tried(run))))
        for number, run in enumerate(runs):
            read = {part.buffer for later in runs[number + 1 :] for stage in later for part in slices(stage)}
            made = frozenset(part.buffer for stage in run for part in written(stage))
            yield RowPass(cut(run), leaves=made & read.union(leaves))

    def of_gradients(again: tuple[Stage, ...], stages: tuple[Stage, ...]) -> Iterator[RowPass]:
        if room.holds(RowPass(tried(again), tried(stages, back=True))):
            yield RowPass(cut(again), cut(stages, back=True))
            return
        products = tuple(stage for stage in again if isinstance(stage, _WITH_TARGET))
        yield from of_values(products, {stage.target.buffer for stage in products})
        finds: frozenset[Slice] = frozenset()

        def fit(run: tuple[Stage, ...]) -> bool:
            return room.holds(RowPass(tried(_alone(run)), tried(run, back=True)))

        for run in _runs(stages, fit, last_first=True):
            yield RowPass(cut(_alone(run)), cut(run, back=True), finds=finds)
            finds |= {part for stage in run for part in _reached_by(stage)}

    if not reverse:
        found = Passes(scan, tuple(of_values(program.before)), tuple(of_values(program.after)))
    else:
        inputs = tuple(s for s in program.before if _touched(s).buffer not in scan.parts)
        first = list(of_gradients(_lost(scan), program.after))
        if scan.sample is not None:
            tiles = [() if each.gradients is None else each.gradients.tiles_of(scan.sample.z) for each in first]
            at = next((number for number, of_z in enumerate(tiles) if of_z), len(first) - 1)
            first[at] = replace(first[at], z=tiles[at] or scan.tiles_of(scan.sample.z))
        found = Passes(scan, tuple(first), tuple(of_gradients(inputs, program.before)))
    return found if all(map(room.bears, (*found.first, *found.last))) else None


def _runs(
    stages: tuple[Stage, ...], fit: Callable[[tuple[Stage, ...]], bool], *, last_first: bool = False
) -> list[tuple[Stage, ...]]:
    """Cut stages into few runs that fit, in the order in which they are run. No run writes what another has written."""
    ends = [
        number for number in range(1, len(stages)) if not {*_written(stages[:number])} & {*_written(stages[number:])}
    ]
    least = [stages[begin:end] for begin, end in pairwise((0, *ends, len(stages)))] if stages else []
    runs: list[tuple[Stage, ...]] = []
    for run in reversed(least) if last_first else least:
        longer = (run + runs[-1] if last_first else runs[-1] + run) if runs else ()
        if runs and fit(longer):
            runs[-1] = longer
        else:
            runs.append(run)
    return runs


def _alone(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """List those whose gradients take more than values that are in memory."""
    return tuple(stage for stage in stages if not isinstance(stage, _WITH_TARGET))


def _written(stages: Iterable[Stage]) -> Iterator[tuple[str, int]]:
    """Name every column that stages write."""
    for stage in stages:
        for part in written(stage):
            yield from ((part.buffer, column) for column in range(part.start, part.start + part.width))


def _reached_by(stage: Stage) -> Iterator[Slice]:
    """Yield what a gradient reaches past a stage."""
    match stage:
        case Dense() | Add():
            yield stage.source
        case Likelihood():
            yield from (stage.source, observed(stage))
        case Divergence():
            yield from (*halves(stage.posterior), *halves(stage.prior))
            if stage.z is not None:
                yield stage.z


def _lost(scan: Plan) -> tuple[Stage, ...]:
    """List the stages whose results forward does not keep, and what is after the scan."""
    program = scan.program
    there = {b.name for b in program.buffers if b.keep >= Keep.STORED} | {"x", "eps", "cond"}
    of_scan = [s for s in program.before if _touched(s).buffer in scan.parts]
    stages = (s for s in (*of_scan, *program.scan) if isinstance(s, _WITH_TARGET))
    return (*(s for s in stages if _touched(s).buffer not in there), *program.after)


_WITH_TARGET = Bias, Dense, Activate, Add


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
        back = _GradientPass(of.gradients, values, options, of.finds)
        for back.number, stage in reversed(tuple(enumerate(of.gradients.program.scan))):
            emit = _emitter(stage).backward
            if not isinstance(emit, str):
                emit(back, stage)
        back.add_given("z", of.z)
        back.keep_given(of.z)
    cleared = [f"on.clear({values.argument(name)}, row, inside, active, {width})" for name, width in options.cleared]
    of_scans = {"weights", "steps", "batch", "lengths", "order", "resets"}
    arguments = ("weights", "count", "batch", "lengths", *(a for a in values.arguments if a not in of_scans))
    constants = {"ROWS": HEIGHT, "PRECISION": "PRECISION", "PTX": "PTX"}
    lines = [*BEGIN, *(["if lengths is not None:", *indent(1, cleared)] if cleared else []), *values.step]
    return Phase(name, arguments, values.settle(lines), f"tl.cdiv(count, {HEIGHT})", constants)


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


class _OfRows(Scan):
    """Results and gradients are zero at padding, where nothing is read."""

    def store_at(self, pointer: str, tile: Tile, variable: str) -> None:
        columns = self.columns(tile, pointer, write=True)
        self.step.append(f"on.store({pointer}, row, inside, on.only({variable}, active, lengths), {columns})")


class _Values(_OfRows, Forward):
    """Values of a tile of rows."""

    def __init__(self, plan: Plan, options: RowOptions) -> None:
        super().__init__(plan, frozenset(), tuple(options.stored), ahead=False, late=False)
        self.reads, self.options = "where needed", options


class _GradientPass(_OfRows, Backward):
    """Gradients of a tile of rows, behind the lines of their values."""

    def __init__(self, plan: Plan, values: _Values, options: RowOptions, finds: frozenset[Slice]) -> None:
        super().__init__(plan, frozenset(), ahead=False, late=False, on_z=False, on_eps=False)
        self.options = options
        self.arguments, self.step, self.known = values.arguments, values.step, values.known
        self.reads_from, self.writes_to = values.reads_from, values.writes_to
        parts = (*(part for name in options.begun for part in plan.parts.get(name, ())), *finds)
        for tile in filter(self.passes, (tile for part in parts for tile in plan.tiles_of(part))):
            self.begun.add(tile)
            self.stored.add(tile)

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
        scan.store_at(scan.argument("b_mean"), replace(p_std, buffer="z"), q_mean.name)
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
        scan.step.append(f"on.store_number({scan.argument('b_kl')}, row, inside, active, kl)")


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
            if "eps" in scan.options.wanted:
                eps = sampled[1]
                scan.put(eps, zeros(eps) if g is None else f"-{g}[:, None] * {scan.value(eps)}")
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
        scan.step.append(f"on.store_number({scan.argument('b_nll')}, row, inside, active, nll)")


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
