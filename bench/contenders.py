"""Who takes part: each contender is told the shape and the parameters, and offers passes to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vrnn_fast import VRNN
from vrnn_fast.executors import cpu

from .peers import EagerVRNN
from .shapes import Shape

FORWARD, TRAINING = "forward", "forward+backward"
PASSES = {FORWARD: 1, TRAINING: 3}  # and how many times the forward pass's arithmetic each of them takes


@dataclass(frozen=True)
class Run:
    """A contender at one shape. ``results`` gives the loss and every parameter's gradient, by name."""

    passes: Mapping[str, Callable[[], object]]
    results: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Contender:
    """``prepare(shape, parameters)`` builds a run in the parameters' dtype; ``unavailable`` says why it cannot.

    ``threads`` is torch's number of threads while it runs, by default that of the benchmark. Speed-ups are over the
    fastest ``yardstick``.
    """

    name: str
    prepare: Callable[[Shape, Mapping[str, Tensor]], Run]
    unavailable: Callable[[], str | None] = lambda: None
    threads: int | None = None
    yardstick: bool = False


def _run(model: nn.Module, loss: Callable[[], Tensor]) -> Run:
    """The passes of a torch module whose ``loss`` is a scalar."""

    def forward() -> None:
        with torch.no_grad():
            loss()

    def train() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value.detach()

    def results() -> Mapping[str, Tensor]:
        value = train()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": value, **gradients}

    return Run({FORWARD: forward, TRAINING: train}, results)


def prepare_eager(shape: Shape, parameters: Mapping[str, Tensor]) -> Run:
    dtype = next(iter(parameters.values())).dtype
    model = EagerVRNN(**shape.model).to(dtype)
    model.load_state_dict(parameters)
    x, eps = (t.to(dtype) for t in shape.data())
    return _run(model, lambda: model.loss(x, eps))


def _prepare_ours(shape: Shape, parameters: Mapping[str, Tensor]) -> Run:
    dtype = next(iter(parameters.values())).dtype
    model = VRNN(**shape.model, backend="cpu", dtype=dtype)
    model.load_state_dict(parameters)
    x, eps = (t.to(dtype) for t in shape.data())
    return _run(model, lambda: model(x, eps=eps).loss)


CONTENDERS = (
    Contender("eager loop", prepare_eager, yardstick=True),
    Contender("eager loop, 1 thread", prepare_eager, threads=1, yardstick=True),  # its small operations may prefer it
    Contender("vrnn_fast", _prepare_ours, cpu.unavailable),
)
