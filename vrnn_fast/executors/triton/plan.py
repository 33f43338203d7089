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
from ...cell.stages import Dense, Partition, Resample, Slice
from ..cut import Cut, cut

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
class Plan(Cut):
    """A cut, and what Triton's kernels hold of it.

    Attributes:
        tiles: of each buffer that the scan touches, in the order of columns.
        matrices: of each dense stage of the scan, in the order of stages.
    """

    tiles: dict[str, tuple[Tile, ...]]
    matrices: tuple[Matrix, ...]

    @property
    def workspace(self) -> int:
        """Elements of all weights and biases of the scan."""
        return self.matrices[-1].end

    def matrix(self, stage: Dense) -> Matrix:
        """The weights of a dense stage of the scan."""
        return next(m for m in self.matrices if m.stage == stage)

    def tiles_of(self, part: Slice) -> tuple[Tile, ...]:
        """The tiles that make up a slice."""
        end = part.start + part.width
        return tuple(t for t in self.tiles.get(part.buffer, ()) if part.start <= t.start < end)


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
    whole = cut(_program(spec, mean, reverse))
    tiles = {buffer: tuple(_tiles(parts, widest)) for buffer, parts in whole.parts.items()}
    matrices: list[Matrix] = []
    for stage in whole.program.scan:
        if isinstance(stage, Dense):
            matrices.append(Matrix(len(matrices), stage, matrices[-1].end if matrices else 0))
    return Plan(**vars(whole), tiles=tiles, matrices=tuple(matrices))


def _tiles(parts: tuple[Slice, ...], widest: int) -> Iterator[Tile]:
    for part in parts:
        start = part.start
        for width in pieces(part.width, widest):
            yield Tile(part.buffer, start, width)
            start += width
