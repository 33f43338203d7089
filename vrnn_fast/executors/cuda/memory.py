"""Where a kernel's weights and values lie: the tiers, by arithmetic alone. Pure.

Weights stay in shared memory where they fit. Where they do not, those that multiply the state go into the registers of
the lanes that use them, as many as there is room for; what is still too much, the largest first and what no state waits
for before that, is read from the second-level cache in every step. Of several blocks that share a tile, each has but
some columns of each product: cluster.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...cell.spec import CellSpec
from ...cell.stages import Dense, Slice, Term
from .exchange import BUFFERS, operand_buffers
from .order import on_chain
from .plan import TILE, UPDATES, WARPS, KernelPlan, Product, Unit, stacked

Operand = Literal["f32", "tf32", "bf16", "f16"]
Place = Literal["shared", "registers", "memory"]

ROWS = 16  # of the batch in a block; a step of a pass may take several times as many
STEP = 32  # bytes of a row that one mma takes
CHUNK = 64  # that one load of weights serves
ROW_PADDING = 16  # bytes behind each row in shared memory
GATE = 8  # bytes of a Gate of csrc/cuda/device/types.h
FILTER = 256  # bytes of structs Particles and Heirs of csrc/cuda/scan/particles.h
MOST_ABREAST = 4  # sums of a tile or two that a warp multiplies at a time, of all rows of a step
LONG = 6  # steps of a product whose sum is two that take turns
MOST_RESIDENT = 96  # registers of a thread that may hold weights; the rest of a kernel needs about 120

CHIPS = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10}
"""Bytes of shared memory that one block may have."""


def operand_bytes(operand: Operand) -> int:
    return 2 if operand in ("bf16", "f16") else 4


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True, eq=False)
class Memory:
    """Where everything is.

    Attributes:
        place: of the weights of each product.
        weights: their bytes into shared memory, or into what is streamed.
        resident: the first of a product's words in registers.
        biases: floats of all biases, and where those of a part begin.
        operand: bytes into shared memory of each part that products read: as those below, of a step's first 16 rows.
        held: and of each part that is handed on in float32.
        ahead: and of what the next step reads of a part in memory, where there is room.
        totals: of the shares of each number in TOTALS.
        row_sums: and of moments and slopes, two numbers of each row for each tile.
        filter: of what a particle filter keeps of each row; -1 of none.
        gates: of the gates of a cluster's exchanges; -1 of none.
        pushed: and into a tile's bytes in memory, of each part that its ranks exchange there.
        pushed_bytes: how many these are.
        stacked_bytes: of what 16 rows of a step have in shared memory, to what the next 16 have.
        limit: bytes of shared memory that a block may have.
        shared: those that it has.
        streamed: bytes of the weights that are not in shared memory.
    """

    plan: KernelPlan
    kind: Operand
    limit: int
    place: dict[Product, Place]
    weights: dict[Product, int]
    resident: dict[Product, int]
    bias: dict[Slice, int]
    operand: dict[Slice, int]
    held: dict[Slice, int]
    ahead: dict[Slice, int]
    shared_weights: int
    shared_biases: int
    biases: int
    totals: dict[int, int]
    row_sums: dict[Slice, int]
    filter: int
    gates: int
    pushed: dict[Slice, int]
    pushed_bytes: int
    stacked_bytes: int
    shared: int
    streamed: int

    @property
    def blocks(self) -> int:
        """Of one multiprocessor, that shared memory leaves room for: one or two."""
        return 2 if 2 * self.shared + 1024 <= self.limit else 1

    @property
    def resident_words(self) -> int:
        """Of 16 bytes, of weights in the registers of a thread."""
        return sum(_words(self.plan, p, self.kind) for p, place in self.place.items() if place == "registers")

    def tiles(self, part: Slice) -> int:
        return columns(part, self.kind) // TILE

    def share(self, part: Slice) -> int:
        """Count the tiles of a part that a block has."""
        return self.plan.share(self.tiles(part), part in self.plan.split)

    def every(self, unit: Unit) -> int:
        """Count the tiles of a unit that each warp of each block has."""
        return self.tiles(unit.sums[0]) // (self.plan.ranks if unit.split else 1) // WARPS

    def abreast(self, unit: Unit) -> int:
        """Tell how many of these a warp multiplies at a time, which share the operands that it reads: of
        passes alone, for scans hold more from visit to visit than registers then have room for."""
        few = self.kind == "f32" or not self.plan.is_pass or 2 * len(unit.sums) * self.plan.stacked > MOST_ABREAST
        return 1 if few or self.every(unit) < 2 else 2


def columns(part: Slice, kind: Operand) -> int:
    """Count the columns of a part with its padding: whole steps of an mma."""
    return _up(part.width, STEP // operand_bytes(kind))


def row_bytes(part: Slice, kind: Operand) -> int:
    """Count the bytes of a row of a part's operands."""
    return columns(part, kind) * operand_bytes(kind)


def in_two(part: Slice, kind: Operand) -> bool:
    """Tell whether two sums of a product take turns, where this is its source: each then waits half as often for the
    one before it. Of its width alone, lest bits depend on who computes them."""
    return kind != "f32" and row_bytes(part, kind) // STEP >= LONG


def own_columns(plan: KernelPlan, part: Slice, kind: Operand) -> int:
    """Count those of them that a block computes: of a part that ranks share, some whole tiles."""
    return TILE * plan.share(columns(part, kind) // TILE, part in plan.split)


def in_pairs(plan: KernelPlan, part: Slice) -> bool:
    """Tell whether two neighbours may be copied as one, from a part's first column on.

    They must lie on a multiple of their size; cp.async needs that, and copies no less than four bytes. Of an odd width,
    the last one's neighbour must be nothing that another warp writes meanwhile.
    """
    beside = part.start + part.width
    writes = (made for unit in plan.units for made in unit.writes if made.buffer == part.buffer)
    met = part.width % 2 == 1 and any(made.start <= beside < made.start + made.width for made in writes)
    return part.start % 2 == 0 and plan.width(part.buffer) % 2 == 0 and not met


def shared_weight_bytes(plan: KernelPlan, product: Product, kind: Operand) -> int:
    """Count the bytes of a block's weights of a product as rows in shared memory."""
    return own_columns(plan, product.target, kind) * (row_bytes(product.source, kind) + ROW_PADDING)


def streamed_weight_bytes(plan: KernelPlan, product: Product, kind: Operand) -> int:
    """Count the bytes of a block's weights of a product in the order of lanes."""
    row = _up(row_bytes(product.source, kind), STEP if kind == "f32" else CHUNK)
    return own_columns(plan, product.target, kind) * row


def _words(plan: KernelPlan, product: Product, kind: Operand) -> int:
    """Count the words of 16 bytes that a thread holds of a product."""
    rounds = -(-own_columns(plan, product.target, kind) // TILE // WARPS)
    return rounds * (-(-row_bytes(product.source, kind) // CHUNK))


@lru_cache(maxsize=256)
def memory(plan: KernelPlan, kind: Operand, limit: int) -> Memory | None:
    """Choose the first tier that fits into a block's ``limit`` of shared memory; None if none does. A pass that has no
    room for as many rows as its plan says takes 16, and so does the plan that this returns."""
    chain = {p for u in on_chain(plan.units) for p in plan.units[u].products}
    tiers: list[dict[Product, Place]] = [{}]
    if kind != "f32" and (resident := _resident(plan, kind)):
        tiers.append(dict.fromkeys(resident, "registers"))
    streamed = dict(tiers[-1])
    rest = (p for p in plan.products if p not in streamed)
    for product in sorted(rest, key=lambda p: (p in chain, -shared_weight_bytes(plan, p, kind))):
        streamed = {**streamed, product: "memory"}
        tiers.append(streamed)
    found = (_laid(plan, kind, moved, limit) for moved in tiers)
    own = next((m for m in found if m.shared <= limit), None)
    return own if own is not None or plan.stacked == 1 else memory(stacked(plan, 1), kind, limit)


def _resident(plan: KernelPlan, kind: Operand) -> tuple[Product, ...]:
    """Choose the products of the state whose weights a thread's registers have room for."""
    found, left = list[Product](), MOST_RESIDENT
    for product in _recurrent(plan):
        if (held := 4 * _words(plan, product, kind)) <= left:
            found, left = [*found, product], left - held
    return tuple(found)


def _recurrent(plan: KernelPlan) -> tuple[Product, ...]:
    """Find the products of the state with the recurrent weights, or of the gates' gradients with their transpose."""
    gates = {p.target for u in plan.units if u.kind in UPDATES for p in u.products}
    gates |= {part for u in plan.units if u.kind in ("gru_back", "lstm_back", "rnn_back") for part in u.writes}
    products = (p for unit in plan.units for p in unit.products)
    if plan.reverse:
        return tuple(p for p in products if p.source in gates and plan.state(p.target) is not None)
    return tuple(p for p in products if p.target in gates and plan.state(p.source) is not None)


def _laid(plan: KernelPlan, kind: Operand, moved: dict[Product, Place], limit: int) -> Memory:
    """Lay everything out, with some weights elsewhere than in shared memory."""
    place: dict[Product, Place] = {p: moved.get(p, "shared") for p in plan.products}
    weights, resident = {}, {}
    shared = streamed = words = 0
    for product, where in place.items():
        if where == "shared":
            weights[product], shared = shared, shared + shared_weight_bytes(plan, product, kind)
            continue
        weights[product], streamed = streamed, streamed + streamed_weight_bytes(plan, product, kind)
        if where == "registers":
            resident[product], words = words, words + _words(plan, product, kind)
    shared_weights, shared_biases = shared, shared
    bias, floats = {}, 0
    for part in plan.biases:
        bias[part], floats = floats, floats + own_columns(plan, part, kind)
    of_all = shared = shared + 4 * floats

    operand, held = {}, {}
    for part in plan.operands:  # whole in every block
        operand[part] = shared
        shared += operand_buffers(plan, part) * ROWS * (row_bytes(part, kind) + ROW_PADDING)
    for part in plan.held:
        held[part], shared = shared, shared + ROWS * 4 * own_columns(plan, part, kind)
    totals = {}
    for unit in plan.units:
        if unit.kind == "total" and unit.total is not None:
            totals[unit.total], shared = shared, shared + 4 * ROWS * columns(unit.sums[0], kind) // TILE
    row_sums = {}
    for part in (unit.row_sums for unit in plan.units if unit.row_sums is not None):
        row_sums[part], shared = shared, shared + 8 * ROWS * columns(part, kind) // TILE
    filter_ = -1
    if plan.filters:
        filter_, shared = shared, shared + FILTER
    gates = -1
    pushed, pushed_bytes = {}, 0
    if plan.through == "memory":
        for part in plan.exchanged:
            pushed[part] = pushed_bytes
            pushed_bytes += BUFFERS * ROWS * row_bytes(part, kind)
    elif plan.exchanged:
        gates, shared = shared, _up(shared + GATE * BUFFERS * len(plan.exchanged), 16)
    size, ahead = operand_bytes(kind), {}
    for part in plan.read:
        more = ROWS * own_columns(plan, part, kind) * size
        if of_all + plan.stacked * (shared - of_all + more) <= limit and (size == 4 or in_pairs(plan, part)):
            ahead[part], shared = shared, shared + more
    return Memory(
        *(plan, kind, limit, place, weights, resident, bias, operand, held, ahead),
        shared_weights=shared_weights,
        shared_biases=shared_biases,
        biases=floats,
        totals=totals,
        row_sums=row_sums,
        filter=filter_,
        gates=gates,
        pushed=pushed,
        pushed_bytes=pushed_bytes,
        stacked_bytes=shared - of_all,
        shared=of_all + plan.stacked * (shared - of_all),
        streamed=streamed,
    )


# ---- what the host makes of parameters


@dataclass(frozen=True, eq=False)
class Image:
    """Weights and biases as indices into all parameters side by side, behind which is a zero.

    Attributes:
        shared, streamed: of each operand in the two images; those of ranks one behind the other.
        biases: (terms, floats); a bias is the sum of its terms. Likewise.
    """

    shared: NDArray[np.int64]
    streamed: NDArray[np.int64]
    biases: NDArray[np.int64]


@lru_cache(maxsize=64)
def image(spec: CellSpec, found: Memory) -> Image:
    """Tell what each place of a kernel's weights is filled with."""
    shapes = {p.name: p.shape for p in spec.parameters()}
    starts, zero = {}, 0
    for name, shape in shapes.items():
        starts[name], zero = zero, zero + int(np.prod(shape))
    size, ranks = operand_bytes(found.kind), found.plan.ranks
    shared = np.full((ranks, found.shared_weights // size), zero, np.int64)
    streamed = np.full((ranks, found.streamed // size), zero, np.int64)
    for product, at in found.weights.items():
        own = _weights(product, shapes, starts, zero)
        for rank, rows in enumerate(_shared_out(found, product.target, own, zero)):
            full = np.full((rows.shape[0], columns(product.source, found.kind)), zero, np.int64)
            full[:, : own.shape[1]] = rows
            if found.place[product] == "shared":
                padded = np.pad(full, ((0, 0), (0, ROW_PADDING // size)), constant_values=zero).ravel()
                shared[rank, at // size : at // size + padded.size] = padded
            else:
                lanes = by_lanes(full, found.kind, zero)
                streamed[rank, at // size : at // size + lanes.size] = lanes
    most = max((len(stage.bias or ()) for stage in found.plan.biases.values()), default=0)
    biases = np.full((most, ranks, _up(found.biases, 4)), zero, np.int64)
    for part, at in found.bias.items():
        stage = found.plan.biases[part]
        for i, term in enumerate(stage.bias or ()):
            own = _bias(term, stage, part, starts, zero)
            for rank, rows in enumerate(_shared_out(found, part, own, zero)):
                biases[i, rank, at : at + rows.size] = rows
    return Image(shared.ravel(), streamed.ravel(), biases.reshape(most, ranks * biases.shape[-1]))


def _shared_out(found: Memory, part: Slice, own: NDArray[np.int64], zero: int) -> Iterator[NDArray[np.int64]]:
    """Yield what each rank has of the rows of a part, its columns."""
    count = own_columns(found.plan, part, found.kind)
    for rank in range(found.plan.ranks):
        first = TILE * (rank * found.tiles(part) // found.plan.ranks) if part in found.plan.split else 0
        rows = np.full((count, *own.shape[1:]), zero, np.int64)
        there = own[first : first + count]
        rows[: len(there)] = there
        yield rows


def _weights(
    product: Product, shapes: dict[str, tuple[int, ...]], starts: dict[str, int], zero: int
) -> NDArray[np.int64]:
    """Return the places of a product's weights, (target width, source width)."""
    stage, ends = product.stage, (product.target, product.source)
    target, source = reversed(ends) if product.transposed else ends
    found = np.full((target.width, source.width), zero, np.int64)
    row, column = target.start - stage.target.start, source.start - stage.source.start
    for b in stage.blocks:
        first, last = max(b.at, row), min(b.at + b.rows, row + target.width)
        if first < last:
            rows = np.arange(first, last)[:, None] - b.at + b.row
            own = b.column + column + np.arange(source.width)
            found[first - row : last - row] = starts[b.parameter] + rows * shapes[b.parameter][1] + own
    return found.T if product.transposed else found


def _bias(term: Term, stage: Dense, part: Slice, starts: dict[str, int], zero: int) -> NDArray[np.int64]:
    """Return the places of a bias, (part width)."""
    row = part.start - stage.target.start + np.arange(part.width) - term.at
    inside = (row >= 0) & (row < term.rows)
    return np.where(inside, starts[term.parameter] + term.row + row, zero)


def by_lanes(full: NDArray[np.int64], kind: Operand, zero: int) -> NDArray[np.int64]:
    """Put (rows, columns) of weights in the order in which lanes read them: csrc/cuda/scan/products.h.

    For tensor cores (tiles, chunks, 32 lanes, 16 bytes): register i of a lane is what ldmatrix would give it of the
    i-th 16 bytes of a chunk. For float32 (tiles, columns / 4, 8 rows, 4).
    """
    size = operand_bytes(kind)
    if kind == "f32":
        return np.ascontiguousarray(full.reshape(-1, TILE, full.shape[1] // 4, 4).transpose(0, 2, 1, 3)).ravel()
    padding = _up(full.shape[1] * size, CHUNK) // size - full.shape[1]
    whole = np.pad(full, ((0, 0), (0, padding)), constant_values=zero)
    # (tile, row, chunk, register, lane's place in a row, elements of a register)
    split = whole.reshape(-1, TILE, whole.shape[1] * size // CHUNK, 4, 4, 4 // size)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 4, 3, 5)).ravel()
