"""The first difference between two runs, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agreement import allowed
from ..layouts.words import in_words
from .observation import Observed, RandomDraw

ROUNDINGS = 2**18  # of float64 that two runs in it may be apart, none of them an oracle; one to float32 is 2**29


class ProofError(RuntimeError):
    """The accelerated module does not compute what the original computes; the message names the first difference.

    ``passed`` counts the trials, and the fields of the next one, that were the same.

    Examples:
        >>> try:
        ...     fast = accelerate(theirs)
        ... except ProofError as error:
        ...     print(error)
    """

    def __init__(self, message: str, fields: int = 0) -> None:
        super().__init__(message)
        self.passed = (0, fields)


_CURE = (
    "layout={'outputs': ...} says what forward returns; "
    "'activation', 'input_order' and 'std' beside it say how the cell computes"
)


def compare(theirs: Observed, ours: Observed, missing: set[str], where: str, quantities: Mapping[str, str]) -> None:
    """Raise at the first difference of draws, fields or gradients."""
    same_draws(theirs.draws, ours.draws, where)
    for place, (name, value) in enumerate(theirs.fields.items()):
        if name not in ours.fields:
            raise ProofError(f"{name} is missing {where}, which the original gives", place)
        difference = None if name in missing else _difference(value, ours.fields[name], where)
        if difference is not None:
            cure = f" ({_CURE})" if name.startswith("output") else ""
            raise ProofError(f"{named(name, quantities)} {difference}{cure}", place)
    for name in ours.fields:
        if name not in theirs.fields:
            raise ProofError(f"{name} is given {where}, which the original does not give", len(theirs.fields))
    scale = max((g.abs().max().item() for g in theirs.gradients.values() if g is not None and g.numel()), default=0.0)
    for name, gradient in theirs.gradients.items():
        difference = _difference(gradient, ours.gradients[name], where, scale)
        if difference is not None:
            raise ProofError(f"{name} {difference}", len(theirs.fields))


def same_draws(theirs: list[RandomDraw], ours: list[RandomDraw], where: str) -> None:
    """Raise where the draws of random numbers are not the same."""
    if len(theirs) != len(ours):
        counts = [_counted(draws) for draws in (theirs, ours)]
        raise ProofError(
            f"the noise differs {where}: the original draws {counts[0]}, the accelerated one {counts[1]}, "
            f"once for each step of x ({_cure(theirs, ours)})"
        )
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True), 1):
        if not their.same(our):
            raise ProofError(
                f"the noise differs {where} in draw {number} of {len(theirs)}: the original draws {their}, the "
                f"accelerated one {our} (layout={{'noise': ...}} says how a step's noise is drawn)"
            )


def _cure(theirs: list[RandomDraw], ours: list[RandomDraw]) -> str:
    """Say which argument of accelerate may give ours as many draws as theirs."""
    sizes = [draws[0].shape[-2:-1] if draws else () for draws in (theirs, ours)]
    if sizes == [(len(ours),), (len(theirs),)]:
        return "layout={'batch_first': True} says that x is (B, T, ...)"
    if len(theirs) > len(ours):
        return "layout={'noise': ...} says how a step's noise is drawn"
    return "layout={'skip': ...} says how many steps the original leaves out"


def _counted(draws: list[RandomDraw]) -> str:
    if not draws:
        return "nothing"
    return f"{draws[0]} and so on, {len(draws)} times" if len(draws) > 1 else f"{draws[0]} once"


def named(name: str, quantities: Mapping[str, str]) -> str:
    """Say what a field is, where that is known."""
    words = quantities.get(name) or quantities.get(name.rpartition("[")[0])  # of a list of steps
    return f"{name}, {words}," if words else name


def _difference(theirs: Any, ours: Any, where: str, scale: float | None = None) -> str | None:
    """Tell how two values differ, or None if they do not."""
    both = f"differs {where}: the original gives {in_words(theirs)}, the accelerated one {in_words(ours)}"
    if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor):
        return None if type(theirs) is type(ours) and _alike(theirs, ours) else both
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype or theirs.device != ours.device:
        return both
    if theirs.numel() == 0 or theirs.dtype == torch.bool:
        return None if torch.equal(theirs, ours) else f"differs {where}"
    size = (theirs - ours).abs().max().item()
    largest = theirs.abs().max().item()
    if size <= apart(largest if scale is None else scale):
        return None
    return f"differs by {size:.3g} {where}, where the original's largest value is {largest:.3g}"


def apart(largest: float, roundings: float = ROUNDINGS) -> float:
    """Return how far apart values may be, the largest of which is ``largest``."""
    return allowed(0, largest, torch.float64, roundings=roundings)


def _alike(theirs: Any, ours: Any) -> bool:
    """Tell whether two values of one class, no tensors, are equal. A foreign class may answer anything, or raise: only
    yes counts."""
    try:
        if isinstance(theirs, (float, np.ndarray)):
            return bool(np.allclose(theirs, ours, rtol=apart(1), atol=apart(1), equal_nan=True))
        return bool(theirs == ours)
    except Exception:
        return False
