"""The scan of a partition, cut into what a GPU program holds: tiles of columns, and the weights between them. Pure.

Triton's tensors have powers of two for sizes and cannot be sliced. So every buffer that the scan touches is cut, once,
wherever some stage reads or writes a part of it, and the parts into tiles of at most ``widest`` columns, padded to a
power of two. A dense stage is then one small product for each pair of a source's and a target's tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import assert_never

from ...cell.partition import generation, partition
from ...cell.spec import CellSpec
from ...cell.stages import (
    Activate,
    Add,
    Bias,
    Dense,
    Divergence,
    Draw,
    Keep,
    Likelihood,
    Partition,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
)
from ..base import Want

LEAST = 16  # columns of a tile: what tl.dot takes in every dtype


def padded(width: int) -> int:
    """The columns of a tile that holds ``width`` of them."""
    return max(LEAST, 1 << (width - 1).bit_length())


def pieces(width: int, widest: int) -> tuple[int, ...]:
    """``width`` columns as the widths of tiles."""
    return tuple(min(widest, width - start) for start in range(0, width, widest))


@dataclass(frozen=True)
class Tile:
    """The columns [start, start + width) of a buffer, in a tensor of ``padded`` columns."""

    buffer: str
    start: int
    width: int

    @property
    def padded(self) -> int:
        return padded(self.width)

    @property
    def name(self) -> str:
        """In a kernel."""
        return f"{identifier(self.buffer)}_{self.start}"


def identifier(buffer: str) -> str:
    return buffer.replace(".", "_")


@dataclass(frozen=True)
class Matrix:
    """The stacked weights of one dense stage of the scan, and where they and their bias begin in the workspace.

    (target width, source width), row-major, ``stride`` from row to row; then the bias, where the stage has one.
    """

    number: int
    stage: Dense
    offset: int

    @property
    def stride(self) -> int:
        return -(-self.stage.source.width // LEAST) * LEAST

    @property
    def bias(self) -> int:
        return self.offset + self.stage.target.width * self.stride

    @property
    def end(self) -> int:
        size = self.bias + (0 if self.stage.bias is None else self.stage.target.width)
        return -(-size // LEAST) * LEAST


@dataclass(frozen=True, eq=False)
class Plan:
    """What the kernels of one cell's scan hold, load and store.

    Attributes:
        tiles: of each buffer that the scan touches, in the order of columns.
        matrices: of each dense stage of the scan, in the order of stages.
        states: the buffers h and c of every layer, in the order of a state's tensors.
        given: buffers that the scan finds in memory: inputs, and those that ``before`` has begun.
        made: buffers that the scan writes, its states apart.
        read_after: slices of the scan's buffers that ``after`` reads, so that gradients come back on them.
        summed: buffers whose gradients weight gradients and ``before`` are made of.
    """

    program: Partition
    tiles: dict[str, tuple[Tile, ...]]
    matrices: tuple[Matrix, ...]
    states: tuple[str, ...]
    given: tuple[str, ...]
    made: tuple[str, ...]
    read_after: tuple[Slice, ...]
    summed: tuple[str, ...]

    @property
    def workspace(self) -> int:
        """Elements of all weights and biases of the scan."""
        return self.matrices[-1].end

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
            if isinstance(stage, Activate):
                found[stage.target.buffer] = None
            elif isinstance(stage, Sample):
                found[stage.source.buffer] = None
            elif isinstance(stage, Recur) and stage.cell != "rnn":
                for part in (stage.gates, stage.candidate, stage.h if stage.cell == "gru" else stage.c):
                    if part is not None:
                        found[part.buffer] = None
        return tuple(found)

    def matrix(self, stage: Dense) -> Matrix:
        """The weights of a dense stage of the scan."""
        return next(m for m in self.matrices if m.stage == stage)

    def width(self, buffer: str) -> int:
        return next(b.width for b in self.program.buffers if b.name == buffer)

    def stored(self, keep: Keep | None, want: Want) -> tuple[str, ...]:
        """The buffers that forward writes to memory: results, what ``after`` reads, and what backward shall find.

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

    def tiles_of(self, part: Slice) -> tuple[Tile, ...]:
        """The tiles that make up a slice."""
        end = part.start + part.width
        return tuple(t for t in self.tiles.get(part.buffer, ()) if part.start <= t.start < end)


def halves(part: Slice) -> tuple[Slice, Slice]:
    """The mean and the raw deviation of [mean | raw]."""
    half = part.width // 2
    return replace(part, width=half), replace(part, start=part.start + half, width=half)


def observed(stage: Likelihood) -> Slice:
    """What a likelihood looks at."""
    return Slice("x", 0, stage.source.width // (2 if stage.kind == "gaussian" else 1))


def slices(stage: object) -> Iterator[Slice]:
    """All that a stage reads or writes by name."""
    return (value for value in vars(stage).values() if isinstance(value, Slice))


def written(stage: Stage) -> tuple[Slice, ...]:
    """What a stage of the scan writes, its states and the sums of a row apart."""
    match stage:
        case Bias() | Dense() | Activate() | Add():
            return (stage.target,)
        case Sample():
            return stage.std, stage.z
        case Draw():
            return (stage.x,)
        case Recur():
            return (stage.gates,) if stage.output is None else (stage.gates, stage.output)
        case Divergence() | Likelihood() | Resample():
            return ()
        case _:
            assert_never(stage)


def _parts(stage: object) -> Iterator[Slice]:
    """The slices of one stage, where stages need tiles of their own."""
    yield from slices(stage)
    if isinstance(stage, Dense):
        yield from (Slice(stage.target.buffer, stage.target.start + b.at, b.rows) for b in stage.blocks)
    elif isinstance(stage, Sample):
        yield from halves(stage.source)
        yield replace(stage.z, buffer="eps")
    elif isinstance(stage, Divergence):
        yield from (*halves(stage.posterior), *halves(stage.prior))
    elif isinstance(stage, Draw | Likelihood):
        if stage.kind == "gaussian":
            yield from halves(stage.source)
        if isinstance(stage, Likelihood):
            yield observed(stage)
    elif isinstance(stage, Recur):
        gates, width = stage.gates, stage.h.width
        yield from (Slice(gates.buffer, gates.start + at, width) for at in range(0, gates.width, width))


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _program(spec: CellSpec, mean: bool | None, reverse: bool) -> Partition:
    if mean is not None:
        return generation(spec, mean=mean)
    if not reverse or spec.objective != "particle_filter":
        return partition(spec)
    weighed = partition(replace(spec, objective="log_weight"))
    return replace(weighed, scan=(*weighed.scan, Resample()))


@lru_cache(maxsize=256)
def plan(spec: CellSpec, widest: int, mean: bool | None = None, *, reverse: bool = False) -> Plan:
    """Cut a cell's scan into tiles of at most ``widest`` columns, a power of two. Pure.

    With ``mean`` the cell runs on its own, and feeds back its outputs' means or samples; with None it is given x. The
    ``reverse`` scan of a particle filter has what weighs a particle behind it, in ``after``: no gradient passes from a
    weight to a state.
    """
    program = _program(spec, mean, reverse)
    cuts: dict[str, set[int]] = {}
    for stage in program.scan:
        for part in _parts(stage):
            cuts.setdefault(part.buffer, set()).update((part.start, part.start + part.width))
    tiles = {}
    for buffer, at in cuts.items():
        edges, cut = sorted(at), []
        for start, end in pairwise(edges):
            for width in pieces(end - start, widest):
                cut.append(Tile(buffer, start, width))
                start += width
        tiles[buffer] = tuple(cut)
    matrices: list[Matrix] = []
    for stage in program.scan:
        if isinstance(stage, Dense):
            matrices.append(Matrix(len(matrices), stage, matrices[-1].end if matrices else 0))
    recur = [s for s in program.scan if isinstance(s, Recur)]
    states = tuple(s.h.buffer for s in recur) + tuple(s.c.buffer for s in recur if s.c is not None)
    made = [part.buffer for stage in program.scan for part in written(stage)]
    begun = [s.target.buffer for s in program.before if isinstance(s, Bias | Dense)]
    in_scan = {*states, *made}
    inputs = [name for name in ("x", "eps", "noise", "cond") if name in tiles and name not in in_scan]
    begun = [name for name in begun if name in tiles]
    read: list[Slice] = []
    for stage in program.after:
        if isinstance(stage, Dense) and stage.source.buffer in in_scan:
            read.append(stage.source)
        elif isinstance(stage, Divergence):
            read += (s for s in (stage.posterior, stage.prior, stage.z) if s is not None and s.buffer in in_scan)
    dense = [s.target.buffer for s in program.scan if isinstance(s, Dense)]
    return Plan(
        program,
        tiles,
        tuple(matrices),
        states,
        _unique((*begun, *inputs)),
        _unique(made),
        tuple(dict.fromkeys(read)),
        _unique((*dense, *begun)),
    )
