"""Who can run a cell: the executors in order of preference, and the choice among them, with reasons."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from ..cell.spec import CellSpec
from . import reference
from .base import Batch, Executor, SequenceResult, StepResult, Want
from .registry import distrusted, executors

__all__ = [
    "Backend",
    "Batch",
    "Executor",
    "SequenceResult",
    "StepResult",
    "Want",
    "backends",
    "choose",
    "executors",
    "explain",
    "in_float64",
    "names",
    "select",
]

_UNAVAILABLE: dict[str, str | None] = {e.name: e.unavailable() for e in executors}
_announced: set[str] = set()
_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Backend:
    """A backend on this machine: can its executor run at all, why not, and what it was verified on.

    Examples:
        >>> backends()["reference"].available
        True
    """

    available: bool
    reason: str | None
    verified: str


def backends() -> dict[str, Backend]:
    """Return every backend by name, in order of preference.

    Examples:
        >>> backends()["reference"].reason is None
        True
    """
    return {e.name: Backend(_UNAVAILABLE[e.name] is None, _UNAVAILABLE[e.name], e.verified) for e in executors}


def select(backend: str, spec: CellSpec, x: Tensor, particles: int = 1) -> tuple[Executor, dict[str, str]]:
    """Choose the executor for this call, and for each one preferred to it the reason why it is not that one.

    ``"auto"`` takes the first that can run, and on a GPU has proven itself there (:mod:`.verification`).

    Raises:
        RuntimeError: the named executor cannot run on this machine, or not this call.
        ValueError: there is no executor of that name.
    """
    reasons: dict[str, str] = {}
    for executor in executors:
        if backend not in ("auto", executor.name):
            continue
        reason = _UNAVAILABLE[executor.name] or executor.refuses(spec, x, particles)
        if reason is None and backend == "auto" and not executor.trusted:
            reason = _distrusted(executor, x)
        if reason is None:
            return executor, reasons
        reasons[executor.name] = reason
    if reasons:
        raise RuntimeError("; ".join(f"backend {name!r} cannot run: {reason}" for name, reason in reasons.items()))
    raise ValueError(checks.unknown("backend", backend, names()))


def _distrusted(executor: Executor, x: Tensor) -> str | None:
    """Return None, or why ``auto`` does not take an executor that could run x."""
    if x.device.type != executor.device:
        return f"x is on {x.device}, where it runs only when asked for by name"
    reason: str | None = distrusted(executor.name, x.device)
    return reason


def names() -> tuple[str, ...]:
    """Return what ``backend`` may be."""
    return ("auto", *(e.name for e in executors))


def in_float64(backend: str, spec: CellSpec, like: Tensor) -> str:
    """Tell who computes in float64 what ``backend`` computes in the dtype and on the device of ``like``: itself, or
    ``"reference"`` where it does not know float64.

    Raises:
        RuntimeError, ValueError: as :func:`select`, in the dtype of ``like``.
    """
    select(backend, spec, like)
    try:
        select(backend, spec, like.new_empty((1, 1, 1), dtype=torch.float64))
    except RuntimeError:
        return reference.name
    return backend


def choose(backend: str, spec: CellSpec, x: Tensor, particles: int = 1) -> Executor:
    """Choose as :func:`select` does, warning once per reason that a preferred executor for the device of x was passed
    over, at the user's own line.

    Silent while torch.compile traces.
    """
    executor, reasons = select(backend, spec, x, particles)
    if reasons and not torch.compiler.is_compiling():
        made_for = {e.name: e.device for e in executors}
        for name, reason in reasons.items():
            if reason not in _announced and made_for[name] == x.device.type:
                _announced.add(reason)
                warnings.warn(f"running on {executor.name!r}, not on {name!r}: {reason}", stacklevel=_users_level())
    return executor


def _users_level() -> int:
    """Tell how far up the user's own line is, past ours and torch's, as ``warnings.warn`` counts it from our caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in (_PACKAGE, "torch"):
        level, frame = level + 1, frame.f_back
    return level


def explain(backend: str, spec: CellSpec, x: Tensor, *, source: bool) -> str:
    """Tell which backend runs x, in how many launches, and why not the others; with ``source``, its kernels.

    Raises:
        RuntimeError, ValueError: as :func:`select`.
    """
    executor, reasons = select(backend, spec, x)
    lines = [f"{executor.name}: {executor.launches(spec)}"]
    for other in executors:
        if other.name in reasons:
            lines.append(f"not {other.name}: {reasons[other.name]}")
        elif other.name != executor.name:
            why = f"{executor.name} is preferred" if backend == "auto" else f"backend={backend!r}"
            lines.append(f"not {other.name}: {why}")
    if source:
        lines += ["", executor.source(spec, x)]
    return "\n".join(lines)
