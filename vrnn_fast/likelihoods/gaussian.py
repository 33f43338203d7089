"""Real-valued features, each around one mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..cell.spec import Std, StdKind
from .base import Likelihood, feature_count, standard_deviation, standard_normal


class MeanStd(NamedTuple):
    """A diagonal Gaussian: mean and standard deviation, of equal shape."""

    mean: Tensor
    std: Tensor


def gaussian_parameters(raw: Tensor, std: Std) -> MeanStd:
    """Split [mean | raw std] along the last dimension and transform the second half."""
    mean, raw_std = raw.chunk(2, dim=-1)
    return MeanStd(mean, standard_deviation(std, raw_std))


def gaussian_log_prob(raw: Tensor, x: Tensor, transform: Std) -> Tensor:
    """Compute log N(x; mean, std²) in nats, summed over features: (..., 2X), (..., X) -> (...)."""
    mean, std = gaussian_parameters(raw, transform)
    return -(0.5 * ((x - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


@dataclass(eq=False)
class Gaussian(Likelihood):
    """Independent Gaussian features, std = softplus(raw std) + ``floor``, or by another transform.

    The floor is in the units of x. It bounds the density of data that the model could reproduce exactly, where a
    free standard deviation would run to zero and the bound to infinity. ``std`` is ``"softplus"``, ``"log_std"`` or
    ``"log_variance"``, each with that floor, or a :class:`~vrnn_fast.Std`, which brings its own.

    Raises:
        ValueError: floor is not a positive number, or std no such name.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Gaussian(std="log_std"))(x).loss
    """

    fused = "gaussian"
    independent = 2
    floor: float = 1e-3
    std: StdKind | Std = "softplus"

    def __post_init__(self) -> None:
        self.floor = checks.positive("floor", self.floor)
        self.output_std = self.std if isinstance(self.std, Std) else Std(self.std, floor=self.floor)

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean": features, "dec_std.0": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        feature_count(raw, x, each=2)
        return gaussian_log_prob(raw, x, self.output_std)

    def prediction(self, raw: Tensor) -> MeanStd:
        return gaussian_parameters(raw, self.output_std)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + temperature * std * noise."""
        mean, std = gaussian_parameters(raw, self.output_std)
        return mean + temperature * std * standard_normal(mean, generator)

    def mean(self, raw: Tensor) -> Tensor:
        return gaussian_parameters(raw, self.output_std).mean


@dataclass(eq=False)
class FixedGaussian(Likelihood):
    """Independent Gaussian features around the decoder's output, all with the same given ``std``: a squared error in
    nats.

    ``std`` is in the units of x. With 1 the loss is half the squared error plus a constant.

    Raises:
        ValueError: std is not a positive number.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=FixedGaussian(0.5))(x).loss
    """

    independent = 1
    std: float = 1.0

    def __post_init__(self) -> None:
        self.std = checks.positive("std", self.std)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        constant = feature_count(raw, x, each=1) * math.log(self.std * math.sqrt(2 * math.pi))
        return -0.5 * ((x - raw) / self.std).square().sum(-1) - constant

    def prediction(self, raw: Tensor) -> MeanStd:
        return MeanStd(raw, torch.full_like(raw, self.std))

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + temperature * std * noise."""
        return raw + temperature * self.std * standard_normal(raw, generator)

    def mean(self, raw: Tensor) -> Tensor:
        return raw
