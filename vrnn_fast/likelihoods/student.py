"""Real-valued features with heavy tails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from .base import Likelihood, feature_count, softplus, standard_normal


class StudentParameters(NamedTuple):
    """Student's t: degrees of freedom, mean and scale, of equal shape."""

    degrees: Tensor
    mean: Tensor
    scale: Tensor


@dataclass(eq=False)
class StudentT(Likelihood):
    """Independent features of Student's t distribution: a Gaussian that outliers do not pull away.

    degrees = 2 + softplus(raw degrees), so that mean and variance exist, and scale = softplus(raw scale) + ``floor`` in
    the units of x. The variance is scale² degrees / (degrees - 2). Densities are computed in float64, however far x is.

    Raises:
        ValueError: floor is not a positive number.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=StudentT())(x).loss
    """

    independent = 3
    floor: float = 1e-3

    def __post_init__(self) -> None:
        self.floor = checks.positive("floor", self.floor)

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean": features, "dec_std.0": features, "dec_degrees.0": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        feature_count(raw, x, each=3)
        degrees, mean, scale = (parameter.double() for parameter in self.prediction(raw))
        constant = torch.lgamma((degrees + 1) / 2) - torch.lgamma(degrees / 2) - 0.5 * (degrees * math.pi).log()
        tails = (degrees + 1) / 2 * (((x - mean) / scale).square() / degrees).log1p()
        return (constant - scale.log() - tails).sum(-1).to(raw.dtype)

    def prediction(self, raw: Tensor) -> StudentParameters:
        mean, scale, degrees = raw.chunk(3, -1)
        return StudentParameters(2 + softplus(degrees), mean, softplus(scale) + self.floor)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + temperature * scale * noise of Student's t."""
        degrees, mean, scale = self.prediction(raw)
        half = degrees.double() / 2
        shrink = (torch._standard_gamma(half, generator=generator) / half).sqrt().clamp(min=1e-30).to(raw.dtype)
        return mean + temperature * scale * standard_normal(mean, generator) / shrink

    def mean(self, raw: Tensor) -> Tensor:
        return self.prediction(raw).mean
