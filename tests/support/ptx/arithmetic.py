"""What numbers become: integer, floating point and comparison instructions, and conversions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from .text import Unknown
from .values import FLOATS, NUMPY, SIZES, Array, flushed, fused

Function: TypeAlias = Callable[..., Array]


class Rounding:
    """How far elementary functions are off: not at all, or by chance within the bounds of the manual."""

    # ulp, by instruction: the manual's maximal errors, ISA 9.0, 9.7.3
    BOUNDS: Mapping[str, float] = {
        "ex2.approx": 2,
        "lg2.approx": 1,  # or 2^-22, where that is more
        "rcp.approx": 1,
        "div.full": 2,
        "div.approx": 2,
        "sqrt.approx": 1,
        "rsqrt.approx": 2,
        "tanh.approx": 2**13,
    }

    def __init__(self, seed: int | None = None) -> None:
        self._random = None if seed is None else np.random.default_rng(seed)

    def __call__(self, function: str, exact: Array) -> Array:
        """float32 results from float64 ones."""
        if self._random is not None:
            bound = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64) * self.BOUNDS[function]
            if function == "lg2.approx":
                bound = np.maximum(bound, 2.0**-22)
            exact = exact + self._random.uniform(-1, 1, exact.shape) * bound
        return exact.astype(np.float32)


def plain(name: str, modifiers: tuple[str, ...], kind: str) -> Function:
    """The function of an instruction whose operands and result are all of one kind.

    Raises:
        Unknown: none is known of that name, of these modifiers or of that kind.
    """
    if kind == "f32" and (directed := {"rz", "rm"} & set(modifiers)) and name in _DIRECTED:
        return partial(_DIRECTED[name], *directed)
    unknown = set(modifiers) - {"lo", "rn", "ftz", kind, *(("NaN",) if name in ("min", "max") else ())}
    if unknown or (name, kind in FLOATS) not in _PLAIN:
        raise Unknown(".".join((name, *modifiers)))
    function = _PLAIN[name, kind in FLOATS]
    if name in ("min", "max") and kind in FLOATS and "NaN" in modifiers:
        function = {"min": np.minimum, "max": np.maximum}[name]
    if name == "fma" and kind == "f64":
        raise Unknown("fma of f64: its product is not exact here")
    if name == "fma" and kind != "f32":
        function = _wide_fused
    if "ftz" not in modifiers:
        return function
    return lambda *given: flushed(function(*map(flushed, given)))


_DIRECTED: dict[str, Function] = {
    "add": lambda rounding, a, b: fused(a, np.ones_like(a), b, rounding),
    "mul": lambda rounding, a, b: fused(a, b, np.zeros_like(a), rounding),
    "fma": lambda rounding, a, b, c: fused(a, b, c, rounding),
}


def _wide_fused(a: Array, b: Array, c: Array) -> Array:
    """Of 16-bit operands: exact in float64, but for what is far below their last bit."""
    return a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)


def _bits(a: Array) -> int:
    return 8 * a.dtype.itemsize


def shift_left(a: Array, by: Array) -> Array:
    """Zero from the width on."""
    n = by.astype(np.uint32)
    return np.where(n < _bits(a), a << np.minimum(n, _bits(a) - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, by: Array) -> Array:
    """From the width on what is left of a sign, or zero."""
    n = by.astype(np.uint32)
    shifted = a >> np.minimum(n, _bits(a) - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(n < _bits(a), shifted, a.dtype.type(0))


def _quotient(a: Array, b: Array) -> Array:
    """Towards zero; all bits set where b is 0, which the manual leaves open."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    floor = a // safe
    toward = floor + ((a % safe != 0) & ((a < 0) != (safe < 0))) if a.dtype.kind == "i" else floor
    return np.where(
        b == 0, a.dtype.type(0) - a.dtype.type(1) if a.dtype.kind == "u" else a.dtype.type(-1), toward
    ).astype(a.dtype)


def _remainder(a: Array, b: Array) -> Array:
    return (a - _quotient(a, b) * b).astype(a.dtype)


_PLAIN: dict[tuple[str, bool], Function] = {
    **{(name, floating): f for floating in (False, True) for name, f in {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs,
    }.items()},
    ("min", False): np.minimum, ("max", False): np.maximum, ("min", True): np.fmin, ("max", True): np.fmax,
    ("and", False): np.bitwise_and, ("or", False): np.bitwise_or, ("xor", False): np.bitwise_xor,
    ("not", False): np.invert, ("mad", False): lambda a, b, c: a * b + c,
    ("fma", True): fused, ("rcp", True): lambda a: (1 / a).astype(a.dtype),
    ("div", True): np.divide, ("sqrt", True): np.sqrt,
    ("div", False): _quotient, ("rem", False): _remainder,
    ("copysign", True): lambda sign, size: np.copysign(size, sign),
}  # fmt: skip

ELEMENTARY: dict[str, Function] = {
    "ex2.approx": np.exp2,
    "lg2.approx": np.log2,
    "rcp.approx": lambda a: 1 / a,
    "sqrt.approx": np.sqrt,
    "rsqrt.approx": lambda a: 1 / np.sqrt(a),
    "tanh.approx": np.tanh,
    "div.full": np.divide,
    "div.approx": np.divide,
}


def high(a: Array, b: Array) -> Array:
    """The upper half of a product (``mul.hi``)."""
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}") if a.dtype.itemsize < 8 else None
    if wide is None:
        whole = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
        return np.array([w & (1 << 64) - 1 for w in whole], np.uint64).view(a.dtype)
    return ((a.astype(wide) * b.astype(wide)) >> wide.type(_bits(a))).astype(a.dtype)


def wide(a: Array, b: Array) -> Array:
    """The whole product, twice as wide (``mul.wide``)."""
    to = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(to) * b.astype(to)


def compare(name: str, kind: str) -> Function:
    """``setp``: of floats, ordered unless the name ends in u."""
    base = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(name, name)
    functions = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }
    if kind not in FLOATS:
        if base not in functions:
            raise Unknown(f"setp.{name}.{kind}")
        return functions[base]

    def unordered(a: Array, b: Array) -> Array:
        return np.isnan(a) | np.isnan(b)

    if base == "num":
        return lambda a, b: ~unordered(a, b)
    if base == "nan":
        return unordered
    if base in functions:
        return lambda a, b: functions[base](a, b) & ~unordered(a, b)
    if base.endswith("u") and base[:-1] in functions:
        return lambda a, b: functions[base[:-1]](a, b) | unordered(a, b)
    raise Unknown(f"setp.{name}.{kind}")


def convert(modifiers: tuple[str, ...]) -> tuple[str, str, Function]:
    """``cvt``: the kinds of result and source, and the function between the numbers.

    Raises:
        Unknown: these kinds are not converted here.
    """
    to, of = modifiers[-2:]
    rest = set(modifiers[:-2])
    unknown = Unknown(".".join(("cvt", *modifiers)))
    ftz = "ftz" in rest
    rest -= {"ftz", "rn"}
    if to in ("f16x2", "bf16x2") and not rest:
        return to, of, lambda upper, lower: np.stack([lower, upper], 1)
    if to == "tf32" and of == "f32" and rest == {"rna"}:
        return "b32", "f32", _to_tf32
    if to in FLOATS and of in FLOATS:
        rounded = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}
        whole = [rounded[m] for m in rest if m in rounded]
        if rest - rounded.keys() - {"sat"} or "x2" in to + of or "tf32" in (to, of):
            raise unknown

        def between(a: Array) -> Array:
            a = flushed(a) if ftz and a.dtype == np.float32 else a
            a = whole[0](a) if whole else a
            return np.clip(np.nan_to_num(a, nan=0.0), 0, 1) if "sat" in rest else a

        return to, of, between
    if to in NUMPY and of in FLOATS and SIZES[of] in (2, 4, 8):
        modes = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}
        (mode,) = (m for m in rest if m in modes)
        limits = np.iinfo(NUMPY[to])

        def whole_number(a: Array) -> Array:
            a = np.nan_to_num(modes[mode](a.astype(np.float64)), nan=0.0)
            inside = np.clip(a, float(limits.min), float(limits.max))
            return np.where(
                a >= limits.max,
                limits.max,
                np.where(
                    a <= limits.min, limits.min, inside.astype(np.int64) if limits.min else inside.astype(np.uint64)
                ),
            ).astype(NUMPY[to])

        return to, of, whole_number
    if to in FLOATS and of in NUMPY:
        if rest:
            raise unknown
        return to, of, lambda a: a.astype(np.float64 if to in ("f64", "bf16") else NUMPY[to])
    if to in NUMPY and of in NUMPY:
        if rest:
            raise unknown
        return to, of, lambda a: a.astype(NUMPY[to])
    raise unknown


def _to_tf32(a: Array) -> Array:
    """To the nearest, ties away from zero (``.rna``)."""
    word = a.view(np.uint32)
    return np.where(np.isfinite(a), (word + np.uint32(0x1000)) & np.uint32(0xFFFFE000), word)


def bit_field(a: Array, start: Array, length: Array) -> Array:
    """``bfe`` of 32 bits: length bits from start on, above them the sign of the last of these that there is."""
    first = np.minimum(start & np.uint32(255), np.uint32(32)).astype(np.uint64)
    count = np.minimum(length & np.uint32(255), np.uint32(32)).astype(np.uint64)
    word, one = a.view(np.uint32).astype(np.uint64), np.uint64(1)
    field = (word >> first) & ((one << count) - one)
    if a.dtype.kind == "i":
        last = np.minimum(first + np.maximum(count, one) - one, np.uint64(31))
        there = np.minimum(count, np.uint64(32) - first)
        negative = (count > 0) & ((word >> last & one) == one)
        field = np.where(negative, field | ~((one << there) - one), field)
    return field.astype(np.uint32).view(a.dtype)


def insert_bits(a: Array, b: Array, start: Array, length: Array) -> Array:
    """``bfi`` of 32 bits: the lowest bits of a in the place of those of b from start on."""
    first = np.minimum(start & np.uint32(255), np.uint32(32)).astype(np.uint64)
    count = np.minimum(length & np.uint32(255), np.uint32(32)).astype(np.uint64)
    mask = ((np.uint64(1) << count) - np.uint64(1)) << first
    return ((b.astype(np.uint64) & ~mask) | ((a.astype(np.uint64) << first) & mask)).astype(np.uint32)


def permute(a: Array, b: Array, selector: Array) -> Array:
    """``prmt.b32`` without a mode: each nibble of the selector takes a byte, its top bit that byte's sign."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(a.shape, np.uint64)
    for i in range(4):
        nibble = (selector.astype(np.uint64) >> np.uint64(4 * i)) & np.uint64(15)
        byte = (both >> (np.uint64(8) * (nibble & np.uint64(7)))) & np.uint64(255)
        sign = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
        result |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * i)
    return result.astype(np.uint32)


def logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """``lop3``: the bit of the table that three bits name."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def funnel(direction: str, clamp: bool) -> Function:
    """``shf``: 32 bits out of 64."""

    def shift(low: Array, upper: Array, by: Array) -> Array:
        n = np.minimum(by, 32) if clamp else by & np.uint32(31)
        both = (upper.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        n = n.astype(np.uint64)
        return ((both << n) >> np.uint64(32) if direction == "l" else both >> n).astype(np.uint32)

    return shift
