"""What passes between memory and a program: turns, tiles, weights and their gradients. Triton's language.

A tile is (rows, columns), with zeros where it is padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .versions import INTERPRETED

__all__ = [  # kernels know them by functions.py
    "begin_turns",
    "bias",
    "bias_gradient",
    "by_length",
    "clear",
    "leave",
    "load",
    "number",
    "only",
    "operand",
    "operands",
    "pack",
    "pack_bias",
    "place",
    "product",
    "real",
    "rounded",
    "row_tile",
    "rows",
    "running",
    "spread",
    "store",
    "store_number",
    "term",
    "turn",
    "wait",
    "weight",
    "weight_gradient",
]


def _load(bits: int) -> tl.constexpr:
    """Write a load that gives zero where there is nothing."""
    load = f"mov.b{max(bits, 32)} $0, 0; @%there ld.global.b{bits} $0, [$1];"
    return tl.constexpr(f"{{ .reg .pred %there; setp.ne.b32 %there, $2, 0; {load} }}")


def _store(bits: int) -> tl.constexpr:
    """Write a store, which leaves its result undefined."""
    return tl.constexpr(f"{{ .reg .pred %there; setp.ne.b32 %there, $3, 0; @%there st.global.b{bits} [$1], $2; }}")


def _store_pair(kind: str) -> tl.constexpr:
    """Write the store of two neighbours, both rounded by one instruction."""
    rounded = f"cvt.rn.{kind}x2.f32 %both, $3, $2;"
    store = f"setp.ne.b32 %there, $4, 0; {rounded} @%there st.global.b32 [$1], %both;"
    return tl.constexpr(f"{{ .reg .pred %there; .reg .b32 %both; {store} }}")


LOAD_16, LOAD_32, LOAD_64 = map(_load, (16, 32, 64))
STORE_16, STORE_32, STORE_64 = map(_store, (16, 32, 64))
STORE_PAIR_FP16, STORE_PAIR_BF16 = map(_store_pair, ("f16", "bf16"))
# Needs a sum where it stands, for an event that nobody looks at, and that no sum makes: none is such a NaN.
DONE = tl.constexpr("{ .reg .pred %odd; setp.eq.b32 %odd, $0, 0x7fc0dead; @%odd pmevent 0; }")
COMPILED = tl.constexpr(not INTERPRETED)
WIDEN = tl.constexpr(INTERPRETED)  # triton 3.9's interpreter multiplies the bits of bfloat16 operands


@triton.jit
def turn(turns):
    """Draw the number of this program."""
    return tl.atomic_add(turns, 1, sem="relaxed")


@triton.jit
def wait(turns, programs):
    """Wait until so many programs are done, and see what they have written."""
    while tl.atomic_add(turns + 1, 0, sem="acquire") < programs:
        pass


@triton.jit
def leave(turns, programs):
    """Say that this program is done, and what it has written is there. The last of all begins the numbers anew."""
    tl.debug_barrier()
    if tl.atomic_add(turns + 1, 1, sem="acq_rel") == programs - 1:
        begin_turns(turns)


@triton.jit
def begin_turns(turns):
    """Begin the numbers: none is drawn, and nobody is done."""
    tl.store(turns, 0)
    tl.store(turns + 1, 0)


@triton.jit
def rows(program, batch, order, ROWS: tl.constexpr, PARTICLES: tl.constexpr):
    """Find the rows of the batch in this program, whole groups of PARTICLES, and which of them there are."""
    WHOLE: tl.constexpr = ROWS // PARTICLES * PARTICLES
    lane = tl.arange(0, ROWS)
    b = program * WHOLE + lane
    inside = (lane < WHOLE) & (b < batch)
    if order is not None:
        b = tl.load(order + b, mask=inside, other=0).to(tl.int32)
    return b, inside


@triton.jit
def row_tile(program, count, batch, lengths, ROWS: tl.constexpr):
    """Find the rows t * batch + b in this program, which of them there are, and which are no padding."""
    row = program * ROWS + tl.arange(0, ROWS)
    inside = row < count
    return row.to(tl.int64), inside, inside & real(row, inside, batch, lengths)


@triton.jit
def real(row, inside, batch, lengths):
    """Tell which rows are no padding."""
    if lengths is None:
        return inside
    else:
        t = row // batch
        return t < tl.load(lengths + (row - t * batch), mask=inside, other=0)


@triton.jit
def only(tile, active, lengths):
    """Return a tile with zeros at padding."""
    if lengths is None:
        return tile
    else:
        return tl.where(active[:, None], tile, 0.0)


@triton.jit
def clear(base, row, inside, active, WIDTH: tl.constexpr):
    """Write zeros at padding."""
    for column in range(WIDTH):
        tl.store(base + row * WIDTH + column, 0.0, mask=inside & (active == 0))


@triton.jit
def by_length(program, lengths, order, batch, ROWS: tl.constexpr, PARTICLES: tl.constexpr):
    """Find the places of ROWS sequences among all, the longest first, so that a tile's rows end together. Those of the
    same length stay as they are, and the particles of a sequence side by side."""
    groups = batch // PARTICLES
    mine = program * ROWS + tl.arange(0, ROWS)
    inside = mine < groups
    length = tl.load(lengths + mine * PARTICLES, mask=inside, other=0)
    place = tl.zeros((ROWS,), tl.int32)
    for first in range(0, groups, ROWS):
        other = first + tl.arange(0, ROWS)
        others = tl.load(lengths + other * PARTICLES, mask=other < groups, other=-1)
        before = (others[None, :] == length[:, None]) & (other[None, :] < mine[:, None])
        place += tl.sum((before | (others[None, :] > length[:, None])).to(tl.int32), 1)
    for particle in range(PARTICLES):
        at = order + place * PARTICLES + particle
        tl.store(at, (mine * PARTICLES + particle).to(tl.int64), mask=inside)


@triton.jit
def number(base, row, active):
    """Read a number of each row; zero where it is not active."""
    return tl.load(base + row, mask=active, other=0.0).to(tl.float32)


@triton.jit
def store_number(base, row, inside, active, number):
    """Write a number of each row; zero where it is not active."""
    tl.store(base + row, tl.where(active, number, 0.0).to(base.dtype.element_ty), mask=inside)


@triton.jit
def rounded(tile, base):
    """Return a tile as memory would give it back."""
    return tile.to(base.dtype.element_ty).to(tl.float32)


@triton.jit
def running(t, length):
    """Tell which are the rows that step t belongs to."""
    t = t + 0 * length
    return (t >= 0) & (t < length)


@triton.jit
def place(base, row, active, column, START: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr):
    """Find where columns of the rows of a buffer are, and which of them there are."""
    at = base + row[:, None] * STRIDE + (START + column)[None, :]
    return at, active[:, None] & (column < WIDTH)[None, :]


@triton.jit
def load(
    base,
    row,
    active,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    STRIDE: tl.constexpr,
    PTX: tl.constexpr,
):
    """Read columns of the rows of a buffer; zeros at rows that are not active.

    Where instructions of PTX may be written down, each thread reads and stores what it needs and has: ``tl.load`` and
    ``tl.store`` would pass it through shared memory first, between two barriers, for accesses of whole lines. Such a
    read may move to where its value is needed: nothing that a program reads so is written by it (writer.py).
    """
    KIND: tl.constexpr = base.dtype.element_ty
    BITS: tl.constexpr = KIND.primitive_bitwidth
    if not PTX or BITS == 8:
        at, mask = place(base, row, active, tl.arange(0, PADDED), START, WIDTH, STRIDE)
        return tl.load(at, mask=mask, other=0.0)
    elif START % 2 + WIDTH % 2 + STRIDE % 2 == 0:
        at, mask = place(base, row, active, 2 * tl.arange(0, PADDED // 2), START, WIDTH, STRIDE)
        if BITS == 16:
            both = tl.inline_asm_elementwise(LOAD_32, "=r,l,r", [at, mask.to(tl.int32)], tl.int32, True, 1)
            low, high = both.to(tl.int16), (both >> 16).to(tl.int16)
        else:
            both = tl.inline_asm_elementwise(LOAD_64, "=l,l,r", [at, mask.to(tl.int32)], tl.int64, True, 1)
            low, high = both.to(tl.int32), (both >> 32).to(tl.int32)
        pairs = tl.join(low.to(KIND, bitcast=True), high.to(KIND, bitcast=True))
        return tl.reshape(pairs, (pairs.shape[0], PADDED))
    else:
        at, mask = place(base, row, active, tl.arange(0, PADDED), START, WIDTH, STRIDE)
        if BITS == 16:
            bits = tl.inline_asm_elementwise(LOAD_16, "=r,l,r", [at, mask.to(tl.int32)], tl.int32, True, 1)
            return bits.to(tl.int16).to(KIND, bitcast=True)
        else:
            bits = tl.inline_asm_elementwise(LOAD_32, "=r,l,r", [at, mask.to(tl.int32)], tl.int32, True, 1)
            return bits.to(KIND, bitcast=True)


@triton.jit
def store(
    base,
    row,
    active,
    tile,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    STRIDE: tl.constexpr,
    PTX: tl.constexpr,
):
    """Write columns of the rows of a buffer; PTX as in :func:`load`."""
    KIND: tl.constexpr = base.dtype.element_ty
    BITS: tl.constexpr = KIND.primitive_bitwidth
    if not PTX:
        at, mask = place(base, row, active, tl.arange(0, PADDED), START, WIDTH, STRIDE)
        tl.store(at, tile.to(KIND), mask=mask)
    elif START % 2 + WIDTH % 2 + STRIDE % 2 == 0:
        at, mask = place(base, row, active, 2 * tl.arange(0, PADDED // 2), START, WIDTH, STRIDE)
        low, high = tl.split(tl.reshape(tile, (tile.shape[0], PADDED // 2, 2)))
        if BITS == 16:
            PAIR: tl.constexpr = STORE_PAIR_BF16 if base.dtype.element_ty == tl.bfloat16 else STORE_PAIR_FP16
            tl.inline_asm_elementwise(PAIR, "=r,l,f,f,r", [at, low, high, mask.to(tl.int32)], tl.int32, False, 1)
        else:
            low = low.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
            both = low | (high.to(tl.int32, bitcast=True).to(tl.int64) << 32)
            tl.inline_asm_elementwise(STORE_64, "=r,l,l,r", [at, both, mask.to(tl.int32)], tl.int32, False, 1)
    else:
        at, mask = place(base, row, active, tl.arange(0, PADDED), START, WIDTH, STRIDE)
        if BITS == 16:
            bits = tile.to(KIND).to(tl.int16, bitcast=True).to(tl.int32)
            tl.inline_asm_elementwise(STORE_16, "=r,l,r,r", [at, bits, mask.to(tl.int32)], tl.int32, False, 1)
        else:
            bits = tile.to(tl.int32, bitcast=True)
            tl.inline_asm_elementwise(STORE_32, "=r,l,r,r", [at, bits, mask.to(tl.int32)], tl.int32, False, 1)


@triton.jit
def weight(base, OFFSET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Read a tile of weights, as :func:`pack` leaves it."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(base + OFFSET + at)


@triton.jit
def bias(base, OFFSET: tl.constexpr, PADDED: tl.constexpr):
    return tl.load(base + OFFSET + tl.arange(0, PADDED)).to(tl.float32)


@triton.jit
def spread(row, ROWS: tl.constexpr):
    """Repeat the same row, (columns), for every one of ROWS."""
    return row[None, :] + tl.zeros((ROWS, 1), tl.float32)


@triton.jit
def operand(tile, PRECISION: tl.constexpr):
    """Make a tile as products take it: tensor cores cut TF32 where this rounds to the nearest."""
    if PRECISION == "tf32" and tile.dtype == tl.float32:
        bits = (tile.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(tile == tile, bits.to(tl.float32, bitcast=True), tile)
    else:
        return tile


@triton.jit
def opaque(tile, ASM: tl.constexpr, PTX: tl.constexpr):
    """Return a tile whose origin the compiler does not see, behind instructions ``ASM`` of PTX on each element."""
    if not COMPILED:
        return tile
    elif PTX:
        return tl.inline_asm_elementwise(ASM, "=r,0", [tile], tile.dtype, False, 1)
    else:
        return tl.inline_asm_elementwise("", "=v,0", [tile], tile.dtype, False, 1)


@triton.jit
def operands(tile, weights, PTX: tl.constexpr):
    """Return a tile as the products of one stage take it. Of float32, an operand takes up to a register of each thread
    for each column: of a tile that several stages multiply, the compiler would make one, and hold it from the first
    stage to the last."""
    return opaque(tile, "", PTX) if weights.dtype.element_ty == tl.float32 else tile


@triton.jit
def product(source, weights, total, PRECISION: tl.constexpr, PTX: tl.constexpr = None):
    """Compute total + source @ weights, operands in the weights' dtype, sums in float32. ``total`` may be None. Weights
    are operands already.

    With a ``PTX``, as in :func:`load`, sums of float32 are done when the next barrier comes. The compiler would put
    them off to where they are needed, and hold their operands, which it must read before that barrier.
    """
    source = operand(source.to(weights.dtype), PRECISION)
    if WIDEN:
        source = source.to(tl.float32)
        weights = weights.to(tl.float32)
    if total is None:
        total = tl.dot(source, weights, input_precision=PRECISION)
    else:
        total = tl.dot(source, weights, total, input_precision=PRECISION)
    return opaque(total, DONE, PTX) if PTX is not None and weights.dtype == tl.float32 else total


# ---- weights


@triton.jit
def pack(
    into,
    parameter,
    ROW: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED_COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write (ROWS, COLUMNS) of a parameter as a tile of operands, padded with zeros, or its transpose."""
    row = tl.arange(0, PADDED_ROWS)[:, None]
    column = tl.arange(0, PADDED_COLUMNS)[None, :]
    at = parameter + (ROW + row) * STRIDE + COLUMN + column
    tile = tl.load(at, mask=(row < ROWS) & (column < COLUMNS), other=0.0)
    to = column * PADDED_ROWS + row if TRANSPOSED else row * PADDED_COLUMNS + column
    tl.store(into + to, operand(tile, PRECISION))


@triton.jit
def term(total, parameter, ROW: tl.constexpr, ROWS: tl.constexpr, AT: tl.constexpr, PADDED: tl.constexpr):
    """Add ROWS of a parameter to the columns of a bias from AT on."""
    place = tl.arange(0, PADDED) - AT
    values = tl.load(parameter + ROW + place, mask=(place >= 0) & (place < ROWS), other=0.0).to(tl.float32)
    return total + values


@triton.jit
def pack_bias(into, total, PADDED: tl.constexpr):
    tl.store(into + tl.arange(0, PADDED), total.to(into.dtype.element_ty))


@triton.jit
def weight_gradient(
    into,
    stride,
    rows,
    columns,
    d,
    d_stride,
    value,
    value_stride,
    count,
    batch,
    lengths,
    PADDED_ROWS: tl.constexpr,
    PADDED_COLUMNS: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add up d.T @ value over all rows, and write it to (rows, columns) of a parameter's gradient. None for ``d`` is
    zeros. So many rows and columns lie together as are EVEN."""
    row = tl.arange(0, PADDED_ROWS)
    column = tl.arange(0, PADDED_COLUMNS)
    there = row < rows
    across = column < columns
    total = tl.zeros((PADDED_ROWS, PADDED_COLUMNS), tl.float32)
    if d is not None:
        for turn in range(tl.cdiv(count, STEP)):
            of, _, active = row_tile(turn, count, batch, lengths, STEP)
            left = tl.load(d + of[:, None] * d_stride + row, mask=active[:, None] & there, other=0.0)
            right = tl.load(value + of[:, None] * value_stride + column, mask=active[:, None] & across, other=0.0)
            total = product(tl.trans(left), operand(right, PRECISION), total, PRECISION)
    at = into + row[:, None] * stride + column
    tl.store(at, total.to(into.dtype.element_ty), mask=there[:, None] & across)


@triton.jit
def bias_gradient(
    into,
    rows,
    d,
    d_stride,
    count,
    batch,
    lengths,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    STEP: tl.constexpr,
):
    """Add up d over all rows, and write it to so many rows of a parameter's gradient. See :func:`weight_gradient`."""
    row = tl.arange(0, PADDED)
    total = tl.zeros((PADDED,), tl.float32)
    if d is not None:
        for turn in range(tl.cdiv(count, STEP)):
            of, _, active = row_tile(turn, count, batch, lengths, STEP)
            part = tl.load(d + of[:, None] * d_stride + row, mask=active[:, None] & (row < rows), other=0.0)
            total += tl.sum(part.to(tl.float32), 0)
    tl.store(into + row, total.to(into.dtype.element_ty), mask=row < rows)
