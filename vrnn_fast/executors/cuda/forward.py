"""The units of a forward scan: h_{t-1} to h_t. What does not hang on the chain, passes compute over all rows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ...cell.partition import generation, partition
from ...cell.spec import Activation, CellSpec
from ...cell.stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Buffer,
    Dense,
    Divergence,
    Draw,
    Keep,
    Likelihood,
    Normalize,
    Partition,
    Recur,
    Resample,
    Sample,
    Slice,
)
from ..cut import Cut, cut, halves, observed, with_initial_states
from .cluster import Cluster, ranks_of, shared_out, through_of
from .order import planned
from .plan import CHOSEN, TOTALS, KernelPlan, Kind, Product, Unit, moments, scale, scaled, shares

MEANS = ("mean", "prior_mean")  # results that are a part of a buffer of the program


def with_room(program: Partition) -> Partition:
    """Give a program room for what kernels leave besides its buffers: the means of [mean | raw], and what the gradients
    of scales and of initial states are the sums of."""
    program = with_initial_states(program)
    sample = next((s for s in program.scan if isinstance(s, Sample)), None)
    latent = () if sample is None else (Buffer(name, sample.z.width, Keep.NEVER) for name in MEANS)
    of = {scaled(s.target).buffer: s.target.buffer for s in program.stages if isinstance(s, Normalize)}
    widths = {b.name: b.width for b in program.buffers}
    normal = (Buffer(name, widths[own], Keep.NEVER) for name, own in of.items())
    return replace(program, buffers=(*program.buffers, *latent, *normal))


@lru_cache(maxsize=256)
def forward(spec: CellSpec, cluster: Cluster | None = None) -> KernelPlan:
    """Lay out the forward scan of a cell that is given x. Pure.

    Raises:
        TypeError: a stage of the scan has no unit here.
    """
    return _planned(cut(with_room(partition(spec))), cluster)


@lru_cache(maxsize=256)
def alone(spec: CellSpec, cluster: Cluster | None = None, *, mean: bool) -> KernelPlan:
    """Lay out the scan of a cell that runs on its own, and feeds back its outputs' means or samples. Pure."""
    return _planned(cut(generation(spec, mean=mean)), cluster)


def _planned(whole: Cut, cluster: Cluster | None) -> KernelPlan:
    found = ForwardUnits(whole)
    for stage in whole.program.scan:
        found.add(stage)
    found.layers(part for own in whole.read_after for part in whole.parts_of(own))
    units = shared_out(found.units, cluster)
    return planned(whole, units, found.given, found.biases, ranks=ranks_of(cluster), through=through_of(cluster))


class ForwardUnits:
    """Collects units, stage by stage."""

    def __init__(self, whole: Cut) -> None:
        self.cut, self.parts_of = whole, whole.parts_of
        self.units: list[Unit] = []
        self.biases: dict[Slice, Dense] = {}
        self.given = {part for name in whole.given for part in whole.parts.get(name, ())}
        self.products: dict[Slice, list[Product]] = defaultdict(list)
        self.activation: dict[Slice, Activation] = {}  # of sums
        self.active: dict[Slice, Slice] = {}  # their results, where these are apart
        self.added: dict[Slice, Slice] = {}
        self.normal: dict[Slice, Normalize] = {}  # by its result
        self.taken: set[Slice] = set()

    def add(self, stage: object) -> None:
        match stage:
            case Dense():
                self.dense(stage)
            case Bias():
                self.bias(stage)
            case Begin():
                self.biases[stage.target] = Dense(stage.target, stage.target, (), stage.terms)
            case Normalize():
                self.normalize(stage)
            case Activate():
                self.activate(stage)
            case Add():
                self.layers(self.parts_of(stage.source))
                self.added |= dict(zip(self.parts_of(stage.target), self.parts_of(stage.source), strict=True))
            case Sample():
                self.sample(stage)
            case Divergence():
                self.divergence(stage)
            case Likelihood():
                self.likelihood(stage)
            case Draw():
                sums = halves(stage.source) if stage.kind == "gaussian" else (stage.source,)
                others = None if stage.mean else stage.noise, stage.x
                self.unit("draw", sums, others, writes=(stage.x,), transform=stage.transform, means=stage.mean)
            case Recur():
                self.recur(stage)
            case Resample():
                self.resample()
            case _:
                raise TypeError(f"{type(stage).__name__} has no unit in a CUDA scan")

    def unit(
        self,
        kind: Kind,
        sums: Iterable[Slice],
        others: tuple[Slice | None, ...],
        writes: tuple[Slice, ...] = (),
        **options: Any,
    ) -> None:
        own = tuple(sums)
        self.taken.update(own)
        begun = tuple(part for part in own if part in self.given)
        reads = (*begun, *(part for part in others if part is not None and part in self.given))
        products = tuple(p for part in own for p in self.products[part])
        self.units.append(Unit(kind, own, others, writes, reads=reads, products=products, **options))

    def layers(self, parts: Iterable[Slice]) -> None:
        """Add a unit for each part that nobody has computed yet, or brought in from memory."""
        for part in map(self.sums_of, parts):
            if part in self.taken:
                continue
            if part in self.normal:
                self.normalized(part)
            elif part in self.products or part in self.given:
                if any(stage.source == part for stage in self.normal.values()):
                    self.unit("moments", (part,), (), (part, moments(part)), normalizes=part)
                    continue
                more, result = self.added.get(part), self.active.get(part)
                holds, writes = () if more is None else (more,), (part,) if result is None else (part, result)
                kind = self.activation.get(part, "identity")
                self.unit("layer", (part,), (more, result), writes=writes, holds=holds, activation=kind)

    def normalized(self, part: Slice) -> None:
        """Add the unit of a normalisation, behind that of the sums: it waits for the moments of all of their tiles."""
        stage = self.normal[part]
        sums, result = stage.source, self.active.get(part)
        self.layers((sums,))
        self.unit(
            *("normalize", (part, scale(part)), (None, result)),
            writes=(part,) if result is None else (part, result),
            holds=(sums,),
            waits=(moments(sums),),
            normalizes=sums,
            eps=stage.eps,
            activation=self.activation.get(part, "identity"),
        )

    def normalize(self, stage: Normalize) -> None:
        """Keep what is done to sums once they are complete; its result begins with the shift."""
        self.normal[stage.target] = stage
        self.biases |= scaling(stage)

    def activate(self, stage: Activate) -> None:
        """Keep what is done to sums once they are complete."""
        for sums, result in zip(self.parts_of(stage.source), self.parts_of(stage.target), strict=True):
            self.activation[sums] = stage.activation
            if result != sums:
                self.active[sums] = result

    def sums_of(self, part: Slice) -> Slice:
        """Return what a result is computed from, where that is apart."""
        return next((sums for sums, result in self.active.items() if result == part), part)

    def bias(self, stage: Bias) -> None:
        """Begin sums with biases, or with zero, to which products may add."""
        for target in self.parts_of(stage.target):
            self.products.setdefault(target, [])
            if stage.terms:
                self.biases[target] = Dense(stage.target, stage.target, (), stage.terms)

    def dense(self, stage: Dense) -> None:
        self.layers(self.parts_of(stage.source))
        for target in self.parts_of(stage.target):
            if stage.bias is not None:
                self.biases[target] = stage
            for source in self.parts_of(stage.source):
                self.products[target].append(Product(source, target, stage))

    def sample(self, stage: Sample) -> None:
        mean, raw = halves(stage.source)
        start = self.added.get(mean)
        others = replace(stage.z, buffer="eps"), stage.std, stage.z, start, replace(stage.z, buffer="mean")
        writes, holds = (mean, raw, stage.std, stage.z), () if start is None else (start,)
        self.unit("sample", (mean, raw), others, writes=writes, holds=holds, transform=stage.transform)

    def divergence(self, stage: Divergence) -> None:
        """Add the units of a divergence; of a prior that the posterior starts from, the sums are there."""
        prior, (mean, _), total = halves(stage.prior), halves(stage.posterior), TOTALS.index("kl")
        resumes = prior[0] in self.taken
        self.layers(prior[1:] if resumes else ())
        eps = None if stage.z is None else replace(stage.z, buffer="eps")
        prior_mean = replace(stage.prior_std, buffer="prior_mean")
        others = mean, stage.posterior_std, stage.z, eps, stage.prior_std, prior_mean
        holds: tuple[Slice, ...] = (stage.z or mean, stage.posterior_std)
        if resumes:
            reads = () if eps is None else (eps,)
            resumed = Unit("divergence", prior, others, reads=reads, holds=(*holds, *prior), resumes=True)
            self.units.append(replace(resumed, transform=stage.transform, total=total, writes=(shares(total),)))
        else:
            writes = (shares(total),)
            self.unit("divergence", prior, others, writes, holds=holds, transform=stage.transform, total=total)
        self.units.append(Unit("total", prior[:1], total=total))

    def likelihood(self, stage: Likelihood) -> None:
        """Add the units of a likelihood; of one that is outside of the launch, those of what it looks at."""
        sums = halves(stage.source) if stage.kind == "gaussian" else (stage.source,)
        if stage.kind == "external":
            self.layers(self.parts_of(stage.source))
            return
        total = TOTALS.index("nll")
        others, writes = (observed(stage),), (shares(total),)
        self.unit("likelihood", sums, others, writes, transform=stage.transform, total=total)
        self.units.append(Unit("total", sums[:1], total=total))

    def gates(self, stage: Recur) -> tuple[Slice, ...]:
        """Return the sums of a recurrent layer."""
        gates = tuple(map(self.sums_of, gates_of(stage)))
        return gates if stage.candidate is None else (*gates, stage.candidate)

    def recur(self, stage: Recur) -> None:
        gates, sums = gates_of(stage), self.gates(stage)
        others: tuple[Slice | None, ...] = stage.h, stage.output, stage.c, None, None
        if self.cut.resamples:
            others = None, stage.output, None, *reached(stage)
        others = *others, self.active.get(sums[0])
        own = dict.fromkeys((*gates, *sums[: len(gates)], *others))
        writes = tuple(part for part in own if part is not None and part != stage.c)
        kind = self.activation.get(sums[0], "identity")
        self.unit(stage.cell, sums, others, writes=writes, activation=kind)

    def resample(self) -> None:
        """Let each row take the states over that another one, or it itself, has reached."""
        weights = tuple(shares(unit.total) for unit in self.units if unit.kind == "total" and unit.total is not None)
        self.units.append(Unit("resample", (CHOSEN,), writes=(CHOSEN,), waits=weights))
        for stage in self.cut.program.scan:
            if isinstance(stage, Recur):
                h, c = reached(stage)
                others, holds = (stage.h, None, stage.c, h, c), (h,) if c is None else (h, c)
                waits = gates_of(stage)[0], CHOSEN
                self.units.append(Unit("take", (h,), others, writes=(stage.h,), holds=holds, waits=waits))


def scaling(stage: Normalize) -> dict[Slice, Dense]:
    """Return what scale and shift of a normalisation begin with: parameters alone."""
    gain, shift = (replace(term, at=0) for term in stage.terms)
    own = {scale(stage.target): gain, stage.target: shift}
    return {part: Dense(part, part, (), (term,)) for part, term in own.items()}


def reached(stage: Recur) -> tuple[Slice, Slice | None]:
    """Name h and c of a particle filter as a step has left them, before its rows exchange them."""
    return Slice(f"reached {stage.h.buffer}", 0, stage.h.width), (
        None if stage.c is None else Slice(f"reached {stage.c.buffer}", 0, stage.c.width)
    )


def gates_of(stage: Recur) -> tuple[Slice, ...]:
    """Return the gates of a cell update, each as wide as the state."""
    width = stage.h.width
    starts = range(stage.gates.start, stage.gates.start + stage.gates.width, width)
    return tuple(Slice(stage.gates.buffer, start, width) for start in starts)
