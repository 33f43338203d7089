"""Features that are one of a few classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from .. import checks
from .base import Likelihood, feature_count, softplus


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Draw an index (...) with probability softmax(logits / temperature), from logits (..., K)."""
    cooled = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0 however cold it gets
    index = torch.multinomial(cooled.softmax(-1).reshape(-1, logits.shape[-1]), 1, generator=generator)
    return index.reshape(logits.shape[:-1])


@dataclass(eq=False)
class Categorical(Likelihood):
    """Independent features, each one of ``classes``: x holds 0, 1, ... classes - 1, in the dtype of the model.

    The raw output is one head of X * classes logits, the classes of the first feature first.

    Raises:
        ValueError: classes is not an int of at least 2; by a method, there are more than its dtype counts exactly: 257
            in bfloat16, 2049 in float16.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Categorical(2))(x).loss
    """

    independent = 1
    classes: int

    def __post_init__(self) -> None:
        checks.integer("classes", self.classes, least=2)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.classes - 1)

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_logits": features * self.classes}

    def _logits(self, raw: Tensor, x: Tensor | None = None) -> Tensor:
        """Return logits (..., X, classes)."""
        self._countable(raw, x)
        return raw.reshape(*raw.shape[:-1], feature_count(raw, x, each=self.classes), self.classes)

    def _countable(self, raw: Tensor, x: Tensor | None) -> None:
        """Raise ValueError where a dtype does not count as far as there are classes."""
        for values in (raw,) if x is None else (raw, x):
            if values.is_floating_point() and self.classes - 1 > 2 / torch.finfo(values.dtype).eps:
                most = int(2 / torch.finfo(values.dtype).eps) + 1
                raise ValueError(f"classes must be at most {most} in {values.dtype}, got {self.classes}")

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        log_probabilities = self._logits(raw, x).log_softmax(-1)
        inside = self.support.check(x)
        index = torch.where(inside, x, torch.zeros_like(x)).long().unsqueeze(-1)
        index, log_probabilities = torch.broadcast_tensors(index, log_probabilities)
        found = log_probabilities.gather(-1, index[..., :1]).squeeze(-1)
        return torch.where(inside, found, -torch.inf).sum(-1)

    def prediction(self, raw: Tensor) -> Tensor:
        """Compute the probabilities, (..., X, classes)."""
        return self._logits(raw).softmax(-1)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a class with probability softmax(logits / temperature)."""
        return draw(self._logits(raw), temperature, generator).to(raw.dtype)

    def mean(self, raw: Tensor) -> Tensor:
        """Compute the expected class number, which means something where classes are in order."""
        classes = torch.arange(self.classes, dtype=raw.dtype, device=raw.device)
        return (self.prediction(raw) * classes).sum(-1)


@dataclass(eq=False)
class Ordinal(Categorical):
    """Independent features, each one of ``classes`` that have an order: grades, stages, counts of a few.

    P(x <= k) = sigmoid(cut_k) with cuts that rise, cut_k = cut_{k-1} + softplus(raw_k) + 1e-6, the first being the raw
    output itself: cumulative logits (McCullagh 1980, "Regression Models for Ordinal Data"), each cut from the decoder.

    The raw output is one head of X * (classes - 1) values, those of the first feature first.

    Raises:
        ValueError: as :class:`Categorical`.

    Examples:
        >>> loss = VRNN(3, 16, 2, likelihood=Ordinal(3))(x).loss
    """

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_cuts": features * (self.classes - 1)}

    def _logits(self, raw: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the classes' log-probabilities (..., X, classes)."""
        self._countable(raw, x)
        first, rises = raw.unflatten(-1, (feature_count(raw, x, each=self.classes - 1), -1)).tensor_split([1], -1)
        rises = softplus(rises) + 1e-6
        cuts = torch.cat([first, first + rises.cumsum(-1)], -1)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
        between = (-torch.expm1(-rises)).log()
        nothing = torch.zeros_like(first)
        below, above = torch.cat([F.logsigmoid(cuts), nothing], -1), torch.cat([nothing, F.logsigmoid(-cuts)], -1)
        return below + above + torch.cat([nothing, between, nothing], -1)
