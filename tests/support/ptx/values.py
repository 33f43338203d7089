"""The types of the manual as NumPy's, and numbers as bits of registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNSIGNED = {
    0: np.dtype(np.bool_),
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
_KINDS = {"b": np.uint8, "u": np.uint8, "s": np.int8}
NUMPY: dict[str, np.dtype[Any]] = {
    f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}") for kind in "bus" for bits in (8, 16, 32, 64)
} | {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
SIZES = {name: dtype.itemsize for name, dtype in NUMPY.items()} | {
    "bf16": 2,
    "tf32": 4,
    "f16x2": 4,
    "bf16x2": 4,
    "pred": 0,
}
FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "tf32")


def typed(bits: Array, kind: str) -> Array:
    """Bits of a register as numbers: bfloat16 as float32, pairs as (n, 2) with the low half first."""
    if kind == "pred":
        return bits
    if kind.endswith("x2"):
        halves = np.ascontiguousarray(bits).view(np.uint16).reshape(-1, 2)
        return np.stack([typed(np.ascontiguousarray(halves[:, i]), kind[:-2]) for i in (0, 1)], 1)
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return bits.view(NUMPY[kind])


def bits_of(value: Array, kind: str) -> Array:
    """Numbers as bits, rounded to the nearest, ties to even, where the kind is narrower."""
    if kind == "pred":
        return value
    if kind.endswith("x2"):
        return np.stack([bits_of(value[:, i], kind[:-2]) for i in (0, 1)], 1).view(np.uint32)[:, 0]
    if kind == "bf16":
        return _bfloat16(value)
    if (kind == "f32" and value.dtype != np.float32) or (kind == "f16" and value.dtype != np.float16):
        value = value.astype(NUMPY[kind])
    return np.ascontiguousarray(value).view(UNSIGNED[value.dtype.itemsize])


def _bfloat16(value: Array) -> Array:
    single = value.astype(np.float32)
    if value.dtype == np.float64:  # let the first rounding not decide the second's ties
        away = np.where(np.abs(single) > np.abs(value), np.nextafter(single, np.float32(0)), single)
        word = away.view(np.uint32) | (away != value).astype(np.uint32)
    else:
        word = single.view(np.uint32)
    rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16)).astype(np.uint16)


def fused(a: Array, b: Array, c: Array, rounding: str = "rn") -> Array:
    """a b + c of float32, rounded once: to the nearest (rn), towards zero (rz) or down (rm)."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    other = total - product
    error = (product - (total - other)) + (c - other)  # of the sum, exactly (Knuth); the product has none
    error = np.where(np.isfinite(error), error, 0.0)
    if rounding == "rn":  # to odd before it is rounded to float32, so that the first rounding decides no tie
        even = (total.view(np.uint64) & np.uint64(1)) == 0
        inexact = np.isfinite(total) & (error != 0) & even
        return np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)
    near = total.astype(np.float32)
    left = (total - near) + error  # of what is right
    if rounding == "rm":
        return np.where(left < 0, np.nextafter(near, np.float32(-np.inf)), near)
    return np.where(left * near < 0, np.nextafter(near, np.float32(0)), near)


def flushed(value: Array) -> Array:
    """Subnormal float32 numbers as zeros of their sign (``.ftz``)."""
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value)
