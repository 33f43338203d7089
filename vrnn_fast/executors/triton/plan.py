"""The scan of a partition, cut into what a GPU program holds: tiles of columns, and the weights between them. Pure.

Triton's tensors have powers of two for sizes and cannot be sliced. So the parts of a cut (executors/cut.py) are cut
further into tiles of at most ``widest`` columns, padded to a power of two. A dense stage is then one small product for
each pair of a source's and a target's tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ...cell.partition import generation, partition
from ...cell.spec import CellSpec
from ...cell.stages import Bias, Dense, Partition, Slice, Stage
from ..cut import Cut, cut, learned, with_initial_states

LEAST = 16  # columns of a tile: what tl.dot takes in every dtype
BESIDE = 32  # of one beside wider ones, or over rows, where tensor cores multiply: triton gives the warps of all
# products that follow each other rows or columns, whichever the first of them has more of, and a tile of 16 rows it
# would give every warp, all columns with it


def padded(width: int, least: int = LEAST) -> int:
    """Count the columns of a tile that holds ``width`` of them."""
    return max(least, 1 << (width - 1).bit_length())


def pieces(width: int, widest: int) -> tuple[int, ...]:
    """Cut ``width`` columns into the widths of tiles."""
    return tuple(min(widest, width - start) for start in range(0, width, widest))


@dataclass(frozen=True)
class Tile:
    """The columns [start, start + width) of a buffer, in a tensor of ``padded`` columns."""

    buffer: str
    start: int
    width: int
    least: int = LEAST

    @property
    def padded(self) -> int:
        return padded(self.width, self.least)

    @property
    def name(self) -> str:
        """The variable of its values in a kernel."""
        return f"{identifier(self.buffer)}_{self.start}"

    @property
    def gradient(self) -> str:
        """The variable of its gradient."""
        return f"d_{self.name}"

    @property
    def after(self) -> str:
        """The variable of a state's next value, on the way forward."""
        return f"after_{self.name}"

    @property
    def later(self) -> str:
        """The variable of the gradient of a state's next value, on the way back."""
        return f"later_{self.name}"


def identifier(buffer: str) -> str:
    return buffer.replace(".", "_")


def argument(parameter: str) -> str:
    """Name a kernel's argument that points to a parameter, or to its gradient."""
    return f"p_{identifier(parameter)}"


@dataclass(frozen=True)
class Matrix:
    """The stacked weights of one dense stage of the scan, and where they begin in the workspace.

    There lie the weights between each tile of ``targets`` and each of ``sources``, padded with zeros, then the padded
    tiles of the bias, where the stage has one.
    """

    number: int
    stage: Dense
    offset: int
    targets: tuple[Tile, ...]
    sources: tuple[Tile, ...]

    def weights(self, target: Tile, source: Tile) -> int:
        """Tell where the weights between two tiles begin."""
        rows, columns = self.targets.index(target), self.sources.index(source)
        return (
            self.offset
            + _padded(self.targets[:rows]) * _padded(self.sources)
            + target.padded * _padded(self.sources[:columns])
        )

    def bias(self, target: Tile) -> int:
        """Tell where the bias of a tile begins."""
        before = self.targets[: self.targets.index(target)]
        return self.offset + _padded(self.targets) * _padded(self.sources) + _padded(before)

    @property
    def size(self) -> int:
        """Of the weights, in elements."""
        return _padded(self.targets) * _padded(self.sources)

    @property
    def end(self) -> int:
        return self.offset + self.size + (0 if self.stage.bias is None else _padded(self.targets))


def _padded(tiles: tuple[Tile, ...]) -> int:
    return sum(tile.padded for tile in tiles)


@dataclass(frozen=True, eq=False)
class Plan(Cut):
    """A cut, and what Triton's kernels hold of it.

    Attributes:
        tiles: of each buffer that the scan touches, in the order of columns.
        matrices: of each dense stage of the scan, in the order of stages.
        reverse: whether gradients pass through the weights, so that a tile of them is (target, source), or values,
            and it is (source, target): each as the right operand of its product is read.
    """

    tiles: dict[str, tuple[Tile, ...]]
    matrices: tuple[Matrix, ...]
    reverse: bool

    @property
    def begun(self) -> tuple[Slice, ...]:
        """What is begun before the scan, as it finds it."""
        stages = (s for s in self.program.before if isinstance(s, Bias | Dense))
        return tuple(s.target for s in stages if s.target.buffer in self.parts)

    @property
    def state_tiles(self) -> tuple[Tile, ...]:
        """The tiles of all states, in the order of a state's tensors."""
        return tuple(tile for name in self.states for tile in self.tiles[name])

    @property
    def workspace(self) -> int:
        """Where its weights and biases end in the workspace."""
        return self.matrices[-1].end if self.matrices else 0

    @property
    def products(self) -> int:
        """How many products of tiles it has."""
        return sum(len(m.targets) * len(m.sources) for m in self.matrices)

    @property
    def uneven(self) -> bool:
        """Whether some part ends in a narrower tile than it begins with."""
        cuts = (self.tiles_of(part) for parts in self.parts.values() for part in parts)
        return any(tiles[-1].padded < tiles[0].padded for tiles in cuts)

    def matrix(self, stage: Dense) -> Matrix:
        """Find the weights of a dense stage of the scan."""
        return next(m for m in self.matrices if m.stage == stage)

    def tiles_of(self, part: Slice) -> tuple[Tile, ...]:
        """Find the tiles that make up a slice."""
        return _within(self.tiles, part)


def _within(tiles: dict[str, tuple[Tile, ...]], part: Slice) -> tuple[Tile, ...]:
    end = part.start + part.width
    return tuple(t for t in tiles.get(part.buffer, ()) if part.start <= t.start < end)


def _program(spec: CellSpec, mean: bool | None, reverse: bool) -> Partition:
    if mean is not None:
        return with_initial_states(generation(spec, mean=mean))
    return with_initial_states(learned(spec) if reverse else partition(spec))


@lru_cache(maxsize=256)
def plan(spec: CellSpec, widest: int, mean: bool | None = None, *, reverse: bool = False, beside: int = LEAST) -> Plan:
    """Cut a cell's scan into tiles of at most ``widest`` columns, a power of two, and of ``beside`` at least where some
    are wider. Pure.

    With ``mean`` the cell runs on its own, and feeds back its outputs' means or samples; with None it is given x. The
    ``reverse`` scan of a particle filter has what weighs a particle behind it, in ``after``: no gradient passes from a
    weight to a state.
    """
    return _tiled(cut(_program(spec, mean, reverse)), widest, reverse, 0, LEAST, beside)


def rows_plan(
    program: Partition, stages: tuple[Stage, ...], widest: int, first: int, *, reverse: bool, least: int = LEAST
) -> Plan:
    """Cut stages that run over all rows, whose weights begin at ``first`` in the workspace, into tiles of at least so
    many columns. Pure."""
    whole = cut(replace(program, before=(), scan=stages, after=()))
    return _tiled(whole, widest, reverse, first, least, least)


def _tiled(whole: Cut, widest: int, reverse: bool, first: int, least: int, beside: int) -> Plan:
    tiles = {buffer: tuple(_tiles(parts, widest, least, beside)) for buffer, parts in whole.parts.items()}
    matrices: list[Matrix] = []
    for stage in whole.program.scan:
        if isinstance(stage, Dense):
            ends = (_within(tiles, part) for part in (stage.target, stage.source))
            matrices.append(Matrix(len(matrices), stage, matrices[-1].end if matrices else first, *ends))
    return Plan(**vars(whole), tiles=tiles, matrices=tuple(matrices), reverse=reverse)


def _tiles(parts: tuple[Slice, ...], widest: int, least: int, beside: int) -> Iterator[Tile]:
    for part in parts:
        start = part.start
        for width in pieces(part.width, widest):
            yield Tile(part.buffer, start, width, least if part.width <= widest else beside)
            start += width
