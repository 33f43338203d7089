"""What the CPU operators take and give, by name, in the order of the schemas in csrc/torch/operators.cpp."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ForwardArguments(NamedTuple):
    x: Tensor
    eps: Tensor
    cond: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    mask: Tensor | None
    uniforms: Tensor | None
    state: list[Tensor]
    parameters: list[Tensor]
    packed: Tensor | None
    program: list[int]
    constants: list[float]
    saved_size: int
    recompute: bool
    want_prior: bool
    want_raw: bool
    threshold: float


class BackwardArguments(NamedTuple):
    upstream: list[Tensor]
    slots: list[int]
    x: Tensor
    eps: Tensor
    cond: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    mask: Tensor | None
    state: list[Tensor]
    parameters: list[Tensor]
    ancestors: Tensor | None
    saved: Tensor
    program: list[int]
    constants: list[float]
    recompute: bool
    want_x: bool
    want_eps: bool
    want_cond: bool


class GenerateArguments(NamedTuple):
    eps: Tensor
    noise: Tensor
    cond: Tensor | None
    state: list[Tensor]
    parameters: list[Tensor]
    packed: Tensor | None
    program: list[int]
    constants: list[float]


class StepArguments(NamedTuple):
    packed: Tensor
    number: int
    x: Tensor
    eps: Tensor
    state: list[Tensor]
    want_raw: bool


class ForwardResult(NamedTuple):
    """What was not wanted has no elements."""

    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: Tensor
    state: list[Tensor]
    ancestors: Tensor
    saved: Tensor
