"""What a stage does to tiles, for the generated kernels to call, beside what memory.py does. Triton's language: it runs
in float32.

A tile is (rows, columns) with zeros, or what elementwise stages make of zeros, where it is padded; weights have zeros
there, so padding never meets a result. Every function lets NaN through.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import *  # noqa: F403

ALL = tl.constexpr(tl.PropagateNan.ALL)

# ---- elementary functions


@triton.jit
def exp(x):
    """Compute e^x within 2 ulp: what 2^x is fast and exact enough for is the fraction alone, and the rest is shifted
    into place."""
    x = tl.minimum(x, 89.0, propagate_nan=ALL)
    x = tl.maximum(x, -104.0, propagate_nan=ALL)
    shifted = x * 1.44269504088896341 + 12582912.0  # 1.5 * 2^23: the integer is in its last bits
    n = shifted - 12582912.0
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    k = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    half = k >> 1  # in two factors: it reaches 128, and -150
    return tl.exp2(r * 1.44269504088896341) * power(half) * power(k - half)


@triton.jit
def power(k):
    """Compute 2^k of an integer, from -126 to 127."""
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def gate(x):
    """Compute the sigmoid to an ulp of 1, which is what is seen of it in a product: where 2^y is large, its last digits
    are not."""
    return 1.0 / (1.0 + tl.exp2(x * -1.44269504088896341))


@triton.jit
def tanh(x):
    """Compute the hyperbolic tangent, with coefficients of S. Moshier's Cephes library, near zero."""
    z = x * x
    p = z * -5.70498872745e-3 + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    large = 1.0 - 2.0 / (1.0 + tl.exp2(tl.abs(x) * 2.88539008177792681))
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
    """Compute a + log(1 + u), corrected to first order for the rounding of 1 + u."""
    w = 1.0 + u
    return a + (tl.log(w) + (u - (w - 1.0)) / w)


@triton.jit
def softplus(x):
    """Compute log(1 + exp(x))."""
    return plus_log1p(tl.where(x < 0, 0.0, x), exp(-tl.abs(x)))


@triton.jit
def normal_cdf(x):
    """Compute the normal distribution function, as csrc/cpu/math.h does."""
    a = tl.abs(x)
    z = x * x
    t = 1.0 / (a + 2.0)
    p = z * -6.644860605e-6 + 1.103274626e-4
    p = p * z - 1.1827095877e-3
    p = p * z + 9.9715003744e-3
    p = p * z - 6.6489987075e-2
    p = p * z + 3.9894226193e-1
    q = t * -3.5796813965e1 + 5.1824279785e1
    q = q * t - 2.3901477814e1
    q = q * t + 7.622390985e-1
    q = q * t + 5.257686377e-1
    q = q * t + 1.2127138376
    q = q * t + 7.973827124e-1
    q = q * t + 3.989488184e-1
    tail = exp(z * -0.5) * (q * t)
    return tl.where(a < 1.25, p * x + 0.5, tl.where(x < 0, tail, 1.0 - tail))


@triton.jit
def activate(x, KIND: tl.constexpr):
    if KIND == "relu":
        return tl.maximum(x, 0.0, propagate_nan=ALL)
    elif KIND == "leaky_relu":
        return tl.where(x < 0, x * 0.01, x)
    elif KIND == "tanh":
        return tanh(x)
    elif KIND == "elu":
        return tl.where(x < 0, expm1(x), x)
    elif KIND == "silu":
        return x * sigmoid(x)
    elif KIND == "gelu":
        return x * normal_cdf(x)
    else:
        return x


@triton.jit
def unless_zero(d, product):
    """Return d times a slope; zero of zero, whatever the slope: where nothing comes from above, torch does not go on,
    and a state that ran away has slopes of infinity and NaN."""
    return tl.where(d == 0, 0.0, product)


@triton.jit
def activate_backward(at, d, KIND: tl.constexpr):
    """Return d times the derivative, from the result; of silu and gelu from what it was computed from."""
    if KIND == "relu":
        return tl.where(at <= 0, 0.0, d)
    elif KIND == "leaky_relu":
        return tl.where(at > 0, d, d * 0.01)
    elif KIND == "tanh":
        return unless_zero(d, d * (1.0 - at * at))
    elif KIND == "elu":
        return tl.where(at > 0, d, unless_zero(d, d * (at + 1.0)))
    elif KIND == "silu":
        s = sigmoid(at)
        return unless_zero(d, d * (s * (1.0 + at * (1.0 - s))))
    elif KIND == "gelu":
        density = exp(at * at * -0.5) * 0.398942280
        return unless_zero(d, d * (normal_cdf(at) + at * density))
    else:
        return d


@triton.jit
def squared(x, mean):
    apart = x - mean[:, None]
    return apart * apart


@triton.jit
def inverse(variance, EPS: tl.constexpr):
    """Compute 1 / sqrt(variance + EPS) of each row."""
    return 1.0 / tl.sqrt(variance + EPS)


@triton.jit
def normal(x, mean, inverse):
    return (x - mean[:, None]) * inverse[:, None]


@triton.jit
def normalize(x, mean, inverse, scale, shift):
    return normal(x, mean, inverse) * scale + shift


@triton.jit
def scaled(d, scale):
    """Compute d * scale, rounded: fused into the difference below, it would not cancel where it must."""
    return tl.fma(d, scale, 0.0)


@triton.jit
def normalize_backward(x, mean, inverse, d, level, slope):
    """Compute the gradient of each column, from that of the scaled one, its mean over the row, and the mean of its
    products with the normalised columns."""
    return ((d - level[:, None]) - normal(x, mean, inverse) * slope[:, None]) * inverse[:, None]


@triton.jit
def total(terms, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Add up columns, (rows)."""
    if WIDTH != PADDED:
        terms = tl.where((tl.arange(0, PADDED) < WIDTH)[None, :], terms, 0.0)
    return tl.sum(terms, 1)


@triton.jit
def moments(base, row, active, stride, WIDTH: tl.constexpr, PIECE: tl.constexpr, EPS: tl.constexpr):
    """Compute the mean and 1 / sqrt(variance + EPS) of WIDTH columns of the rows of a buffer, a piece at a time."""
    mean = tl.zeros((row.shape[0],), tl.float32)
    for first in range(0, WIDTH, PIECE):
        column = first + tl.arange(0, PIECE)
        there = active[:, None] & (column < WIDTH)
        mean += tl.sum(tl.load(base + row[:, None] * stride + column, mask=there, other=0.0).to(tl.float32), 1)
    mean = mean / WIDTH
    variance = tl.zeros((row.shape[0],), tl.float32)
    for first in range(0, WIDTH, PIECE):
        column = first + tl.arange(0, PIECE)
        there = active[:, None] & (column < WIDTH)
        x = tl.load(base + row[:, None] * stride + column, mask=there, other=0.0).to(tl.float32)
        variance += tl.sum(tl.where(there, squared(x, mean), 0.0), 1)
    return mean, inverse(variance / WIDTH, EPS)


@triton.jit
def scale_gradient(
    into,
    rows,
    d,
    d_stride,
    value,
    value_stride,
    first,
    count,
    batch,
    lengths,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    EPS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Add up d times the normalised columns from ``first`` on, of WIDTH in all that lie at ``value``, and write it to
    so many rows of the scale's gradient. See :func:`.memory.weight_gradient`."""
    row = tl.arange(0, PADDED)
    total = tl.zeros((PADDED,), tl.float32)
    if d is not None:
        for turn in range(tl.cdiv(count, STEP)):
            of, _, active = row_tile(turn, count, batch, lengths, STEP)  # noqa: F405
            mean, over = moments(value, of, active, value_stride, WIDTH, PIECE, EPS)
            there = active[:, None] & (row < rows)
            part = tl.load(d + of[:, None] * d_stride + row, mask=there, other=0.0).to(tl.float32)
            x = tl.load(value + of[:, None] * value_stride + first + row, mask=there, other=0.0).to(tl.float32)
            total += tl.sum(tl.where(there, part * normal(x, mean, over), 0.0), 0)
    tl.store(into + row, total.to(into.dtype.element_ty), mask=row < rows)


@triton.jit
def log_ratio(z, eps, q_std, p_mean, p_std):
    """Compute log q(z) - log p(z) of each column. Exactly 0 of equal densities: a GPU's faster quotient of
    equal numbers may not be 1, and a fused multiply-add rounds one of two squares alone."""
    distance = tl.div_rn(z - p_mean, p_std)
    return 0.5 * ((distance - eps) * (distance + eps)) - tl.log(tl.div_rn(q_std, p_std))


@triton.jit
def divergence(q_mean, q_std, p_mean, p_std):
    """Compute KL(q || p) of each column, exactly 0 of equal densities."""
    ratio = tl.div_rn(q_std, p_std)
    distance = tl.div_rn(q_mean - p_mean, p_std)
    return 0.5 * (ratio * ratio + (distance * distance - 1.0)) - tl.log(ratio)


@triton.jit
def divergence_backward(at, q_std, p_mean, p_std, g, SAMPLED: tl.constexpr):
    """Compute for each column, from the gradient of each row, those of q's mean or, SAMPLED, of z, and of q_std, p_mean
    and p_std."""
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
    """Compute -log p(x) of each column, here and below."""
    return plus_log1p(tl.where(logit < 0, 0.0, logit) - x * logit, exp(-tl.abs(logit)))


@triton.jit
def bernoulli_draw(logit, noise):
    """Draw x of each column; NaN of NaN."""
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
    """Compute for each column, from the gradient of each row, those of x and of the logit. Here and below."""
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
    """Choose as vrnn_fast.resampling.resample does: which particle of its sequence each row goes on from, -1 where from
    itself."""
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
    """Tell which rows of a tile its rows go on from."""
    lane = tl.arange(0, ROWS)
    return tl.where(ancestor < 0, lane, lane - lane % PARTICLES + ancestor)


@triton.jit
def take(tile, row):
    """Take rows of a tile, in this order."""
    return tl.gather(tile, tl.broadcast_to(row[:, None], tile.shape), 0)


@triton.jit
def give_back(d, ancestor, ROWS: tl.constexpr, PARTICLES: tl.constexpr):
    """Compute the gradients of a tile's rows from those of the rows that took them over, added up in the order of
    these."""
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
    """Compute a standard deviation from its raw value: vrnn_fast.cell.spec.Std."""
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
    """Return d times the derivative. What a clamp holds is selected, NaN as well where there is one: torch's is stopped
    so."""
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
    """Turn gates before their activations to gates, and h_t."""
    r = gate(r)
    u = gate(u)
    n = tanh(n + r * n_h)
    return r, u, n, n + u * (h - n)


@triton.jit
def gru_backward(r, u, n, n_h, h, d):
    """Turn d of h_t into those of r, u, n_x and n_h before their activations, and of h_{t-1} past them."""
    d_n = unless_zero(d, d * (1.0 - u) * (1.0 - n * n))
    d_r = unless_zero(d_n, d_n * n_h * r * (1.0 - r))
    d_u = unless_zero(d, d * (h - n) * u * (1.0 - u))
    return d_r, d_u, d_n, unless_zero(d_n, d_n * r), unless_zero(d, d * u)


@triton.jit
def lstm(i, f, g, o, c):
    i = gate(i)
    f = gate(f)
    g = tanh(g)
    o = gate(o)
    c = f * c + i * g
    return i, f, g, o, o * tanh(c), c


@triton.jit
def lstm_backward(i, f, g, o, c, d_h, d_c):
    """Turn d of h_t and c_t to those of the gates before their activations, and of c_{t-1}."""
    squashed = tanh(f * c + i * g)
    d_c += unless_zero(d_h, d_h * o * (1.0 - squashed * squashed))
    d_i = unless_zero(d_c, d_c * g * i * (1.0 - i))
    d_f = unless_zero(d_c, d_c * c * f * (1.0 - f))
    d_g = unless_zero(d_c, d_c * i * (1.0 - g * g))
    d_o = unless_zero(d_h, d_h * squashed * o * (1.0 - o))
    return d_i, d_f, d_g, d_o, unless_zero(d_c, d_c * f)
