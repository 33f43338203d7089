"""What a program's scan holds, loads and stores, whichever GPU executor runs it. Pure.

Every buffer that the scan touches is cut, once, wherever some stage reads or writes a part of it. So a stage works on
whole parts, and an executor needs to know of nothing smaller than a part, and of nothing that lies across two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from ..cell.partition import partition
from ..cell.reach import reached
from ..cell.spec import CellSpec
from ..cell.stages import (
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
    Stage,
    forgotten,
)
from .base import Want


@dataclass(frozen=True, eq=False)
class Cut:
    """What the kernels of one cell's scan hold, load and store.

    Attributes:
        parts: of each buffer that the scan touches, in the order of columns.
        states: the buffers h and c of every layer, in the order of a state's tensors.
        given: buffers that the scan finds in memory: inputs, and those that ``before`` has begun.
        made: buffers that the scan writes, its states apart.
        read_after: slices of the scan's buffers that ``after`` reads, so that gradients come back on them.
        summed: buffers whose gradients weight gradients and ``before`` are made of.
    """

    program: Partition
    parts: dict[str, tuple[Slice, ...]]
    states: tuple[str, ...]
    given: tuple[str, ...]
    made: tuple[str, ...]
    read_after: tuple[Slice, ...]
    summed: tuple[str, ...]

    @property
    def sample(self) -> Sample | None:
        return next((s for s in self.program.scan if isinstance(s, Sample)), None)

    @property
    def divergence(self) -> Divergence | None:
        return next((s for s in self.program.stages if isinstance(s, Divergence)), None)

    @property
    def likelihood(self) -> Likelihood:
        return next(s for s in self.program.stages if isinstance(s, Likelihood))

    @property
    def resamples(self) -> bool:
        """Whether the rows of a sequence exchange their states."""
        return Resample() in self.program.scan

    @property
    def values(self) -> tuple[str, ...]:
        """The buffers, besides eps, that the reverse scan reads."""
        found: dict[str, None] = {}
        for stage in self.program.scan:
            if isinstance(stage, Activate | Normalize | Sample):
                found[stage.source.buffer] = None
            elif isinstance(stage, Recur) and stage.cell != "rnn":
                for part in (stage.gates, stage.candidate, stage.h if stage.cell == "gru" else stage.c):
                    if part is not None:
                        found[part.buffer] = None
        return tuple(found)

    def reached(self, results: Collection[str]) -> frozenset[str]:
        """Find the buffers that the gradients of some results reach, as :func:`vrnn_fast.cell.reach.reached` does; and
        what those of them that are states begin with."""
        found = reached(self.program, results)
        begun = (stage.target for stage in self.program.scan if isinstance(stage, Begin))
        return found | {initial(state).buffer for state in begun if state.buffer in found}

    def width(self, buffer: str) -> int:
        return next(b.width for b in self.program.buffers if b.name == buffer)

    def stored(self, keep: Keep | None, want: Want) -> tuple[str, ...]:
        """Return the buffers that forward writes to memory: results, what ``after`` reads, and what backward shall
        find.

        ``keep`` is the least that backward asks for, or None without a backward.
        """
        wanted = {s.buffer for s in self.read_after}
        if want.raw:
            wanted.add(self.likelihood.source.buffer)
        if want.prior and self.divergence is not None:
            wanted.add(self.divergence.prior.buffer)
        if self.sample is not None:
            wanted |= {s.buffer for s in (self.sample.source, self.sample.std, self.sample.z)}
        if keep is not None:
            wanted |= {b.name for b in self.program.buffers if b.keep >= keep}
        return tuple(name for name in (*self.states, *self.made) if name in wanted)

    def parts_of(self, part: Slice) -> tuple[Slice, ...]:
        """Return the parts that make up a slice."""
        end = part.start + part.width
        return tuple(p for p in self.parts.get(part.buffer, ()) if part.start <= p.start < end)


def learned(spec: CellSpec) -> Partition:
    """Write the program that gradients go back through. Pure.

    That of the cell; but of a particle filter what weighs a particle stands behind the scan, since no gradient passes
    from a weight to a state.
    """
    if spec.measure != "particle_filter":
        return partition(spec)
    weighed = partition(replace(spec, measure="log_weight"))
    return replace(weighed, scan=(*weighed.scan, Resample()))


def cut(program: Partition) -> Cut:
    """Cut a program's scan into parts. Pure."""
    edges: dict[str, set[int]] = {}
    for stage in program.scan:
        for part in _parts(stage):
            edges.setdefault(part.buffer, set()).update((part.start, part.start + part.width))
    while any(_share_edges(edges, stage) for stage in program.scan):
        pass
    parts = {
        buffer: tuple(Slice(buffer, start, end - start) for start, end in pairwise(sorted(at)))
        for buffer, at in edges.items()
    }
    recur = [s for s in program.scan if isinstance(s, Recur)]
    states = tuple(s.h.buffer for s in recur) + tuple(s.c.buffer for s in recur if s.c is not None)
    made = [part.buffer for stage in program.scan for part in written(stage)]
    begun = [s.target.buffer for s in program.before if isinstance(s, Bias | Dense)]
    in_scan = {*states, *made}
    inputs = [name for name in ("x", "eps", "noise", "cond") if name in parts and name not in in_scan]
    begun = [name for name in begun if name in parts]
    read: list[Slice] = []
    for stage in program.after:
        if isinstance(stage, Dense) and stage.source.buffer in in_scan:
            read.append(stage.source)
        elif isinstance(stage, Divergence):
            read += (s for s in (stage.posterior, stage.prior, stage.z) if s is not None and s.buffer in in_scan)
    summed = [s.target.buffer for s in program.scan if isinstance(s, Dense | Normalize)]
    summed += [initial(s.target).buffer for s in program.scan if isinstance(s, Begin)]
    return Cut(
        program,
        parts,
        states,
        _unique((*begun, *inputs)),
        _unique(made),
        tuple(dict.fromkeys(read)),
        _unique((*summed, *begun)),
    )


def initial(state: Slice) -> Slice:
    """Name what a state begins with where a sequence begins anew: its gradient, row by row, is that of a parameter."""
    return replace(state, buffer=f"{state.buffer}.initial")


def with_initial_states(program: Partition) -> Partition:
    """Give a program room for what states begin with."""
    begun = [initial(stage.target) for stage in program.scan if isinstance(stage, Begin)]
    return replace(program, buffers=(*program.buffers, *(Buffer(p.buffer, p.width, Keep.NEVER) for p in begun)))


def halves(part: Slice) -> tuple[Slice, Slice]:
    """Return the mean and the raw deviation of [mean | raw]."""
    half = part.width // 2
    return replace(part, width=half), replace(part, start=part.start + half, width=half)


def observed(stage: Likelihood) -> Slice:
    """Return what a likelihood looks at."""
    return Slice("x", 0, stage.source.width // (2 if stage.kind == "gaussian" else 1))


def slices(stage: object) -> Iterator[Slice]:
    """Return all that a stage reads or writes by name."""
    return (value for value in vars(stage).values() if isinstance(value, Slice))


def written(stage: Stage) -> tuple[Slice, ...]:
    """Return what a stage of the scan writes, its states and the sums of a row apart."""
    match stage:
        case Bias() | Dense() | Normalize() | Activate() | Add():
            return (stage.target,)
        case Sample():
            return stage.std, stage.z
        case Draw():
            return (stage.x,)
        case Recur():
            return (stage.gates,) if stage.output is None else (stage.gates, stage.output)
        case Divergence() | Likelihood() | Resample() | Begin():
            return ()
        case _:
            forgotten(stage)


def _parts(stage: object) -> Iterator[Slice]:
    """Yield the slices of one stage, where stages need tiles of their own."""
    yield from slices(stage)
    if isinstance(stage, Begin):
        yield initial(stage.target)
    elif isinstance(stage, Dense):
        yield from (Slice(stage.target.buffer, stage.target.start + b.at, b.rows) for b in stage.blocks)
    elif isinstance(stage, Sample):
        yield from halves(stage.source)
        yield replace(stage.z, buffer="eps")
    elif isinstance(stage, Divergence):
        yield from (*halves(stage.posterior), *halves(stage.prior))
        if stage.z is not None:
            yield replace(stage.z, buffer="eps")
    elif isinstance(stage, Draw | Likelihood):
        if stage.kind == "gaussian":
            yield from halves(stage.source)
        if isinstance(stage, Likelihood):
            yield observed(stage)
    elif isinstance(stage, Recur):
        gates, width = stage.gates, stage.h.width
        yield from (Slice(gates.buffer, gates.start + at, width) for at in range(0, gates.width, width))


def _share_edges(edges: dict[str, set[int]], stage: object) -> bool:
    """Cut what a stage reads column by column where it cuts what it writes, and the other way; tell whether any is
    new."""
    if not isinstance(stage, Activate | Normalize | Add) or stage.source == stage.target:
        return False
    source, target = stage.source, stage.target
    inside = {at - source.start for at in edges[source.buffer]} | {at - target.start for at in edges[target.buffer]}
    inside = {at for at in inside if 0 <= at <= source.width}
    before = len(edges[source.buffer]) + len(edges[target.buffer])
    edges[source.buffer] |= {at + source.start for at in inside}
    edges[target.buffer] |= {at + target.start for at in inside}
    return len(edges[source.buffer]) + len(edges[target.buffer]) > before


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
