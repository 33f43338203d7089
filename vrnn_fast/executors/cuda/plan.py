"""The scan of a cell, or a pass over all rows, as one CUDA block runs it: units, and the order of a step. Pure.

A unit is a group of parts (executors/cut.py) that are computed together, tile by tile: the four sums of a GRU, or the
mean and the raw deviation of a latent variable. forward.py, reverse.py and passes.py say what the units of a cell are,
order.py in which order a step has them, and where its barriers are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, get_args

from ...cell.spec import Activation, Std
from ...cell.stages import Dense, Slice
from ..cut import Cut

WARPS = 8  # of a block
TILE = 8  # columns that one warp computes at a time
STACKS = 1, 2  # of 16 rows that a step of a pass may take

Kind = Literal[
    "layer",
    "moments",
    "normalize",
    "sample",
    "divergence",
    "likelihood",
    "total",
    "draw",
    "gru",
    "lstm",
    "rnn",
    "resample",
    "take",
    "gru_again",
    "lstm_again",
    "rnn_again",
    "layer_back",
    "normalize_back",
    "center_back",
    "sample_back",
    "divergence_back",
    "likelihood_back",
    "gru_back",
    "lstm_back",
    "rnn_back",
    "state_back",
    "give_back",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Through = Literal["peers", "memory"]  # how blocks exchange operands: exchange.py
UPDATES: tuple[Kind, ...] = ("gru", "lstm", "rnn")  # that end a step, but in a particle filter
EXCHANGES: tuple[Kind, ...] = ("take", "give_back")  # in which its rows read those of other lanes
STATEFUL: tuple[Kind, ...] = (*UPDATES, *EXCHANGES, "gru_back", "lstm_back", "rnn_back", "state_back")
TOTALS = ("kl", "nll")  # numbers of each row, in the order of Call::totals of csrc/cuda/scan/access.h
SHARING: tuple[Kind, ...] = ("divergence", "likelihood")  # each tile gives a share of a number of each row


CHOSEN = Slice("chosen", 0, 1)  # whom the rows of a particle filter go on from


def shares(total: int) -> Slice:
    """Name what the tiles of a unit give of a number of each row."""
    return Slice(f"shares of {TOTALS[total]}", 0, 1)


def moments(sums: Slice) -> Slice:
    """Name what the tiles of a layer's sums give of a row's mean and deviation."""
    return Slice(f"moments of {sums.buffer} from {sums.start}", 0, sums.width)


def slopes(sums: Slice) -> Slice:
    """Name what the tiles of the gradient behind a normalisation give of its mean and of its slope along a row."""
    return Slice(f"slopes of {sums.buffer} from {sums.start}", 0, sums.width)


def scale(normal: Slice) -> Slice:
    """Name the scale of a normalisation with this result."""
    return Slice(f"scale of {normal.buffer} from {normal.start}", 0, normal.width)


def scaled(normal: Slice) -> Slice:
    """Name what is scaled to this result: its gradient is that of the scale, row by row."""
    return Slice(f"{normal.buffer}.scale", normal.start, normal.width)


def gradient(part: Slice) -> Slice:
    """Name the same columns of the gradient's buffer."""
    return Slice(f"d {part.buffer}", part.start, part.width)


@dataclass(frozen=True)
class Product:
    """``target`` += ``source`` times the weights of this stage between the two; of gradients, times their transpose."""

    source: Slice
    target: Slice
    stage: Dense
    transposed: bool = False


@dataclass(frozen=True)
class Unit:
    """Parts that are computed together.

    Attributes:
        sums: those that products add to.
        others: what it reads and writes besides, in the order that csrc/cuda/scan gives to its kind.
        writes: what others may read of it.
        reads: what it reads in memory.
        holds: what it reads in float32 of those that other units have computed.
        waits: what else must be there before it begins.
        rereads: what it reads in memory of those that other units have written there in the same step.
        resumes: whether its sums begin with what is held of them.
        means: whether what it draws is its mean.
        total: the number in TOTALS of what it gives shares of, adds up or has the gradient of.
        posterior: of a divergence's gradient, the transform of the other distribution.
        normalizes: the sums of a layer that is normalised.
        eps: what is added to their variance.
        split: whether the ranks share its tiles; else each of them computes all.
    """

    kind: Kind
    sums: tuple[Slice, ...]
    others: tuple[Slice | None, ...] = ()
    writes: tuple[Slice, ...] = ()
    reads: tuple[Slice, ...] = ()
    holds: tuple[Slice, ...] = ()
    waits: tuple[Slice, ...] = ()
    rereads: tuple[Slice, ...] = ()
    products: tuple[Product, ...] = ()
    activation: Activation = "identity"
    transform: Std | None = None
    resumes: bool = False
    means: bool = False
    total: int | None = None
    posterior: Std | None = None
    normalizes: Slice | None = None
    eps: float = 0.0
    split: bool = False

    @property
    def row_sums(self) -> Slice | None:
        """What its tiles give of each row for a normalisation, if anything."""
        of = {"moments": moments, "normalize_back": slopes}.get(self.kind)
        return None if of is None or self.normalizes is None else of(self.normalizes)

    @property
    def sources(self) -> tuple[Slice, ...]:
        """All that it waits for."""
        return (*(p.source for p in self.products), *self.holds, *self.waits, *self.rereads)


@dataclass(frozen=True)
class Visit:
    """Some of a unit's work: it begins its sums, adds products to them, finishes them.

    Attributes:
        barrier: whether one of the block stands before it.
        waits: for which parts it waits until all ranks have pushed theirs; behind that barrier.
    """

    unit: int
    products: tuple[Product, ...]
    begins: bool
    finishes: bool
    barrier: bool = False
    waits: tuple[Slice, ...] = ()


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """What one kernel does.

    Attributes:
        cut: what it loads and stores.
        reverse: whether it goes from the last step to the first.
        is_pass: whether a step is another tile of rows, which knows nothing of the one before.
        units: in the order in which they can be computed.
        first_warp: of each unit, the warp that has its first tile.
        visits: the work of one step, in order.
        given: the parts that begin with what is in memory.
        biases: the dense stage whose biases a part begins with; of a state, where a sequence begins anew.
        ranks: blocks that share a tile of rows; 1 where none do.
        through: how they exchange operands.
        stacked: of a pass, how often 16 rows a step takes, which read each weight once.
    """

    cut: Cut
    reverse: bool
    is_pass: bool
    units: tuple[Unit, ...]
    first_warp: tuple[int, ...]
    visits: tuple[Visit, ...]
    given: frozenset[Slice]
    biases: dict[Slice, Dense]
    ranks: int = 1
    through: Through = "peers"
    stacked: int = 1

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(p for visit in self.visits for p in visit.products)

    @property
    def operands(self) -> tuple[Slice, ...]:
        """The parts that products read."""
        return tuple(dict.fromkeys(p.source for unit in self.units for p in unit.products))

    @property
    def held(self) -> tuple[Slice, ...]:
        """The parts that are handed on in float32."""
        return tuple(dict.fromkeys(part for unit in self.units for part in unit.holds))

    @property
    def read(self) -> tuple[Slice, ...]:
        """The parts that one unit alone reads in memory, in the order in which a step does."""
        found = [part for v in self.visits if v.begins for part in self.units[v.unit].reads]
        return tuple(part for part in found if found.count(part) == 1)

    @cached_property
    def split(self) -> frozenset[Slice]:
        """The parts whose tiles the ranks share: by who computes them, else by who reads them or leaves them in
        memory."""
        made = {part: unit.split for unit in self.units for part in (*unit.sums, *unit.writes)}
        met = {part: unit.split for unit in self.units for part in unit.others if part is not None}
        return frozenset(part for part, split in (met | made).items() if split)

    @cached_property
    def exchanged(self) -> tuple[Slice, ...]:
        """The operands that every rank needs whole and has only some columns of."""
        made = {part for unit in self.units if unit.split for part in unit.writes}
        return tuple(part for part in self.operands if part in made)

    @property
    def cluster(self) -> int:
        """Count the blocks of a cluster of the hardware; 1 where there is none."""
        return self.ranks if self.through == "peers" else 1

    def maker(self, part: Slice) -> int:
        """Return the number of the visit that finishes a part."""
        return next(i for i, v in enumerate(self.visits) if v.finishes and part in self.units[v.unit].writes)

    def copies(self, visit: Visit) -> bool:
        """Tell whether a visit begins with parts that other ranks have pushed into memory, and a barrier."""
        return self.through == "memory" and bool(visit.waits)

    def publishes(self, visit: Visit) -> bool:
        """Tell whether a visit ends with a barrier, and parts that other ranks read in memory."""
        made = self.units[visit.unit].writes if visit.finishes and self.through == "memory" else ()
        return any(part in self.exchanged for part in made)

    def share(self, tiles: int, split: bool) -> int:
        """Count the tiles that one rank has at most."""
        return -(-tiles // self.ranks) if split else tiles

    def is_for_next(self, part: Slice) -> bool:
        """Tell whether what a step writes of an operand is read by the step after it: forward, of states."""
        return not self.reverse and self.state(part) is not None

    @property
    def barrier_first(self) -> bool:
        """Whether the first step would read weights or biases before it comes to a barrier."""

        def reads(visit: Visit) -> bool:
            return bool(visit.products) or (visit.begins and any(s in self.biases for s in self.units[visit.unit].sums))

        def behind(visit: Visit) -> bool:
            return visit.barrier or self.copies(visit)

        return not next((behind(v) for v in self.visits if behind(v) or reads(v)), True)

    @property
    def filters(self) -> bool:
        """Whether rows exchange their states, or the gradients of these."""
        return any(unit.kind in EXCHANGES for unit in self.units)

    def width(self, buffer: str) -> int:
        """Return the width of a buffer, or of that of a gradient."""
        return self.cut.width(buffer.removeprefix("d "))

    def state(self, part: Slice) -> int | None:
        """Return the number of the state that a part, or a gradient, is."""
        name = part.buffer.removeprefix("d ")
        return self.cut.states.index(name) if name in self.cut.states else None

    def kept(self, unit: int) -> bool:
        """Tell whether a unit's sums live from one visit to the next."""
        return sum(visit.unit == unit for visit in self.visits) > 1


@lru_cache(maxsize=1024)
def stacked(plan: KernelPlan, count: int) -> KernelPlan:
    """Let a step of a pass take so many times 16 rows."""
    return plan if count == plan.stacked else replace(plan, stacked=count)
