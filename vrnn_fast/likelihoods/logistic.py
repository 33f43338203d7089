"""Features on a ladder of levels: samples of sound, intensities of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from .. import checks
from .base import Likelihood, feature_count, softplus
from .categorical import draw

_EDGES_AT_ONCE = 256


class LogisticComponents(NamedTuple):
    """A mixture of K logistic distributions for each feature: log weights, means and scales, (..., X, K) each."""

    log_weight: Tensor
    mean: Tensor
    scale: Tensor


@dataclass(eq=False)
class DiscretizedLogisticMixture(Likelihood):
    """Independent features, each a mixture of K = ``components`` logistic distributions, rounded to levels.

    Salimans et al. 2017 ("PixelCNN++", equation 2), one channel: x is one of ``bins`` evenly spaced levels from ``low``
    to ``high``, and the first and the last level take the tails::

        P(x) = sum_k weight_k (sigmoid((x + step/2 - mean_k) / scale_k) - sigmoid((x - step/2 - mean_k) / scale_k))
        step = (high - low) / (bins - 1)    weight = softmax(logits)    scale = softplus(raw) + min_scale * step

    An x between two levels counts as the nearer one; more than half a step outside, it has probability zero. Means
    and scales are in the units of x, ``min_scale`` in steps.

    Heads are X K means, raw scales and logits, those of the first feature first.

    Raises:
        ValueError: components is not an int of at least 1, bins not one of at least 2, min_scale not a positive
            number, or low and high not finite numbers in this order.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=DiscretizedLogisticMixture(4, bins=2))(x).loss
    """

    independent = 3
    components: int
    bins: int = 256
    low: float = -1.0
    high: float = 1.0
    min_scale: float = 0.05

    def __post_init__(self) -> None:
        checks.integer("components", self.components)
        checks.integer("bins", self.bins, least=2)
        self.min_scale = checks.positive("min_scale", self.min_scale)
        self.step = checks.positive("high - low", float(self.high) - float(self.low)) / (self.bins - 1)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low - 0.5 * self.step, self.high + 0.5 * self.step)

    def heads(self, features: int) -> dict[str, int]:
        width = features * self.components
        return {"dec_mean": width, "dec_scale": width, "dec_logits": width}

    def _split(self, raw: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, means and scales, (..., X, K) each, the latter two in steps from ``low``."""
        width = feature_count(raw, x, each=3 * self.components)
        mean, raw_scale, logits = (part.unflatten(-1, (width, self.components)) for part in raw.chunk(3, -1))
        return logits, (mean - self.low) / self.step, softplus(raw_scale) / self.step + self.min_scale

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        logits, mean, scale = self._split(raw, x)
        inside = self.support.check(x)
        level = (
            ((torch.where(inside, x, self.low) - self.low) / self.step).round().clamp(0, self.bins - 1).unsqueeze(-1)
        )
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), where a - b = 1 / scale: nothing cancels
        below_upper = F.logsigmoid((level + 0.5 - mean) / scale)
        above_lower = F.logsigmoid((mean - level + 0.5) / scale)
        first, last = level == 0, level == self.bins - 1
        zero = torch.zeros_like(scale)
        log_mass = torch.where(last, zero, below_upper) + torch.where(first, zero, above_lower)
        log_mass = log_mass + torch.where(first | last, zero, (-torch.expm1(-1 / scale)).log())
        found = (logits.log_softmax(-1) + log_mass).logsumexp(-1)
        return torch.where(inside, found, -torch.inf).sum(-1)

    def _units(self, levels: Tensor) -> Tensor:
        return self.low + self.step * levels

    def prediction(self, raw: Tensor) -> LogisticComponents:
        logits, mean, scale = self._split(raw)
        return LogisticComponents(logits.log_softmax(-1), self._units(mean), self.step * scale)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a component with probability softmax(logits / temperature), then a level from temperature times its
        scale."""
        logits, mean, scale = self._split(raw)
        index = draw(logits, temperature, generator).unsqueeze(-1)
        mean, scale = (torch.take_along_dim(p, index, -1).squeeze(-1) for p in (mean, scale))
        uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        level = mean + temperature * scale * (uniform.log() - torch.log1p(-uniform))
        return self._units(level.round().clamp(0, self.bins - 1))

    def mean(self, raw: Tensor) -> Tensor:
        """Compute the expected level, in the units of x. It takes a number of sigmoids that grows with ``bins``."""
        logits, mean, scale = self._split(raw)
        levels = torch.zeros_like(mean)
        for edges in torch.arange(0.5, self.bins - 1, dtype=raw.dtype, device=raw.device).split(_EDGES_AT_ONCE):
            levels += torch.sigmoid((mean.unsqueeze(-1) - edges) / scale.unsqueeze(-1)).sum(-1)  # P(above the edge)
        return self._units((logits.softmax(-1) * levels).sum(-1))
