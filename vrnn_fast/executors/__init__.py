"""Who can run a cell: the executors in order of preference, and the choice among them, with reasons."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..cell.spec import CellSpec
from . import cpu, cuda, reference, triton
from .base import Batch, SequenceResult, StepResult, Want

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
    "in_float64",
    "names",
    "select",
]


class Executor(Protocol):
    """What a module of this package offers to be one. Its sentences start in lower case, without a full stop."""

    @property
    def name(self) -> str:
        """How the user asks for it."""

    @property
    def verified(self) -> str:
        """What it has been verified on, in words."""

    def unavailable(self) -> str | None:
        """None if this machine can run it, else the reason why not. Asked once, at import."""

    def refuses(self, spec: CellSpec, x: Tensor) -> str | None:
        """None, or the reason why this call cannot run here. Traced: plain comparisons only."""

    def launches(self, spec: CellSpec) -> str:
        """How many launches a forward and a backward take, in words."""

    def source(self, spec: CellSpec, x: Tensor) -> str:
        """The kernels that it generates to run x, or in words that there are none. It may assume that it can run x."""

    def run(
        self,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        want: Want,
    ) -> SequenceResult:
        """Run a batch of sequences, parameters in the order of ``spec.parameters()``. The batch has a mask for a fused
        likelihood alone, and uniforms where the spec's objective is a particle filter."""

    def step(
        self,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        want: Want,
    ) -> StepResult:
        """Run one time step, of a batch without a T: x (B, X), eps (B, Z), cond (B, C) of any strides, and the state as
        (num_layers, B, H) tensors."""

    def generate(
        self,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        *,
        mean: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Let a cell with a Bernoulli or Gaussian likelihood run on its own, without gradients: z_t is the prior's mean
        + std * eps_t; x_t, from the batch's noise in the place of x, is logit > noise_t (logistic) or mean + std *
        noise_t (normal), or its ``mean``, and goes back through phi_x. The noise may be wider than eps of 16 bits.
        Returns x (T, B, X) and the state after it."""


executors: tuple[Executor, ...] = (cpu, reference, triton, cuda)
if cuda.emulated:
    executors = (cuda, cpu, reference, triton)  # what was asked for is what runs
_UNAVAILABLE: dict[str, str | None] = {e.name: e.unavailable() for e in executors}
_announced: set[str] = set()


@dataclass(frozen=True)
class Backend:
    """An executor on this machine: can it run at all, why not, and what it has been verified on."""

    available: bool
    reason: str | None
    verified: str


def backends() -> dict[str, Backend]:
    """Every executor by name, in order of preference."""
    return {e.name: Backend(_UNAVAILABLE[e.name] is None, _UNAVAILABLE[e.name], e.verified) for e in executors}


def select(backend: str, spec: CellSpec, x: Tensor) -> tuple[Executor, dict[str, str]]:
    """The executor for this call, and for each one preferred to it the reason why it is not that one.

    ``"auto"`` takes the first that can run.

    Raises:
        RuntimeError: the named executor cannot run on this machine, or not this call.
        ValueError: there is no executor of that name.
    """
    reasons: dict[str, str] = {}
    for executor in executors:
        if backend not in ("auto", executor.name):
            continue
        reason = _UNAVAILABLE[executor.name] or executor.refuses(spec, x)
        if reason is None:
            return executor, reasons
        reasons[executor.name] = reason
    if reasons:
        raise RuntimeError("; ".join(f"backend {name!r} cannot run: {reason}" for name, reason in reasons.items()))
    raise ValueError(f"backend must be one of {', '.join(names())}, got {backend!r}")


def names() -> tuple[str, ...]:
    """What ``backend`` may be."""
    return ("auto", *(e.name for e in executors))


def in_float64(backend: str, spec: CellSpec, like: Tensor) -> str:
    """Who computes in float64 what ``backend`` computes in the dtype and on the device of ``like``: itself, or
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


def choose(backend: str, spec: CellSpec, x: Tensor, *, stacklevel: int) -> Executor:
    """:func:`select`, warning once per reason that a preferred executor was passed over.

    Silent while torch.compile traces. ``stacklevel`` is how far up the user's own line is, as in ``warnings.warn``.
    """
    executor, reasons = select(backend, spec, x)
    if not torch.compiler.is_compiling():
        for name, reason in reasons.items():
            if reason not in _announced:
                _announced.add(reason)
                warnings.warn(f"running on {executor.name!r}, not on {name!r}: {reason}", stacklevel=stacklevel)
    return executor
