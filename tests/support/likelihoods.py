"""Likelihoods that a user may write, computed outside of the launch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vrnn_fast import Bernoulli, Likelihood


class Laplace(Likelihood):
    """Of scale 1. It does not say that its features are independent."""

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return -((x - raw).abs() + math.log(2)).sum(-1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def __repr__(self) -> str:
        return "Laplace"


class ScaledLaplace(Likelihood):
    """The decoder gives means and logarithms of scales."""

    independent = 2

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean": features, "dec_log_scale": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = raw.chunk(2, -1)
        return -((x - mean).abs() * (-log_scale).exp() + log_scale + math.log(2)).sum(-1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw.chunk(2, -1)[0]

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        mean, log_scale = raw.chunk(2, -1)
        u = torch.rand(mean.shape, generator=generator, dtype=raw.dtype) - 0.5
        return mean - temperature * log_scale.exp() * u.sign() * torch.log1p(-2 * u.abs())


class Outside(Bernoulli):
    """Bernoulli features whose density the launch does not compute."""

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return super().log_prob(raw, x)


class Whole(Outside):
    """One that knows no feature alone."""

    independent = 0
