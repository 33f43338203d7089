"""The strokes of a pen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from .. import checks
from .base import Likelihood, softplus, standard_normal
from .bernoulli import bernoulli_log_prob
from .categorical import draw


class StrokeComponents(NamedTuple):
    """K bivariate Gaussians of the pen's offset, and the probability that a stroke ends.

    Log weights (..., K), means and standard deviations (..., K, 2), correlations (..., K), pen (...).
    """

    log_weight: Tensor
    mean: Tensor
    std: Tensor
    correlation: Tensor
    pen: Tensor


@dataclass(eq=False)
class Handwriting(Likelihood):
    """x = (offset, offset, pen): K = ``components`` bivariate Gaussians and, apart from them, a Bernoulli for the pen.

    Graves 2013 ("Generating Sequences With Recurrent Neural Networks", equations 23 to 26); pen is 1 where a stroke
    ends (the Bernoulli takes anything in [0, 1], as in cross-entropy)::

        p(x) = Bernoulli(pen; sigmoid(raw pen)) sum_k weight_k N(offset; mean_k, std_k, correlation_k)
        weight = softmax(logits)    std = softplus(raw std) + floor    correlation = max_correlation tanh(raw)

    ``floor`` (in the units of x) and ``max_correlation`` bound the density of data that the model could reproduce
    exactly: Graves himself takes exp for the standard deviation and 1 for the bound, which then bounds nothing.

    Heads are 2 K means and 2 K raw standard deviations, those of the first component first, K raw correlations, K
    logits, and the logit of the pen.

    Raises:
        ValueError: components is not an int of at least 1, floor not a positive number, max_correlation not in
            [0, 1], or a model's input_size not 3.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Handwriting(20))(x).loss
    """

    components: int
    floor: float = 1e-3
    max_correlation: float = 0.999

    def __post_init__(self) -> None:
        checks.integer("components", self.components)
        self.floor = checks.positive("floor", self.floor)
        self.max_correlation = float(checks.share("max_correlation", self.max_correlation))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.cat([constraints.real, constraints.unit_interval], dim=-1, lengths=[2, 1])

    def heads(self, features: int) -> dict[str, int]:
        if features != 3:
            raise ValueError(f"Handwriting needs input_size = 3 (offset, offset, pen), got {features}")
        k = self.components
        return {"dec_mean": 2 * k, "dec_std.0": 2 * k, "dec_correlation": k, "dec_logits": k, "dec_pen.0": 1}

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return logits (..., K), means and standard deviations (..., K, 2), correlations (..., K), 1 - correlation^2,
        and the pen's logit (..., 1)."""
        k = self.components
        if raw.shape[-1] != 6 * k + 1:
            raise ValueError(f"raw must have {6 * k + 1} values in its last dimension, got shape {tuple(raw.shape)}")
        mean, raw_std, raw_correlation, logits, pen = raw.split((2 * k, 2 * k, k, k, 1), -1)
        std = softplus(raw_std) + self.floor
        most = self.max_correlation
        correlation = most * torch.tanh(raw_correlation)
        below, above = (1 - most + 2 * most * torch.sigmoid(s * raw_correlation) for s in (-2, 2))  # 1 -+ correlation
        return logits, mean.unflatten(-1, (k, 2)), std.unflatten(-1, (k, 2)), correlation, below * above, pen

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self.marginal_log_prob(raw, x, torch.ones_like(x, dtype=torch.bool))

    def marginal_log_prob(self, raw: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        logits, mean, std, correlation, rest, pen = self._split(raw)
        if x.shape[-1] != 3:
            raise ValueError(f"x must have 3 features (offset, offset, pen), got shape {tuple(x.shape)}")
        x = torch.where(observed, x, 0)
        has_first, has_second, has_pen = observed.split(1, -1)
        first, second = ((x[..., None, :2] - mean) / std).unbind(-1)
        # eq. 25 as the density of the second, and that of the first given the second
        correlation, rest = torch.where(has_second, correlation, 0), torch.where(has_second, rest, 1)
        squares = second.square(), (first - correlation * second).square() / rest + rest.log()
        log_second, log_first = (
            -0.5 * (square + math.log(2 * math.pi)) - s.log()
            for square, s in zip(squares, std.unbind(-1)[::-1], strict=True)
        )
        log_offset = torch.where(has_first, log_first, 0) + torch.where(has_second, log_second, 0)
        log_pen = torch.where(has_pen.squeeze(-1), bernoulli_log_prob(pen, x[..., 2:]), 0)
        return (logits.log_softmax(-1) + log_offset).logsumexp(-1) + log_pen

    def prediction(self, raw: Tensor) -> StrokeComponents:
        logits, mean, std, correlation, _, pen = self._split(raw)
        return StrokeComponents(logits.log_softmax(-1), mean, std, correlation, torch.sigmoid(pen.squeeze(-1)))

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw with standard deviations times the temperature, logits of components and pen divided by it."""
        logits, mean, std, correlation, rest, pen = self._split(raw)
        index = draw(logits, temperature, generator).unsqueeze(-1)
        mean, std = (torch.take_along_dim(p, index.unsqueeze(-1), -2).squeeze(-2) for p in (mean, std))
        correlation, rest = (torch.take_along_dim(p, index, -1).squeeze(-1) for p in (correlation, rest))
        first, second = standard_normal(mean, generator).unbind(-1)
        first = correlation * second + rest.sqrt() * first
        offset = mean + temperature * std * torch.stack([first, second], -1)
        ends = torch.bernoulli(torch.sigmoid(pen / temperature), generator=generator)
        return torch.cat([offset, ends], -1)

    def mean(self, raw: Tensor) -> Tensor:
        """Compute the expected offset, and the probability that the stroke ends."""
        logits, mean, _, _, _, pen = self._split(raw)
        return torch.cat([(logits.softmax(-1).unsqueeze(-1) * mean).sum(-2), torch.sigmoid(pen)], -1)
