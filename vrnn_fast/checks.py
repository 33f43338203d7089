"""Every argument of a call, looked at before anything runs: errors name it, what came and what was expected.

What depends on values cannot be looked at while torch.compile traces or a CUDA graph is captured: torch asserts it
then, at run time and at every replay (RuntimeError; a GPU ends the process).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.distributions import constraints

Numeric = TypeVar("Numeric", bound=float | Tensor)
MAX_SEED = 2**63 - 1


def _captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _unread(device: torch.device) -> bool:
    """Tell whether values on a device cannot be looked at now."""
    return torch.compiler.is_compiling() or _captured(device)


def integer(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Raise ValueError unless ``value`` is an int from ``least`` to ``most``."""
    good = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):  # type: ignore[operator]
        expected = "a positive int" if least == 1 else f"an int >= {least}"
        if most is not None:
            expected = f"an int from {least} to {most}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def widths(name: str, value: object, most: int) -> None:
    """Raise ValueError unless ``value`` is a tuple of at most so many widths of layers."""
    if not isinstance(value, tuple) or any(not isinstance(w, int) or isinstance(w, bool) or w < 1 for w in value):
        raise ValueError(f"{name} must be a tuple of positive layer widths, got {value!r}")
    if len(value) > most:
        raise ValueError(f"{name} must have at most {most} layers, got {len(value)}")


def flag(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def instance(name: str, value: object, kind: type, expected: str) -> None:
    """Raise TypeError unless ``value`` is of this kind, which ``expected`` says in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {value!r}")


def function(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` may be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r}")


def number(name: str, value: Numeric, *, zero: bool) -> Numeric:
    """Return the positive number (or zero, where allowed), or the tensor of a single one; another real number as a
    float.

    The value of a tensor is read on the CPU only, and not while torch.compile traces.
    """
    expected = _number_in_words(zero)
    found: object = value
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"{name} must be {expected} or a 0-d tensor, got shape {tuple(value.shape)}")
        if torch.compiler.is_compiling() or value.device.type != "cpu":
            return value
        found = value.item()
    plain = _real(found)
    if plain is None:
        raise TypeError(f"{name} must be {expected} or a 0-d tensor, got {found!r}")
    if not (plain >= 0 if zero else plain > 0):  # also refuses NaN
        raise ValueError(f"{name} must be {expected}, got {plain!r}")
    if not torch.compiler.is_compiling() and math.isinf(plain):
        raise ValueError(f"{name} must be finite, got {plain!r}")
    return value if isinstance(value, Tensor) else cast(Numeric, plain)


def constant(name: str, value: object) -> float:
    """Return the finite number, as a float; ValueError for all else."""
    plain = _real(value)
    if plain is None or not math.isfinite(plain):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(plain)


def positive(name: str, value: object, *, zero: bool = False) -> float:
    """Return the finite number above 0, or 0 where that is allowed, as a float; ValueError for all else."""
    plain = _real(value)
    if plain is None or not math.isfinite(plain) or not (plain >= 0 if zero else plain > 0):
        raise ValueError(f"{name} must be {_number_in_words(zero)}, got {value!r}")
    return float(plain)


def _number_in_words(zero: bool) -> str:
    return "a number >= 0" if zero else "a number > 0"


def interval(name: str, value: object) -> tuple[float, float]:
    """Return the pair of a number and a larger one, infinite ones too; ValueError for all else."""
    good = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_number, value))
    if not good or not value[0] < value[1]:  # type: ignore[index]
        raise ValueError(f"{name} must be (low, high), a number and a larger one, got {value!r}")
    low, high = cast(Sequence[float], value)
    return low, high


def share(name: str, value: object) -> float:
    """Return the number from 0 to 1."""
    plain = _real(value)
    if plain is None:
        raise TypeError(f"{name} must be a number from 0 to 1, got {value!r}")
    if not 0 <= plain <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {plain!r}")
    return plain


def shares(name: str, value: Any) -> list[float]:
    """Return several numbers from 0 to 1."""
    try:
        several = list(value)
    except TypeError:
        raise TypeError(f"{name} must be numbers from 0 to 1, got {value!r}") from None
    return [share(name, one) for one in several]


def is_number(value: object) -> bool:
    """Tell whether ``value`` is a real number, infinite ones and NaN too."""
    return _real(value) is not None


def _real(value: object) -> float | None:
    """Return a real number, NumPy's too, as one of Python's or of torch.compile's; None for all else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        return cast(float, value)
    return float(value) if isinstance(value, Real) else None


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(unknown(name, value, allowed))


def unknown(name: str, value: object, allowed: Sequence[str]) -> str:
    """Say of a ``value`` that is none of the allowed words."""
    return f"{name} must be one of {', '.join(allowed)}, got {value!r}"


def within(name: str, value: Tensor, low: float, high: float) -> None:
    """Raise ValueError unless ``value`` lies from low to high."""
    inside = ((value >= low) & (value <= high)).all()  # also refuses NaN
    if _unread(value.device):
        torch._assert_async(inside, f"{name} must lie from {low} to {high}")
    elif not inside:
        raise ValueError(f"{name} must lie from {low} to {high}")


def several(name: str, value: object, expected: str = "names") -> Collection[str]:
    """Raise TypeError unless ``value`` is a collection of strings, and no string itself."""
    if not isinstance(value, (tuple, list, set, frozenset)) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"{name} must be a tuple of {expected}, got {value!r}")
    return value


def names(name: str, value: object, allowed: Sequence[str]) -> Collection[str]:
    """Raise unless ``value`` is a collection of some of the allowed names, none of them twice."""
    entries = several(name, value, f"names out of {', '.join(allowed)}")
    for entry in entries:
        if entry not in allowed:
            raise ValueError(f"{name} may hold {', '.join(allowed)}, got {entry!r}")
    if len(set(entries)) != len(entries):
        raise ValueError(f"{name} must not name anything twice, got {value!r}")
    return entries


_DENSE = "pass its padded rows, as torch.nested.to_padded_tensor makes them, and their lengths"
_PRECISIONS = torch.float16, torch.bfloat16, torch.float32  # among which autocast converts


def local(name: str, value: Tensor, instead: str) -> None:
    """Raise TypeError if ``value`` is a DTensor: a launch reads the memory of one process."""
    if hasattr(value, "device_mesh"):
        raise TypeError(f"{name} must be a tensor of one process, got a {type(value).__name__}: {instead}")


def any_tensor(name: str, value: object, expected: str = "a tensor") -> Tensor:
    """Return the tensor; TypeError for all else."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return value


def tensor(
    name: str,
    value: object,
    shape: Sequence[tuple[str, int | None]],
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Raise unless ``value`` is a strided tensor of this shape and of the dtype and device of the parameter ``like``.

    ``shape`` pairs the name of each dimension with its size, or with None where any size from 1 on will do. ``dtype``
    may be one that it must have instead. Under autocast another precision is converted to that of ``like``.
    """
    value = any_tensor(name, value)
    local(name, value, "pass what this process shall run, such as its to_local()")
    if value.is_nested:
        raise ValueError(f"{name} must be a dense (strided) tensor, got a nested one: {_DENSE}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    sizes = value.shape
    if len(sizes) != len(shape):
        raise ValueError(
            f"{name} must have {len(shape)} dimensions ({_shape_in_words(shape)}), got {len(sizes)}: "
            f"shape {tuple(sizes)}"
        )
    for (label, wanted), size in zip(shape, sizes, strict=True):
        if wanted is None:
            if size == 0:
                raise ValueError(f"{name} must have {label} >= 1, got shape {tuple(sizes)}")
        elif size != wanted:
            raise ValueError(f"{name} must have shape ({_shape_in_words(shape)}), got {tuple(sizes)}")
    if dtype is not None and value.dtype != dtype:
        raise ValueError(f"{name} must have dtype {dtype}, got {value.dtype}")
    if dtype is None and value.dtype != like.dtype:
        if value.dtype in _PRECISIONS and like.dtype in _PRECISIONS and torch.is_autocast_enabled(like.device.type):
            return tensor(name, value.to(like.dtype), shape, like)
        raise ValueError(f"{name} must have the parameters' dtype {like.dtype}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the parameters' device {like.device}, got {value.device}")
    return value


def _shape_in_words(shape: Sequence[tuple[str, int | None]]) -> str:
    """Put a shape into words. Only for errors: writing a symbolic size down would fix it in a compiled graph."""
    return ", ".join(label if size is None else f"{label} = {size}" for label, size in shape)


def lengths(value: object, steps: int, batch: int, device: torch.device, *, none: bool = False) -> Tensor:
    """Return the lengths on ``device``, contiguous: (B,) int64, each from 0 to T, not all 0 unless ``none`` may be.

    Into a CUDA graph nothing is copied: there they must be on ``device`` already.
    """
    value = any_tensor("lengths", value, "a tensor (B,) of int64")
    if value.is_nested:
        raise ValueError("lengths must be a dense (strided) tensor, got a nested one")
    if value.layout != torch.strided:
        raise ValueError(f"lengths must be a dense (strided) tensor, got layout {value.layout}")
    if value.dtype != torch.int64:
        raise ValueError(f"lengths must have dtype torch.int64, got {value.dtype}")
    if value.dim() != 1 or value.shape[0] != batch:
        raise ValueError(f"lengths must have shape (B = {batch},), got {tuple(value.shape)}")
    if _captured(device) and value.device != device:
        raise ValueError(f"lengths must be on {device} where a CUDA graph is captured, got {value.device}")
    if _unread(device):
        value = value.to(device).contiguous()
        good = (value >= 0).all() & (value <= steps).all()
        torch._assert_async(good if none else good & (value > 0).any(), "lengths must be from 0 to T, and not all 0")
        return value
    placed, value = value.to(device).contiguous(), value.to("cpu")
    low, high = int(value.min()), int(value.max())
    if low < 0:
        raise ValueError(f"lengths must not be negative, got {low} for row {int(value.argmin())}")
    if high > steps:
        raise ValueError(f"lengths must be at most T = {steps}, got {high} for row {int(value.argmax())}")
    if high == 0 and not none:
        raise ValueError(
            "lengths must leave at least one real step, got 0 for every row; where other ranks have steps, pass a "
            "normalizer"
        )
    return placed


def generator(value: object, device: torch.device) -> None:
    """Raise unless ``value`` is None or a generator on the type of ``device``."""
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(value).__name__}")
    if value.device.type != device.type:
        raise ValueError(f"generator must be on the device of x, {device}, got one on {value.device}")


def finite(
    name: str,
    value: Tensor,
    real: Tensor | None = None,
    observed: Tensor | None = None,
    *,
    support: constraints.Constraint = constraints.real,
    swap: bool = False,
) -> None:
    """Raise ValueError naming the first of (T, B, F), at real (T, B) steps, or of (B, F), that is not finite or, where
    it was ``observed``, outside the support.

    ``swap`` names it in (B, T, F) order. Where torch asserts it, the place is not told.
    """
    whole = (..., *(None,) * support.event_dim)  # one answer for all of an event
    inside = support.check(value)[whole]
    if observed is not None:
        inside = inside | ~observed
    bad = ~(torch.isfinite(value) & inside)
    if real is not None:
        bad = bad & real.unsqueeze(-1)
    if _unread(value.device):
        torch._assert_async(~bad.any(), f"{name} must be finite, and lie in the support of the likelihood")
        return
    if bad.any():
        place = tuple(int(i) for i in bad.nonzero()[0])
        found = value[place].item()
        if swap:
            place = (place[1], place[0], *place[2:])
        expected = "finite values" if support is constraints.real else f"finite values in {support}"
        raise ValueError(f"{name}[{', '.join(map(str, place))}] is {found}: expected {expected}")
