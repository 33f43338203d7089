"""What a forecast is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks


class Forecast(NamedTuple):
    """How sequences go on: samples of what comes, all of the same weight.

    Attributes:
        samples: (K, horizon, B, X), or (K, B, horizon, X) with ``batch_first``. Each is a course of its own: functions
            of several steps or features, a sum say, may be taken of each sample before its quantiles.

    Examples:
        >>> model.forecast(x, 8).samples.shape
        torch.Size([100, 8, 4, 3])
    """

    samples: Tensor

    @property
    def mean(self) -> Tensor:
        """(horizon, B, X), the average of the samples.

        Examples:
            >>> model.forecast(x, 8).mean.shape
            torch.Size([8, 4, 3])
        """
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """(horizon, B, X), the standard deviation of the samples.

        Examples:
            >>> model.forecast(x, 8).std.shape
            torch.Size([8, 4, 3])
        """
        return self.samples.std(0, correction=0)

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Compute quantiles of each step and feature: (horizon, B, X), or (len(q), horizon, B, X) for several.

        Raises:
            ValueError, TypeError: q is no number from 0 to 1.

        Examples:
            >>> model.forecast(x, 8).quantile([0.1, 0.5, 0.9]).shape
            torch.Size([3, 8, 4, 3])
        """
        if checks.is_number(q):
            return self.quantile([checks.share("q", q)])[0]
        ordered, last = self.samples.sort(0).values, self.samples.shape[0] - 1
        places = [last * share for share in checks.shares("q", q)]
        below = [min(int(place), max(last - 1, 0)) for place in places]
        part = ordered.new_tensor([place - b for place, b in zip(places, below, strict=True)])
        part = part.view(-1, *[1] * (ordered.dim() - 1))
        return torch.lerp(ordered[below], ordered[[min(b + 1, last) for b in below]], part)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Compute the central interval that holds this share of the samples: its ends, (horizon, B, X) each.

        Raises:
            ValueError, TypeError: level is no number from 0 to 1.

        Examples:
            >>> low, high = model.forecast(x, 8).interval(0.9)
            >>> bool((low <= high).all())
            True
        """
        rest = (1 - checks.share("level", level)) / 2
        low, high = self.quantile([rest, 1 - rest])
        return low, high
