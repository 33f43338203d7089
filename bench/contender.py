"""A contender: for a shape and a precision, it offers passes to time and results to check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .shapes import Shape

FORWARD, TRAINING, UPDATE = "forward", "forward+backward", "training step"
TIMES_FORWARD = {FORWARD: 1, TRAINING: 3, UPDATE: 3}  # the arithmetic of a pass
FORWARD_LOSS = "loss without gradients"  # another path: nothing is kept for backward
ALL = 0  # as many threads as the benchmark was given

Thunk: TypeAlias = Callable[[], object]
NamedTensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """A contender at one shape.

    Attributes:
        passes: what to time, by name. A pass leaves its gradients behind, and drops those of the last one first.
        results: gives what must agree with the oracle, by name, out of every pass: the loss and every parameter's
            gradient, and the loss where no gradient is wanted. None where something else is computed.
        flops: of a forward pass; None where nobody counts them.
    """

    passes: Mapping[str, Thunk]
    results: Callable[[], NamedTensors] | None
    flops: int | None = None


def everywhere(shape: Shape) -> str | None:
    """Refuse no shape."""
    return None


@dataclass(frozen=True)
class Contender:
    """``prepare(shape, dtype)`` builds a run from ``shape.parameters(dtype)``; ``refuses`` says why it cannot.

    ``threads`` are the numbers of torch's threads it may choose from; the fastest is kept. ``errors`` is how many times
    the eager loop's error its own may be: two for us, more for others, whose order of summation is not ours to choose.
    ``remark`` is printed below its rows. All functions are a module's, so that a contender can be sent to a process.
    """

    name: str
    prepare: Callable[[Shape, torch.dtype], Entry]
    refuses: Callable[[Shape], str | None] = everywhere
    threads: tuple[int, ...] = (ALL,)
    errors: float = 2.0
    remark: str | None = None


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Do what Module.zero_grad does, which would look for the parameters again at every call, for 0.3 ms."""
    for p in parameters:
        p.grad = None


def run_of(model: nn.Module, loss: Callable[[], Tensor], flops: int) -> Entry:
    """Make the passes of a torch module whose ``loss`` is a scalar."""
    parameters = tuple(model.parameters())
    adam = torch.optim.Adam(parameters, lr=1e-7)  # so slow that every step sees the same numbers

    def forward() -> Tensor:
        with torch.no_grad():
            return loss()

    def train() -> Tensor:
        drop_gradients(parameters)
        value = loss()
        value.backward()
        return value.detach()

    def update() -> None:
        train()
        adam.step()

    def results() -> NamedTensors:
        value = train()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": value, FORWARD_LOSS: forward(), **gradients}

    return Entry({FORWARD: forward, TRAINING: train, UPDATE: update}, results, flops)
