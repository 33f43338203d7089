"""What a stage does to tiles, for the generated kernels to call. Triton's language: it runs in float32.

A tile is (rows, columns) with zeros, or what elementwise stages make of zeros, where it is padded; weights have zeros
there, so padding never meets a result. Every function lets NaN through.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .versions import INTERPRETED

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
    """The rows of the batch in this program, whole groups of PARTICLES, and which of them there are."""
    WHOLE: tl.constexpr = ROWS // PARTICLES * PARTICLES
    lane = tl.arange(0, ROWS)
    b = program * WHOLE + lane
    inside = (lane < WHOLE) & (b < batch)
    if order is not None:
        b = tl.load(order + b, mask=inside, other=0).to(tl.int32)
    return b, inside


@triton.jit
def row_tile(program, count, ROWS: tl.constexpr):
    """The rows in this program, and which of them there are."""
    row = tl.cast(program, tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, row < count


@triton.jit
def number(base, row, active):
    """A number of each row; zero where it is not active."""
    return tl.load(base + row, mask=active, other=0.0).to(tl.float32)


@triton.jit
def store_number(base, row, active, number):
    tl.store(base + row, number.to(base.dtype.element_ty), mask=active)


@triton.jit
def rounded(tile, base):
    """A tile as memory would give it back."""
    return tile.to(base.dtype.element_ty).to(tl.float32)


@triton.jit
def running(t, length):
    """The rows that step t belongs to."""
    t = t + 0 * length
    return (t >= 0) & (t < length)


@triton.jit
def load(base, row, active, START: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, STRIDE: tl.constexpr):
    """Columns of the rows of a buffer; zeros at rows that are not active."""
    column = tl.arange(0, PADDED)
    at = base + row[:, None] * STRIDE + (START + column)[None, :]
    mask = active[:, None]
    if WIDTH != PADDED:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def store(
    base, row, active, tile, START: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, STRIDE: tl.constexpr
):
    column = tl.arange(0, PADDED)
    at = base + row[:, None] * STRIDE + (START + column)[None, :]
    mask = active[:, None]
    if WIDTH != PADDED:
        mask = mask & (column < WIDTH)[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def weight(base, OFFSET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of weights, as :func:`pack` leaves it."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(base + OFFSET + at)


@triton.jit
def bias(base, OFFSET: tl.constexpr, PADDED: tl.constexpr):
    return tl.load(base + OFFSET + tl.arange(0, PADDED)).to(tl.float32)


@triton.jit
def spread(row, ROWS: tl.constexpr):
    """The same row, (columns), for every one of ROWS."""
    return row[None, :] + tl.zeros((ROWS, 1), tl.float32)


@triton.jit
def operand(tile, PRECISION: tl.constexpr):
    """A tile as products take it: tensor cores cut TF32 where this rounds to the nearest."""
    if PRECISION == "tf32" and tile.dtype == tl.float32:
        bits = (tile.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(tile == tile, bits.to(tl.float32, bitcast=True), tile)
    else:
        return tile


@triton.jit
def product(source, weights, total, PRECISION: tl.constexpr):
    """total + source @ weights, operands in the weights' dtype, sums in float32. ``total`` may be None. Weights are
    operands already."""
    source = operand(source.to(weights.dtype), PRECISION)
    if WIDEN:
        source = source.to(tl.float32)
        weights = weights.to(tl.float32)
    if total is None:
        return tl.dot(source, weights, input_precision=PRECISION)
    else:
        return tl.dot(source, weights, total, input_precision=PRECISION)


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
    ROW: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED_COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    d,
    D_START: tl.constexpr,
    D_STRIDE: tl.constexpr,
    value,
    START: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    count,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add up d.T @ value over all rows, and write it to (ROWS, COLUMNS) of a parameter's gradient. None for ``d`` is
    zeros."""
    total = tl.zeros((PADDED_ROWS, PADDED_COLUMNS), tl.float32)
    if d is not None:
        for first in range(0, count, STEP):
            row = first + tl.arange(0, STEP).to(tl.int64)
            left = load(d, row, row < count, D_START, ROWS, PADDED_ROWS, D_STRIDE)
            right = load(value, row, row < count, START, COLUMNS, PADDED_COLUMNS, VALUE_STRIDE)
            total = product(tl.trans(left), operand(right, PRECISION), total, PRECISION)
    row = tl.arange(0, PADDED_ROWS)[:, None]
    column = tl.arange(0, PADDED_COLUMNS)[None, :]
    at = into + (ROW + row) * STRIDE + COLUMN + column
    tl.store(at, total.to(into.dtype.element_ty), mask=(row < ROWS) & (column < COLUMNS))


@triton.jit
def bias_gradient(
    into,
    ROW: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    d,
    D_START: tl.constexpr,
    D_STRIDE: tl.constexpr,
    count,
    STEP: tl.constexpr,
):
    """Add up d over all rows, and write it to ROWS of a parameter's gradient."""
    total = tl.zeros((PADDED,), tl.float32)
    if d is not None:
        for first in range(0, count, STEP):
            row = first + tl.arange(0, STEP).to(tl.int64)
            total += tl.sum(load(d, row, row < count, D_START, ROWS, PADDED, D_STRIDE).to(tl.float32), 0)
    column = tl.arange(0, PADDED)
    tl.store(into + ROW + column, total.to(into.dtype.element_ty), mask=column < ROWS)


# ---- elementary functions


@triton.jit
def exp(x):
    """Within 2 ulp: what 2^x is fast and exact enough for is the fraction alone, and the rest is shifted into place."""
    x = tl.where(x > 89.0, 89.0, x)
    x = tl.where(x < -104.0, -104.0, x)
    shifted = x * 1.44269504088896341 + 12582912.0  # 1.5 * 2^23: the integer is in its last bits
    n = shifted - 12582912.0
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    k = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    half = k >> 1  # in two factors: it reaches 128, and -150
    return tl.exp2(r * 1.44269504088896341) * power(half) * power(k - half)


@triton.jit
def power(k):
    """2^k of an integer, from -126 to 127."""
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def tanh(x):
    """Coefficients of S. Moshier's Cephes library, near zero."""
    z = x * x
    p = z * -5.70498872745e-3 + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    large = 1.0 - 2.0 / (exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, p * z * x + x, tl.where(x < 0, -large, large))


@triton.jit
def expm1(x):
    p = x * (1.0 / 40320) + 1.0 / 5040
    p = p * x + 1.0 / 720
    p = p * x + 1.0 / 120
    p = p * x + 1.0 / 24
    p = p * x + 1.0 / 6
    p = p * x + 0.5
    return tl.where(tl.abs(x) < 0.5, p * x * x + x, exp(x) - 1.0)


@triton.jit
def plus_log1p(a, u):
    """a + log(1 + u), corrected to first order for the rounding of 1 + u."""
    w = 1.0 + u
    return a + (tl.log(w) + (u - (w - 1.0)) / w)


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    return plus_log1p(tl.where(x < 0, 0.0, x), exp(-tl.abs(x)))


@triton.jit
def activate(x, KIND: tl.constexpr):
    if KIND == "relu":
        return tl.where(x < 0, 0.0, x)
    elif KIND == "leaky_relu":
        return tl.where(x < 0, x * 0.01, x)
    elif KIND == "tanh":
        return tanh(x)
    elif KIND == "elu":
        return tl.where(x < 0, expm1(x), x)
    else:
        return x


@triton.jit
def unless_zero(d, product):
    """d times a slope; zero of zero, whatever the slope: where nothing comes from above, torch does not go on, and a
    state that ran away has slopes of infinity and NaN."""
    return tl.where(d == 0, 0.0, product)


@triton.jit
def activate_backward(y, d, KIND: tl.constexpr):
    """d times the derivative, from the result y."""
    if KIND == "relu":
        return tl.where(y <= 0, 0.0, d)
    elif KIND == "leaky_relu":
        return tl.where(y > 0, d, d * 0.01)
    elif KIND == "tanh":
        return unless_zero(d, d * (1.0 - y * y))
    elif KIND == "elu":
        return tl.where(y > 0, d, unless_zero(d, d * (y + 1.0)))
    else:
        return d


@triton.jit
def total(terms, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The sum over columns, (rows)."""
    if WIDTH != PADDED:
        terms = tl.where((tl.arange(0, PADDED) < WIDTH)[None, :], terms, 0.0)
    return tl.sum(terms, 1)


@triton.jit
def log_ratio(z, eps, q_std, p_mean, p_std):
    """log q(z) - log p(z) of each column. Exactly 0 of equal densities: a GPU's faster quotient of
    equal numbers may not be 1, and a fused multiply-add rounds one of two squares alone."""
    distance = tl.div_rn(z - p_mean, p_std)
    return 0.5 * ((distance - eps) * (distance + eps)) - tl.log(tl.div_rn(q_std, p_std))


@triton.jit
def divergence(q_mean, q_std, p_mean, p_std):
    """KL(q || p) of each column, exactly 0 of equal densities."""
    ratio = tl.div_rn(q_std, p_std)
    distance = tl.div_rn(q_mean - p_mean, p_std)
    return 0.5 * (ratio * ratio + (distance * distance - 1.0)) - tl.log(ratio)


@triton.jit
def divergence_backward(at, q_std, p_mean, p_std, g, SAMPLED: tl.constexpr):
    """Of each column, from the gradient of each row: those of q's mean or, SAMPLED, of z, and of q_std, p_mean and
    p_std."""
    g = g[:, None]
    distance = tl.div_rn(at - p_mean, p_std)
    d_at = g * tl.div_rn(distance, p_std)
    if SAMPLED:
        d_q_std = -tl.div_rn(g, q_std)
        d_p_std = tl.div_rn(g, p_std) * (1.0 - distance * distance)
    else:
        ratio = tl.div_rn(q_std, p_std)
        d_q_std = g * (tl.div_rn(ratio, p_std) - tl.div_rn(1.0, q_std))
        d_p_std = tl.div_rn(g, p_std) * (1.0 - ratio * ratio - distance * distance)
    return d_at, d_q_std, -d_at, d_p_std


@triton.jit
def bernoulli(x, logit):
    """-log p(x) of each column, here and below."""
    return plus_log1p(tl.where(logit < 0, 0.0, logit) - x * logit, exp(-tl.abs(logit)))


@triton.jit
def bernoulli_draw(logit, noise):
    """x of each column; NaN of NaN."""
    return tl.where(logit == logit, tl.where(logit > noise, 1.0, 0.0), logit)


@triton.jit
def gaussian(
    x,
    mean,
    raw,
    SOFTPLUS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    FLOOR: tl.constexpr,
    MINIMUM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
):
    std = deviation(raw, SOFTPLUS, SHIFT, SCALE, FLOOR, MINIMUM, LOW, HIGH)
    distance = (x - mean) / std
    return 0.5 * distance * distance + tl.log(std) + 0.91893853320467274178


@triton.jit
def bernoulli_backward(x, logit, g):
    """Of each column, from the gradient of each row: those of x and of the logit. Here and below."""
    g = g[:, None]
    return -g * logit, g * ((1.0 - x) * sigmoid(logit) - x * sigmoid(-logit))


@triton.jit
def gaussian_backward(
    x,
    mean,
    raw,
    g,
    SOFTPLUS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    FLOOR: tl.constexpr,
    MINIMUM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
):
    g = g[:, None]
    std = deviation(raw, SOFTPLUS, SHIFT, SCALE, FLOOR, MINIMUM, LOW, HIGH)
    distance = (x - mean) / std
    d_x = g * distance / std
    d_std = g / std * (1.0 - distance * distance)
    return d_x, -d_x, deviation_backward(raw, d_std, SOFTPLUS, SHIFT, SCALE, FLOOR, MINIMUM, LOW, HIGH)


@triton.jit
def resample(log_weight, uniform, enough, goes_on, ROWS: tl.constexpr, PARTICLES: tl.constexpr):
    """vrnn_fast.resampling.resample: which particle of its sequence each row goes on from, -1 where from itself."""
    lane = tl.arange(0, ROWS)
    same = lane[:, None] // PARTICLES == lane[None, :] // PARTICLES
    behind = log_weight - tl.max(tl.where(same, log_weight[None, :], float("-inf")), 1)
    weight = tl.where(behind < -103.0, 0.0, exp(behind))
    weights = tl.where(same, weight[None, :], 0.0)
    squares = tl.sum(weights * weights, 1)
    upto = tl.sum(tl.where(lane[None, :] <= lane[:, None], weights, 0.0), 1)
    whole = tl.sum(weights, 1)
    wanted = uniform * whole
    drawn = tl.sum((same & (upto[None, :] <= wanted[:, None])).to(tl.int32), 1)
    last = tl.sum((same & (upto[None, :] < whole[:, None])).to(tl.int32), 1)
    return tl.where(goes_on & (whole * whole / squares < enough), tl.minimum(drawn, last), -1)


@triton.jit
def chosen(ancestor, ROWS: tl.constexpr, PARTICLES: tl.constexpr):
    """The rows of a tile that its rows go on from."""
    lane = tl.arange(0, ROWS)
    return tl.where(ancestor < 0, lane, lane - lane % PARTICLES + ancestor)


@triton.jit
def take(tile, row):
    """Rows of a tile, in this order."""
    return tl.gather(tile, tl.broadcast_to(row[:, None], tile.shape), 0)


@triton.jit
def give_back(d, ancestor, ROWS: tl.constexpr, PARTICLES: tl.constexpr):
    """The gradients of a tile's rows from those of the rows that took them over, added up in the order of these."""
    lane = tl.arange(0, ROWS)
    place = lane % PARTICLES
    origin = tl.where(ancestor < 0, place, ancestor)
    total = tl.zeros_like(d)
    for particle in range(PARTICLES):
        heir = tl.minimum(lane - place + particle, ROWS - 1)
        total += tl.where((tl.gather(origin, heir, 0) == place)[:, None], take(d, heir), 0.0)
    return total


@triton.jit
def _argument(raw, SHIFT: tl.constexpr, SCALE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    if LOW is not None:
        raw = tl.where(raw < LOW, LOW, raw)
    if HIGH is not None:
        raw = tl.where(raw > HIGH, HIGH, raw)
    return (raw + SHIFT) * SCALE


@triton.jit
def _unbounded(u, SOFTPLUS: tl.constexpr, SCALE: tl.constexpr):
    if SOFTPLUS:
        return softplus(u) / SCALE
    else:
        return exp(u)


@triton.jit
def deviation(
    raw,
    SOFTPLUS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    FLOOR: tl.constexpr,
    MINIMUM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
):
    """A standard deviation from its raw value: vrnn_fast.cell.spec.Std."""
    s = _unbounded(_argument(raw, SHIFT, SCALE, LOW, HIGH), SOFTPLUS, SCALE) + FLOOR
    return s if MINIMUM is None else tl.where(s < MINIMUM, MINIMUM, s)


@triton.jit
def deviation_backward(
    raw,
    d,
    SOFTPLUS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    FLOOR: tl.constexpr,
    MINIMUM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
):
    """d times the derivative. What a clamp holds is selected, NaN as well where there is one: torch's is stopped so."""
    u = _argument(raw, SHIFT, SCALE, LOW, HIGH)
    slope = sigmoid(u) if SOFTPLUS else exp(u) * SCALE
    d = unless_zero(d, d * slope)
    if MINIMUM is not None:
        d = tl.where(_unbounded(u, SOFTPLUS, SCALE) + FLOOR >= MINIMUM, d, 0.0)
    if LOW is not None:
        d = tl.where(raw >= LOW, d, 0.0)
    if HIGH is not None:
        d = tl.where(raw <= HIGH, d, 0.0)
    return d


@triton.jit
def gru(r, u, n, n_h, h):
    """Gates before their activations to gates, and h_t."""
    r = sigmoid(r)
    u = sigmoid(u)
    n = tanh(n + r * n_h)
    return r, u, n, n + u * (h - n)


@triton.jit
def gru_backward(r, u, n, n_h, h, d):
    """d of h_t to those of r, u, n_x and n_h before their activations, and of h_{t-1} past them."""
    d_n = unless_zero(d, d * (1.0 - u) * (1.0 - n * n))
    d_r = unless_zero(d_n, d_n * n_h * r * (1.0 - r))
    d_u = unless_zero(d, d * (h - n) * u * (1.0 - u))
    return d_r, d_u, d_n, unless_zero(d_n, d_n * r), unless_zero(d, d * u)


@triton.jit
def lstm(i, f, g, o, c):
    i = sigmoid(i)
    f = sigmoid(f)
    g = tanh(g)
    o = sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, o * tanh(c), c


@triton.jit
def lstm_backward(i, f, g, o, c, d_h, d_c):
    """d of h_t and c_t to those of the gates before their activations, and of c_{t-1}."""
    squashed = tanh(f * c + i * g)
    d_c += unless_zero(d_h, d_h * o * (1.0 - squashed * squashed))
    d_i = unless_zero(d_c, d_c * g * i * (1.0 - i))
    d_f = unless_zero(d_c, d_c * c * f * (1.0 - f))
    d_g = unless_zero(d_c, d_c * i * (1.0 - g * g))
    d_o = unless_zero(d_h, d_h * squashed * o * (1.0 - o))
    return d_i, d_f, d_g, d_o, unless_zero(d_c, d_c * f)
