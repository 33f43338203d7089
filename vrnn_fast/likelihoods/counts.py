"""Features that are counts: how often something happened in a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from .. import checks
from .base import Likelihood, feature_count, softplus


class CountParameters(NamedTuple):
    """Negative binomial features: mean, and dispersion, so that the variance is mean + dispersion * mean²."""

    mean: Tensor
    dispersion: Tensor


def _spread(mean: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """Put counts ``temperature`` times as far from their mean, and round them to counts."""
    return drawn if temperature == 1 else (mean + temperature * (drawn - mean)).round().clamp(min=0)


@dataclass(eq=False)
class Poisson(Likelihood):
    """Independent counts of mean and variance softplus(raw) + ``min_mean``.

    Its logarithms of factorials are computed in float64.

    Raises:
        ValueError: min_mean is not a positive number.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Poisson())(x).loss
    """

    independent = 1
    min_mean: float = 1e-6

    def __post_init__(self) -> None:
        self.min_mean = checks.positive("min_mean", self.min_mean)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.nonnegative_integer

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        feature_count(raw, x, each=1)
        inside = self.support.check(x)
        mean, x = self.mean(raw).double(), torch.where(inside, x, 0).double()
        found = x * mean.log() - mean - torch.lgamma(x + 1)
        return torch.where(inside, found, -torch.inf).sum(-1).to(raw.dtype)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a count, then ``temperature`` times its distance from the mean, rounded."""
        mean = self.mean(raw)
        return _spread(mean, torch.poisson(mean.double(), generator=generator).to(raw.dtype), temperature)

    def mean(self, raw: Tensor) -> Tensor:
        return softplus(raw) + self.min_mean


@dataclass(eq=False)
class NegativeBinomial(Likelihood):
    """Independent counts whose variance is above their mean, mean + dispersion * mean².

    Both come from the decoder, softplus(raw) + ``floor`` (Salinas et al. 2020, "DeepAR: Probabilistic forecasting with
    autoregressive recurrent networks", section 3.1). Differences of logarithms of gamma functions are computed in
    float64.

    Raises:
        ValueError: floor is not a positive number.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=NegativeBinomial())(x).loss
    """

    independent = 2
    floor: float = 1e-6

    def __post_init__(self) -> None:
        self.floor = checks.positive("floor", self.floor)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.nonnegative_integer

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean": features, "dec_dispersion.0": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        feature_count(raw, x, each=2)
        inside = self.support.check(x)
        mean, dispersion = (parameter.double() for parameter in self.prediction(raw))
        x, number, scaled = torch.where(inside, x, 0).double(), dispersion.reciprocal(), mean * dispersion
        # the log of a binomial coefficient, and of the probabilities 1 / (1 + scaled) and scaled / (1 + scaled)
        ways = torch.lgamma(x + number) - torch.lgamma(number) - torch.lgamma(x + 1)
        found = ways - number * scaled.log1p() + x * (scaled.log() - scaled.log1p())
        return torch.where(inside, found, -torch.inf).sum(-1).to(raw.dtype)

    def prediction(self, raw: Tensor) -> CountParameters:
        mean, dispersion = (softplus(part) + self.floor for part in raw.chunk(2, -1))
        return CountParameters(mean, dispersion)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw the mean of a Poisson from a gamma, and a count, then ``temperature`` times its distance from the mean,
        rounded."""
        mean, dispersion = self.prediction(raw)
        rate = torch._standard_gamma(dispersion.double().reciprocal(), generator=generator) * dispersion * mean
        return _spread(mean, torch.poisson(rate, generator=generator).to(raw.dtype), temperature)

    def mean(self, raw: Tensor) -> Tensor:
        return self.prediction(raw).mean
