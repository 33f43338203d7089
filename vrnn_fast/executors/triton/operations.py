"""What a program does, as a flat list of operations on named tiles. Pure.

A variable holds a tile's values or its gradient, a state's next ones, or a number of each row; it may be written again.
emit.py lowers stages to operations, order.py puts them in order, writer.py prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .plan import Matrix, Plan, Tile, argument, identifier

LoopPart: TypeAlias = Literal["once", "step", "last"]  # before the loop over time, in it, behind it


@dataclass(frozen=True)
class Expression:
    """What is computed, in Triton's language, and the variables that it reads."""

    text: str
    reads: tuple[str, ...] = ()

    def __add__(self, other: Expression) -> Expression:
        return Expression(f"{self.text} + {other.text}", self.reads + other.reads)

    def __mul__(self, other: Expression) -> Expression:
        """Return the product of what are no sums."""
        return Expression(f"{self.text} * {other.text}", self.reads + other.reads)


def variable(name: str) -> Expression:
    return Expression(name, (name,))


def value(tile: Tile) -> Expression:
    return variable(tile.name)


def gradient(tile: Tile) -> Expression:
    return variable(tile.gradient)


def zeros(tile: Tile) -> Expression:
    return Expression(f"tl.zeros((ROWS, {tile.padded}), tl.float32)")


def call(function: str, *operands: Expression, constants: str = "") -> Expression:
    """Call one of functions.py."""
    given = ", ".join((*(operand.text for operand in operands), *([constants] if constants else [])))
    return Expression(f"on.{function}({given})", tuple(name for operand in operands for name in operand.reads))


@dataclass(frozen=True)
class Access:
    """Columns of a buffer in memory, to which an argument of the kernel points."""

    pointer: str
    start: int
    width: int
    padded: int
    stride: int

    def columns(self, direct: str) -> str:
        """Return the last arguments of on.load and on.store; ``direct`` says whether threads may do it themselves."""
        return f"{self.start}, {self.width}, {self.padded}, {self.stride}, {direct}"


def for_every_row(parameter: str, first: int, tile: Tile) -> tuple[str, str]:
    """Return the argument that points to a parameter, and what reads a tile's columns there, the same for every row."""
    pointer = argument(parameter)
    columns = Access(pointer, first, tile.width, tile.padded, 0).columns("PTX")
    return pointer, f"on.load({pointer}, row, active, {columns}).to(tl.float32)"


def access(plan: Plan, prefix: str, tile: Tile) -> Access:
    """Find a tile among its buffer's values (b), gradients (g) or, of a state, at either end."""
    return Access(f"{prefix}_{identifier(tile.buffer)}", tile.start, tile.width, tile.padded, plan.width(tile.buffer))


# ---- operations


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of a program's operations.

    Attributes:
        makes: the variables that have their values by it.
        reads: the variables that it takes, in the order in which they are got ready.
        arguments: those of the kernel that it names.
    """

    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Compute(Operation):
    """Lines as they are."""

    lines: tuple[str, ...]
    place: LoopPart = "step"


@dataclass(frozen=True, kw_only=True)
class Fetch(Operation):
    """Read from memory what nobody has made."""


@dataclass(frozen=True, kw_only=True)
class Load(Fetch):
    """Read a tile of the step's rows."""

    access: Access


@dataclass(frozen=True, kw_only=True)
class RowNumber(Fetch):
    """Read a number of each of the step's rows."""

    dtype: str


@dataclass(frozen=True, kw_only=True)
class Weight(Fetch):
    """Read weights or a bias: before the loop where they are resident, else anew for every product."""

    line: str
    resident: bool


@dataclass(frozen=True, kw_only=True)
class Store(Operation):
    """Write a tile to memory."""

    access: Access


@dataclass(frozen=True, kw_only=True)
class Spread(Operation):
    """Begin a sum with the bias of its columns."""


@dataclass(frozen=True, kw_only=True)
class TileOperand(Operation):
    """Take a tile as the products of one stage do."""


@dataclass(frozen=True, kw_only=True)
class TileProduct(Operation):
    """Add to ``total`` the product of a tile and its weights. A sum has ``begun`` unless this is the first of it."""

    total: str
    source: str
    weights: str
    begun: bool = False


@dataclass(frozen=True, kw_only=True)
class Share(Operation):
    """Add an expression to ``total``."""

    total: str
    expression: str
    begun: bool = False


@dataclass(frozen=True, kw_only=True)
class Whole(Operation):
    """Mark where tiles are whole: no stage changes their values any more or, on the way back, the gradients that go on
    to what made them."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Leave(Operation):
    """Mark where a tile's gradient shall be in memory."""

    tile: Tile


@dataclass(frozen=True, kw_only=True)
class Back(Operation):
    """Mark where a gradient goes back through one of the products that made its tile, at the latest."""

    matrix: Matrix
    target: Tile


def compute(makes: str | Sequence[str], expression: Expression) -> Compute:
    names = (makes,) if isinstance(makes, str) else tuple(makes)
    return Compute(makes=names, reads=expression.reads, lines=(f"{', '.join(names)} = {expression.text}",))


def add(total: str, expression: Expression) -> Share:
    return Share(makes=(total,), reads=expression.reads, total=total, expression=expression.text)


def load(name: str, found: Access) -> Load:
    return Load(makes=(name,), arguments=(found.pointer,), access=found)


def store(name: str, found: Access) -> Store:
    return Store(reads=(name,), arguments=(found.pointer,), access=found)


def operand_of(matrix: Matrix, source: Tile) -> str:
    """Name the variable of a tile as a stage's products take it."""
    return f"{source.name}_of_{matrix.number}"


def weights_of(matrix: Matrix, target: Tile, source: Tile) -> str:
    """Name the variable of the weights between two tiles."""
    return f"w{matrix.number}_{target.start}_{source.start}"


def bias_of(matrix: Matrix, target: Tile) -> str:
    return f"bias{matrix.number}_{target.start}"


def scaling_of(tile: Tile, leaf: str) -> str:
    """Name the variable of what a normalised tile is multiplied by ("weight"), or of what is added to it ("bias")."""
    return f"{leaf}_of_{tile.name}"


def forth(total: str, weights: str, source: str) -> TileProduct:
    """Add a product to a tile's value, which zeros, a bias or memory has begun.

    Streamed weights are read first: they come from far away, and the source may be computed meanwhile.
    """
    reads = total, weights, source
    return TileProduct(makes=(total,), reads=reads, total=total, source=source, weights=weights, begun=True)


def back(total: str, weights: str, source: str) -> TileProduct:
    """Add a product to a tile's gradient."""
    return TileProduct(makes=(total,), reads=(weights, source), total=total, source=source, weights=weights)
