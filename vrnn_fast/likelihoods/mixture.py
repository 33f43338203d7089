"""Real-valued features with several modes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Likelihood, at_least, feature_count, positive, softplus, standard_normal
from .categorical import draw


class GaussianComponents(NamedTuple):
    """A mixture of K diagonal Gaussians: log weights (..., K), means and standard deviations (..., K, X)."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor


@dataclass(eq=False)
class GaussianMixture(Likelihood):
    """A mixture of K = ``components`` Gaussians over the whole of x, each with a diagonal covariance.

    This is the output of RNN-GMM and VRNN-GMM in Chung et al. 2015 ("A Recurrent Latent Variable Model for Sequential
    Data", section 4, with 20 components), std = softplus(raw std) + ``min_std`` in the units of x::

        p(x) = sum_k weight_k prod_j N(x_j; mean_kj, std_kj^2),  weight = softmax(logits)

    Heads are K X means and K X raw standard deviations, those of the first component first, and K logits.

    Raises:
        ValueError: components is not an int of at least 1, or min_std not a positive number.
    """

    components: int
    min_std: float = 1e-3

    def __post_init__(self) -> None:
        at_least(1, "components", self.components)
        self.min_std = positive("min_std", self.min_std)

    def heads(self, features: int) -> dict[str, int]:
        k = self.components
        return {"dec_mean": k * features, "dec_std.0": k * features, "dec_logits": k}

    def _split(self, raw: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """logits (..., K), means and standard deviations (..., K, X)."""
        k = self.components
        width = feature_count(raw, x, each=2 * k, shared=k)
        mean, raw_std, logits = raw.split((k * width, k * width, k), -1)
        return logits, mean.unflatten(-1, (k, width)), softplus(raw_std).unflatten(-1, (k, width)) + self.min_std

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, mean, std = self._split(raw, x)
        terms = 0.5 * ((x.unsqueeze(-2) - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)
        return (logits.log_softmax(-1) - terms.sum(-1)).logsumexp(-1)

    def prediction(self, raw: Tensor) -> GaussianComponents:
        logits, mean, std = self._split(raw)
        return GaussianComponents(logits.log_softmax(-1), mean, std)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """A component with probability softmax(logits / temperature), then its mean + temperature * std * noise."""
        logits, mean, std = self._split(raw)
        index = draw(logits, temperature, generator)[..., None, None]
        mean, std = (torch.take_along_dim(p, index, -2).squeeze(-2) for p in (mean, std))
        return mean + temperature * std * standard_normal(mean, generator)

    def mean(self, raw: Tensor) -> Tensor:
        logits, mean, _ = self._split(raw)
        return (logits.softmax(-1).unsqueeze(-1) * mean).sum(-2)
