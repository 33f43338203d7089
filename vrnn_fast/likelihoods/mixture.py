"""Real-valued features with several modes: together, or each for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from .base import Likelihood, feature_count, softplus, standard_normal
from .categorical import draw


class GaussianComponents(NamedTuple):
    """A mixture of K diagonal Gaussians: log weights (..., K), means and standard deviations (..., K, X)."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor


class FeatureComponents(NamedTuple):
    """A mixture of K Gaussians for each feature: log weights, means and standard deviations, (..., X, K) each."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor


@dataclass(eq=False)
class GaussianMixture(Likelihood):
    """A mixture of K = ``components`` Gaussians over the whole of x, each with a diagonal covariance.

    This is the output of RNN-GMM and VRNN-GMM in Chung et al. 2015 ("A Recurrent Latent Variable Model for Sequential
    Data", section 4, with 20 components), std = softplus(raw std) + ``floor`` in the units of x::

        p(x) = sum_k weight_k prod_j N(x_j; mean_kj, std_kj^2),  weight = softmax(logits)

    Heads are K X means and K X raw standard deviations, those of the first component first, and K logits.

    Raises:
        ValueError: components is not an int of at least 1, or floor not a positive number.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=GaussianMixture(20))(x).loss
    """

    components: int
    floor: float = 1e-3

    def __post_init__(self) -> None:
        checks.integer("components", self.components)
        self.floor = checks.positive("floor", self.floor)

    def heads(self, features: int) -> dict[str, int]:
        k = self.components
        return {"dec_mean": k * features, "dec_std.0": k * features, "dec_logits": k}

    def _split(self, raw: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (..., K), means and standard deviations (..., K, X)."""
        k = self.components
        width = feature_count(raw, x, each=2 * k, shared=k)
        mean, raw_std, logits = raw.split((k * width, k * width, k), -1)
        return logits, mean.unflatten(-1, (k, width)), softplus(raw_std).unflatten(-1, (k, width)) + self.floor

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, mean, std = self._split(raw, x)
        return (logits.log_softmax(-1) + _log_normal(x.unsqueeze(-2), mean, std).sum(-1)).logsumexp(-1)

    def marginal_log_prob(self, raw: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        logits, mean, std = self._split(raw, x)
        terms = _log_normal(torch.where(observed, x, 0).unsqueeze(-2), mean, std)
        return (logits.log_softmax(-1) + torch.where(observed.unsqueeze(-2), terms, 0).sum(-1)).logsumexp(-1)

    def prediction(self, raw: Tensor) -> GaussianComponents:
        logits, mean, std = self._split(raw)
        return GaussianComponents(logits.log_softmax(-1), mean, std)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a component with probability softmax(logits / temperature), then its mean + temperature * std *
        noise."""
        logits, mean, std = self._split(raw)
        index = draw(logits, temperature, generator)[..., None, None]
        mean, std = (torch.take_along_dim(p, index, -2).squeeze(-2) for p in (mean, std))
        return mean + temperature * std * standard_normal(mean, generator)

    def mean(self, raw: Tensor) -> Tensor:
        logits, mean, _ = self._split(raw)
        return (logits.softmax(-1).unsqueeze(-1) * mean).sum(-2)


@dataclass(eq=False)
class FeatureMixture(Likelihood):
    """Independent features, each a mixture of its own of K = ``components`` Gaussians::

        p(x) = prod_j sum_k weight_jk N(x_j; mean_jk, std_jk^2)
        weight = softmax(logits)    std = softplus(beta raw std) / beta + floor

    ``floor`` is in the units of x; ``beta`` log 2 makes a raw 0 a standard deviation of 1.

    Heads are X K means, raw standard deviations and logits, those of the first feature first.

    Raises:
        ValueError: components is not an int of at least 1, or floor or beta not a positive number.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=FeatureMixture(4))(x).loss
    """

    independent = 3
    components: int
    floor: float = 1e-3
    beta: float = 1.0

    def __post_init__(self) -> None:
        checks.integer("components", self.components)
        self.floor = checks.positive("floor", self.floor)
        self.beta = checks.positive("beta", self.beta)

    def heads(self, features: int) -> dict[str, int]:
        width = features * self.components
        return {"dec_mean": width, "dec_std.0": width, "dec_logits": width}

    def _raw(self, raw: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, raw standard deviations and logits, (..., X, K) each."""
        width = feature_count(raw, x, each=3 * self.components)
        mean, raw_std, logits = (part.unflatten(-1, (width, self.components)) for part in raw.chunk(3, -1))
        return mean, raw_std, logits

    def _split(self, raw: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, means and standard deviations, (..., X, K) each."""
        mean, raw_std, logits = self._raw(raw, x)
        return logits, mean, softplus(self.beta * raw_std) / self.beta + self.floor

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, mean, std = self._split(raw, x)
        return (logits.log_softmax(-1) + _log_normal(x.unsqueeze(-1), mean, std)).logsumexp(-1).sum(-1)

    def prediction(self, raw: Tensor) -> FeatureComponents:
        logits, mean, std = self._split(raw)
        return FeatureComponents(logits.log_softmax(-1), mean, std)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a component with probability softmax(logits / temperature), then its mean + temperature * std *
        noise."""
        logits, mean, std = self._split(raw)
        index = draw(logits, temperature, generator).unsqueeze(-1)
        mean, std = (torch.take_along_dim(p, index, -1).squeeze(-1) for p in (mean, std))
        return mean + temperature * std * standard_normal(mean, generator)

    def mean(self, raw: Tensor) -> Tensor:
        logits, mean, _ = self._split(raw)
        return (logits.softmax(-1) * mean).sum(-1)


class SharedMixture(nn.Module, FeatureMixture):
    """:class:`FeatureMixture` through one layer that all features share: the output of speech models that have many
    samples of sound for features.

    The decoder gives ``width`` values for each feature. A leaky ReLU (slope 0.01) and the affine layer ``params``,
    which the model trains and saves, make of them K logits, means and raw standard deviations, in this order.

    The head is those values, ``width`` (by default 3 K) times X, those of the first feature first.

    Raises:
        ValueError: as :class:`FeatureMixture`, or width is not an int of at least 1.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=SharedMixture(4))(x).loss
    """

    independent = 1

    def __init__(self, components: int, floor: float = 1e-3, beta: float = 1.0, width: int | None = None) -> None:
        nn.Module.__init__(self)
        FeatureMixture.__init__(self, components, floor, beta)
        self.width = 3 * components if width is None else width
        checks.integer("width", self.width)
        self.params = nn.Linear(self.width, 3 * components)

    def __repr__(self) -> str:
        return f"SharedMixture({self.components}, floor={self.floor}, beta={self.beta}, width={self.width})"

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_shared": features * self.width}

    def _raw(self, raw: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        width = feature_count(raw, x, each=self.width)
        parameters: Tensor = self.params(F.leaky_relu(raw.unflatten(-1, (width, self.width))))
        logits, mean, raw_std = parameters.chunk(3, -1)
        return mean, raw_std, logits


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
