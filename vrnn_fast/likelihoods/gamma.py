"""Positive features whose spread grows with their mean: powers, intensities, waiting times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from .. import checks
from .base import Likelihood, feature_count


@dataclass(eq=False)
class Gamma(Likelihood):
    """Independent gamma features of mean exp(raw) + ``min_mean`` and standard deviation mean / sqrt(``concentration``).

    With concentration 1 it is the exponential, the power of a complex Gaussian. Its log_prob then differs from the
    negative Itakura-Saito divergence of x and mean by what depends on x alone, so that training is the same (Fevotte,
    Bertin and Durrieu 2009, "Nonnegative Matrix Factorization with the Itakura-Saito Divergence").

    ``min_mean`` is in the units of x, and may be 0 where x / exp(raw) is known not to overflow. x = 0 is inside the
    support for concentration 1 alone.

    Raises:
        ValueError: concentration is not a positive number, or min_mean neither that nor 0.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Gamma(2.0))(x + 0.1).loss
    """

    independent = 1
    concentration: float = 1.0
    min_mean: float = 1e-10

    def __post_init__(self) -> None:
        self.concentration = checks.positive("concentration", self.concentration)
        self.min_mean = checks.positive("min_mean", self.min_mean, zero=True)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.nonnegative if self.concentration == 1 else constraints.positive

    def _log_mean(self, raw: Tensor) -> Tensor:
        return torch.logaddexp(raw, raw.new_full((), math.log(self.min_mean) if self.min_mean else -math.inf))

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        feature_count(raw, x, each=1)
        log_mean, inside = self._log_mean(raw), self.support.check(x)
        x = torch.where(inside, x, 1.0)
        constant = self.concentration * math.log(self.concentration) - math.lgamma(self.concentration)
        found = constant - self.concentration * (log_mean + x * torch.exp(-log_mean))
        if self.concentration != 1:
            found = found + (self.concentration - 1) * x.log()
        return torch.where(inside, found, -torch.inf).sum(-1)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a gamma of the same mean, its standard deviation times the temperature, drawn in float32 at least."""
        mean = self.mean(raw)
        wide = torch.promote_types(raw.dtype, torch.float32)
        limits = torch.finfo(wide)
        concentration = min(max(self.concentration / temperature / temperature, limits.tiny), limits.max)
        like = torch.full_like(mean, concentration, dtype=wide)
        return mean * (torch._standard_gamma(like, generator=generator) / concentration).to(raw.dtype)

    def mean(self, raw: Tensor) -> Tensor:
        return self._log_mean(raw).exp()


class ItakuraSaito(Gamma):
    """log_prob = -sum(x / y - log(x / y) - 1), the Itakura-Saito divergence of power spectra, y = exp(raw) + min_mean.

    The loss of speech models (Girin et al. 2021, "Dynamical Variational Autoencoders: A Comprehensive Review"; there y
    is exp(raw), ``min_mean=0``). It is no density of x: log_prob - 1 is that of log x under :class:`Gamma` with
    concentration 1. Where x may be zero take Gamma itself, which has the same gradient and a value there.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=ItakuraSaito())(x + 0.1).loss
    """

    def __init__(self, min_mean: float = 1e-10) -> None:
        super().__init__(1.0, min_mean)

    def __repr__(self) -> str:
        return f"ItakuraSaito(min_mean={self.min_mean})"

    @property
    def support(self) -> constraints.Constraint:
        return constraints.positive

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return super().log_prob(raw, x) + (1 + x.clamp(min=0).log()).sum(-1)
