"""What is not sequential, cut into passes over rows: before and after the scan, and their gradients. Pure.

Where a gradient is taken, values that were not kept are computed again in the same pass; what weight gradients are made
of, it leaves in memory. Where a program has no room for all that, it is several passes, which find in memory what those
before have left; so where the user's ``recompute`` kept the states alone: passes of their own first make what the scan
would have kept. over_rows.py writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from ...cell.spec import CellSpec
from ...cell.stages import Activate, Add, Bias, Dense, Divergence, Keep, Likelihood, Normalize, Recur, Slice, Stage
from ..cut import halves, observed, slices, written
from .plan import LEAST, Plan, Tile, padded, plan, rows_plan

WIDE = 2048  # columns that a divergence and a likelihood work on, from which on they count twice


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
        apart: the same, of one of several passes that gradients are cut into.
        most: columns of what cannot be taken apart.
        products: of tiles, which take long to compile.
    """

    columns: int
    apart: int
    most: int
    products: int

    def holds(self, each: RowPass) -> bool:
        """Tell whether stages are one pass."""
        return each.columns <= self.columns and each.products <= self.products

    def joins(self, each: RowPass) -> bool:
        """Tell whether stages are one of several passes of gradients."""
        return each.columns <= self.apart and each.products <= self.products

    def bears(self, each: RowPass) -> bool:
        """Tell whether a pass can be run at all."""
        return each.columns <= self.most and each.products <= self.products


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes over rows around one scan, and the scan's own plan.

    The workspace of a direction holds the weights of ``plans``, one after the other.

    Attributes:
        again: those that compute what forward's scan would have kept, where it kept its states alone.
    """

    scan: Plan
    first: tuple[RowPass, ...]
    last: tuple[RowPass, ...]
    again: tuple[RowPass, ...] = ()

    @property
    def each(self) -> tuple[RowPass, ...]:
        return *self.again, *self.first, *self.last

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.scan, *(plan for each in self.each for plan in each.plans))


@lru_cache(maxsize=256)
def passes(spec: CellSpec, widest: int, room: Room, *, reverse: bool, beside: int = LEAST) -> Passes | None:
    """Return the passes around a scan that goes forward, those before and those after it; or those around its reverse,
    the ones after it, which come first, and the ones before. None where there is no room for some stage.

    ``beside`` as in :func:`plan`, and of all tiles over rows.
    """
    scan = plan(spec, widest, reverse=reverse, beside=beside)
    program, offset = scan.program, scan.workspace

    def tried(stages: Iterable[Stage], *, back: bool = False) -> Plan:
        return rows_plan(program, tuple(map(_as_product, stages)), widest, offset, reverse=back, least=beside)

    def cut(stages: Iterable[Stage], *, back: bool = False) -> Plan:
        nonlocal offset
        found = tried(stages, back=back)
        offset = max(offset, found.workspace)
        return found

    def of_values(
        stages: tuple[Stage, ...],
        fit: Callable[[RowPass], bool] = room.holds,
        leaves: Iterable[str] = (),
        *,
        anywhere: bool = False,
    ) -> Iterator[RowPass]:
        runs = _runs(stages, lambda run: fit(RowPass(tried(run))), anywhere=anywhere)
        for number, run in enumerate(runs):
            read = {part.buffer for later in runs[number + 1 :] for stage in later for part in slices(stage)}
            made = frozenset(part.buffer for stage in run for part in written(stage))
            yield RowPass(cut(run), leaves=made & read.union(leaves))

    def of_gradients(again: tuple[Stage, ...], stages: tuple[Stage, ...]) -> Iterator[RowPass]:
        if room.holds(RowPass(tried(again), tried(stages, back=True))):
            yield RowPass(cut(again), cut(stages, back=True))
            return
        products = tuple(stage for stage in again if isinstance(stage, _WITH_TARGET))
        yield from of_values(products, room.joins, {stage.target.buffer for stage in products})
        finds: frozenset[Slice] = frozenset()

        def fit(run: tuple[Stage, ...]) -> bool:
            return room.joins(RowPass(tried(_alone(run)), tried(run, back=True)))

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
        last = tuple(of_gradients(inputs, program.before))
        kept = {b.name for b in program.buffers if b.keep == Keep.STORED}
        again = of_values(_leading_to(kept, scan), room.joins, kept, anywhere=True)
        found = Passes(scan, tuple(first), last, tuple(again))
    return found if all(map(room.bears, found.each)) else None


def _runs(
    stages: tuple[Stage, ...],
    fit: Callable[[tuple[Stage, ...]], bool],
    *,
    last_first: bool = False,
    anywhere: bool = False,
) -> list[tuple[Stage, ...]]:
    """Cut stages into few runs that fit, in the order in which they are run. No run writes what another has written,
    unless they may be cut ``anywhere``."""
    ends = [
        number
        for number in range(1, len(stages))
        if anywhere or not {*_written(stages[:number])} & {*_written(stages[number:])}
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
        case Normalize() | Activate() if stage.source != stage.target:
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


def _leading_to(buffers: Iterable[str], scan: Plan) -> tuple[Stage, ...]:
    """List the stages before and in the scan by which buffers come about from its states and samples."""
    wanted, found = set(buffers), list[Stage]()
    for stage in reversed((*scan.program.before, *scan.program.scan)):
        if isinstance(stage, (Recur, *_WITH_TARGET)) and wanted & {part.buffer for part in written(stage)}:
            found.append(stage)
            wanted |= {part.buffer for part in slices(stage)}
    return tuple(reversed(found))


_WITH_TARGET = Bias, Dense, Normalize, Activate, Add


def _touched(stage: Stage) -> Slice:
    return written(stage)[0]


def _as_product(stage: Stage) -> Stage:
    """Turn a bias of parameters as a product with nothing."""
    if isinstance(stage, Bias) and stage.terms:
        return Dense(Slice(stage.target.buffer, stage.target.start, 0), stage.target, (), stage.terms)
    return stage


def needed(scan: Plan) -> frozenset[str]:
    """List the buffers that weight gradients and the reverse scan find in memory: what products and
    normalisations read, and values."""
    sources = {s.source.buffer for s in scan.program.stages if isinstance(s, Dense | Normalize)}
    return frozenset(sources | set(scan.values))
