"""Binary features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from .base import Likelihood, feature_count


def bernoulli_log_prob(raw: Tensor, x: Tensor) -> Tensor:
    """Compute log Bernoulli(x; sigmoid(raw)) in nats, summed over features: (..., X) -> (...). Finite for finite
    logits."""
    return (x * F.logsigmoid(raw) + (1 - x) * F.logsigmoid(-raw)).sum(-1)


@dataclass(eq=False)
class Bernoulli(Likelihood):
    """Independent binary features; raw holds logits. x in [0, 1] is taken as it comes (as in cross-entropy).

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Bernoulli())(x).loss
    """

    fused = "bernoulli"
    independent = 1

    @property
    def support(self) -> constraints.Constraint:
        return constraints.unit_interval

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean.0": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        feature_count(raw, x, each=1)
        return bernoulli_log_prob(raw, x)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw 0 or 1 with probability sigmoid(raw / temperature)."""
        return torch.bernoulli(torch.sigmoid(raw / temperature), generator=generator)

    def mean(self, raw: Tensor) -> Tensor:
        """Compute the probabilities, sigmoid(raw)."""
        return torch.sigmoid(raw)
