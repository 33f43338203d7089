"""The passes over all rows, before and after a scan: each the program of a scan without a state. Pure.

Forward there is one before the scan and one after it. Backward, one before the reverse scan computes again what was not
kept, and the gradients of likelihood, decoder, divergence and prior; one after it goes back to x and cond. Where a
user's ``recompute`` kept the states alone, the pass before forward's scan runs again, and another makes the gates anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from ...cell.partition import generation, partition
from ...cell.reach import reached
from ...cell.spec import CellSpec
from ...cell.stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Buffer,
    Dense,
    Divergence,
    Keep,
    Likelihood,
    Normalize,
    Partition,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
)
from ..cut import Cut, cut, halves, learned, observed
from .forward import ForwardUnits, forward, with_room
from .order import planned
from .plan import TOTALS, KernelPlan, Kind, Unit, gradient
from .reverse import ReverseUnits

OF_STATES = "state"  # among the names of results that have a gradient: any final state


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass, and what it leaves in memory.

    Attributes:
        stored: the buffers that it writes; gradients begin with ``d``.
        gradients: the slices whose gradients these are.
    """

    plan: KernelPlan
    stored: tuple[str, ...]
    gradients: tuple[Slice, ...] = ()


def _target(stage: Stage) -> str | None:
    """Return the buffer that a stage adds to or works on."""
    return stage.target.buffer if isinstance(stage, Bias | Dense | Normalize | Activate | Add) else None


def _whole(program: Partition, stages: Iterable[Stage], begun: Iterable[str] = (), more: Iterable[Buffer] = ()) -> Cut:
    """Cut what a pass over these stages holds: what none of them makes is in memory, and so is what is ``begun``."""
    own = tuple(stages)
    found = cut(replace(program, buffers=(*program.buffers, *more), before=(), scan=own, after=()))
    made = {_target(stage) for stage in own} - set(begun)
    return replace(found, states=(), given=tuple(name for name in found.parts if name not in made))


@lru_cache(maxsize=256)
def before(spec: CellSpec) -> Pass:
    """Compute all that depends on x and cond alone. Pure."""
    program = partition(spec)
    whole = _whole(program, program.before)
    found = ForwardUnits(whole)
    for stage in program.before:
        found.add(stage)
    found.layers(part for name in whole.parts for part in whole.parts[name] if part.buffer not in ("x", "cond"))
    scan = forward(spec).cut
    stored = tuple(name for name in scan.given if name in whole.parts and name not in whole.given)
    return Pass(planned(whole, found.units, found.given, found.biases, is_pass=True), stored)


@lru_cache(maxsize=256)
def alone_before(spec: CellSpec, *, mean: bool) -> Pass | None:
    """Compute what depends on cond alone, where a cell runs on its own; None if nothing does. Pure."""
    program = generation(spec, mean=mean)
    if not program.before:
        return None
    whole = _whole(program, program.before)
    found = ForwardUnits(whole)
    for stage in program.before:
        found.add(stage)
    found.layers(part for name in whole.parts for part in whole.parts[name] if part.buffer not in ("x", "cond"))
    stored = tuple(name for name in whole.parts if name not in whole.given)
    return Pass(planned(whole, found.units, found.given, found.biases, is_pass=True), stored)


@lru_cache(maxsize=256)
def after(spec: CellSpec) -> Pass:
    """Compute prior, divergence, decoder and likelihood, whose raw output it stores. Pure."""
    program = with_room(partition(spec))
    whole = _whole(program, program.after)
    found = ForwardUnits(whole)
    for stage in program.after:
        if isinstance(stage, Divergence):  # reads what the scan has left in memory as if a unit had just made it
            found.layers(part for part in (halves(stage.posterior)[0], stage.posterior_std, stage.z) if part)
        found.add(stage)
    stored = (whole.likelihood.source.buffer,)
    return Pass(planned(whole, found.units, found.given, found.biases, is_pass=True), stored)


@lru_cache(maxsize=256)
def again(spec: CellSpec) -> Pass:
    """Compute what forward's scan would have kept, had it not been told to keep the states alone. Pure."""
    program = learned(spec)
    stages = tuple(stage for stage in program.scan if not isinstance(stage, Begin | Sample | Resample))
    begun = forward(spec).cut.given
    whole = _whole(program, stages, begun)
    found = _Again(whole)
    for stage in stages:
        found.add(stage)
    kept = {b.name for b in program.buffers if b.keep == Keep.STORED}
    found.layers(part for name in whole.parts for part in whole.parts[name] if name in kept)
    stored = tuple(name for name in whole.parts if name in kept)
    return Pass(planned(whole, found.units, found.given, found.biases, is_pass=True), stored)


class _Again(ForwardUnits):
    """Every state is in memory."""

    def recur(self, stage: Recur) -> None:
        gates = self.gates(stage)
        old = {"gru": stage.h, "lstm": stage.c, "rnn": None}[stage.cell]
        kinds: dict[str, Kind] = {"gru": "gru_again", "lstm": "lstm_again", "rnn": "rnn_again"}
        result = self.active.get(gates[0])
        writes = tuple(part for part in (*gates, stage.output, result) if part is not None)
        kind = self.activation.get(gates[0], "identity")
        self.unit(kinds[stage.cell], gates, (old, stage.output, result), writes=writes, activation=kind)


@lru_cache(maxsize=256)
def after_back(spec: CellSpec, upstream: frozenset[str], wanted: frozenset[str]) -> Pass | None:
    """Compute what was not kept, and the gradients of what follows the scan; None if there is nothing. Pure.

    Args:
        upstream: the names of results with a gradient, OF_STATES for any final state.
        wanted: those of x, eps and cond whose gradients somebody wants.
    """
    program = with_room(learned(spec))
    reach = reached(program, set(upstream))
    there = {b.name for b in program.buffers if b.keep >= Keep.STORED} | {"x", "eps", "cond"}
    there |= {part.buffer for s in program.scan if isinstance(s, Sample) for part in (s.std, s.z)}
    back = tuple(stage for stage in program.after if _has_gradient(stage, reach, upstream))
    made = {_target(stage) for stage in (*program.scan, *back)} - {None, *there}
    stages = [s for s in (*program.before, *program.scan) if _target(s) in made]
    stages += [s for s in back if _target(s) not in there]
    outside = [Buffer(f"u {name}", width, Keep.NEVER) for name, width in _widths(spec).items()]
    whole = _whole(program, stages, more=outside)
    found = _AfterBack(whole, spec, reach, upstream, wanted)
    for stage in whole.program.scan:
        if _target(stage) is not None:
            found.forward.add(stage)
    for stage in reversed(back):
        found.add(stage)
    found.finish()
    return found.collected()


def _has_gradient(stage: Stage, reach: frozenset[str], upstream: frozenset[str]) -> bool:
    match stage:
        case Likelihood():
            return stage.source.buffer in reach
        case Divergence():
            return stage.prior.buffer in reach or bool(upstream & {"mean", "std"})
        case _:
            return _target(stage) in reach


def _widths(spec: CellSpec) -> dict[str, int]:
    """Return the widths of results whose gradients come from outside, by name."""
    latent = dict.fromkeys(("z", "mean", "std", "prior_mean", "prior_std"), spec.latent_size)
    return latent | {"raw": spec.output_size}


class _Back(ReverseUnits):
    """Collects the units of a pass: values by ``forward``, then gradients.

    Attributes:
        left: the slices whose gradients are left in memory.
    """

    def __init__(self, whole: Cut, given: Iterable[Slice]) -> None:
        super().__init__(whole, given)
        self.forward = ForwardUnits(whole)
        self.left: list[Slice] = []

    def values(self, parts: Iterable[Slice]) -> None:
        """Add a unit for each of these values, if it is not in memory."""
        self.forward.layers(parts)
        self.fresh |= {part for unit in self.forward.units for part in unit.writes} - self.forward.given

    def values_of(self, sums: Slice) -> None:
        self.values((sums,))

    def made_here(self) -> tuple[Slice, ...]:
        """List the parts that stages of this pass make."""
        return tuple(p for name in self.cut.parts for p in self.cut.parts[name] if name not in self.cut.given)

    def leave(self, *parts: Slice | None) -> None:
        self.left += [part for part in parts if part is not None]

    def collected(self) -> Pass | None:
        """Return the pass; None if there is nothing to do."""
        units = (*self.forward.units, *self.units)
        if not units:
            return None
        biases = self.forward.biases | self.biases
        plan = planned(self.cut, units, self.given | self.forward.given, biases, is_pass=True)
        values = (part.buffer for unit in self.forward.units for part in unit.writes)
        made = (name for name in values if name in self.cut.parts and name not in self.cut.given)
        slices = tuple(dict.fromkeys(self.left))
        stored = (*made, *(f"d {part.buffer}" for part in slices))
        return Pass(plan, tuple(dict.fromkeys(stored)), slices)


class _AfterBack(_Back):
    """Of the likelihood, the divergence and their networks."""

    def __init__(
        self, whole: Cut, spec: CellSpec, reach: frozenset[str], upstream: frozenset[str], wanted: frozenset[str]
    ) -> None:
        super().__init__(whole, ())
        self.spec, self.reach, self.upstream, self.wanted = spec, reach, upstream, wanted
        self.moved: Slice | None = None  # what the divergence adds to the gradient of z
        after = {s.source for s in learned(spec).after if isinstance(s, Activate)}
        own = {part for target in after for part in whole.parts_of(target)}
        self.activation = {part: kind for part, kind in self.activation.items() if part in own}
        self.sums = {s.source for s in learned(spec).after if isinstance(s, Likelihood)}
        self.sums |= {s.prior for s in learned(spec).after if isinstance(s, Divergence)}

    def add(self, stage: object) -> None:
        self.but_sums()
        match stage:
            case Likelihood():
                self.likelihood(stage)
            case Divergence():
                self.divergence(stage)
            case Bias():
                pass
            case _:
                super().add(stage)

    def but_sums(self) -> None:
        """Add a unit for every value but those sums that a gradient is computed from."""
        ends = {part for own in self.sums for part in self.cut.parts_of(own)}
        self.values(part for part in self.made_here() if part not in ends)

    def outside_of(self, name: str, width: int, start: int = 0) -> Slice | None:
        """Name a gradient that comes from outside, if it does."""
        return Slice(f"u {name}", start, width) if name in self.upstream else None

    def _unit(self, kind: Kind, sums: tuple[Slice, ...], others: tuple[Slice | None, ...], **options: object) -> None:
        """Add the unit of a gradient that is computed from sums of values."""
        made = tuple(p for p in others if p is not None and p.buffer.startswith("d "))
        self.made.update(made)
        held = options.get("holds", ())
        reads, rereads = self.in_memory(p for p in others if p not in made and p not in held)  # type: ignore[operator]
        products = () if options.get("resumes") else tuple(p for part in sums for p in self.forward.products[part])
        unit = Unit(kind, sums, others, made, reads=reads, products=products, rereads=rereads)
        self.units.append(replace(unit, **options))  # type: ignore[arg-type]

    def likelihood(self, stage: Likelihood) -> None:
        """Begin the gradient of the decoder's output with its sums, for it is not kept."""
        groups: tuple[tuple[Slice, ...], ...] = tuple((part,) for part in self.cut.parts_of(stage.source))
        if stage.kind == "gaussian":
            groups = (halves(stage.source),)
        fused, x = "nll" in self.upstream and stage.kind != "external", observed(stage)
        d_x = gradient(x) if fused and "x" in self.wanted else None
        total = TOTALS.index("nll") if fused else None
        for sums in groups:
            none = [None] * (2 - len(sums))
            outside = (self.outside_of("raw", p.width, p.start - stage.source.start) for p in sums)
            others = (x if fused else None, *map(gradient, sums), *none, d_x, *outside)
            self._unit("likelihood_back", sums, others, transform=stage.transform, total=total)
            self.leave(*sums)
        self.leave(None if d_x is None else x)

    def divergence(self, stage: Divergence) -> None:
        """Begin that of the prior's likewise, and of the posterior's, which is there in float32."""
        prior, posterior, latent = halves(stage.prior), halves(stage.posterior), self.spec.latent_size
        total = TOTALS.index("kl") if "kl" in self.upstream else None
        self.values(posterior)
        resumes = prior[0] in self.forward.taken
        self.values(prior[1:] if resumes else ())
        reaches = stage.prior.buffer in self.reach
        z: tuple[Slice | None, Slice | None] = None, None
        if stage.z is not None and total is not None:
            z = stage.z, replace(stage.z, buffer="eps")
        d_prior = tuple(gradient(part) if reaches else None for part in prior)
        moved: tuple[Slice | None, Slice | None] = None, None
        if z[1] is not None:
            moved = Slice("d moved", 0, latent), gradient(z[1]) if "eps" in self.wanted else None
        others = (
            *(*posterior, *z, *map(gradient, posterior), *d_prior, *moved),
            *(self.outside_of(name, latent) for name in ("mean", "std", "prior_mean", "prior_std")),
        )
        holds = (*posterior, *(prior if resumes else ()))
        options = {"transform": stage.transform, "posterior": self.spec.std, "total": total}
        self._unit("divergence_back", prior, others, **options, holds=holds, resumes=resumes)
        self.leave(*posterior, *(prior if reaches else ()), z[1] if moved[1] else None)
        self.moved = moved[0]

    def dense(self, stage: Dense) -> None:
        for target in self.cut.parts_of(stage.target):
            self.layer(target)
            self.leave(target)
            if stage.source.buffer == "cond" and "cond" not in self.wanted:
                continue
            self.pass_on(stage, target)

    def finish(self) -> None:
        """Add the gradients of what the scan has made, and of cond: behind the products that read them."""
        self.but_sums()
        sample = next((s for s in learned(self.spec).scan if isinstance(s, Sample)), None)
        if sample is not None:
            z, outside = gradient(sample.z), self.outside_of("z", sample.z.width)
            if outside is not None:
                self.outside[z] = outside
            if outside is not None or self.moved is not None:
                self.products.setdefault(z, [])
        for own in (own for own in tuple(self.products) if own not in self.made):
            more = self.moved if own.buffer == "d z" else None
            outside, holds = self.outside.get(own), () if more is None else (more,)
            if self.products[own] or more is not None or outside is not None:
                self.unit("layer_back", own, (None, more, outside), (own,), holds=holds)
                self.leave(replace(own, buffer=own.buffer.removeprefix("d ")))


@lru_cache(maxsize=256)
def before_back(spec: CellSpec, wanted: frozenset[str], begun: frozenset[str]) -> Pass | None:
    """Compute the gradients of what comes before the scan, and of x and cond where they are ``wanted``; None if there
    are none. Pure.

    Args:
        begun: those of x and cond whose gradients the pass before the reverse scan has left.
    """
    program = with_room(learned(spec))
    sums = {name for name in cut(program).given if name in map(_target, program.before)}
    values = tuple(s for s in program.before if _target(s) not in sums)
    whole = _whole(program, program.before)
    there = {gradient(p) for name in (*sums, *begun) for p in whole.parts.get(name, ())}
    found = _BeforeBack(whole, there, sums, wanted)
    for stage in values:
        found.forward.add(stage)
    found.values(part for part in found.made_here() if part.buffer not in sums)
    for stage in reversed(program.before):
        found.add(stage)
    for own in tuple(found.products):
        found.layer(replace(own, buffer=own.buffer.removeprefix("d ")))
    return found.collected()


class _BeforeBack(_Back):
    """Of phi_x, and to x and cond.

    Args:
        sums: buffers that the scan begins with, whose gradients are in memory.
    """

    def __init__(self, whole: Cut, given: set[Slice], sums: set[str], wanted: frozenset[str]) -> None:
        super().__init__(whole, given)
        self.sums, self.wanted = sums, wanted

    def add(self, stage: object) -> None:
        if not isinstance(stage, Bias):
            super().add(stage)

    def dense(self, stage: Dense) -> None:
        goes_on = stage.source.buffer not in ("x", "cond") or stage.source.buffer in self.wanted
        for target in self.cut.parts_of(stage.target):
            if goes_on or stage.target.buffer not in self.sums:
                self.layer(target)
            if goes_on:
                self.pass_on(stage, target)

    def layer(self, part: Slice) -> None:
        super().layer(part)
        self.leave(None if part.buffer in self.sums else part)
