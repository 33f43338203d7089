"""Copies of E that differ in what they return and in how they draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .copied import VRNN


class DrawsUniform(VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * torch.rand_like(std)


class ReturnsMeans(VRNN):
    """A dictionary of losses that are means over everything, with a KL that is reversed, and stacked features."""

    def kld(self, mean_1: Tensor, std_1: Tensor, mean_2: Tensor, std_2: Tensor) -> Tensor:
        return super().kld(mean_2, std_2, mean_1, std_1)

    def forward(self, x: Tensor) -> Any:
        kl, nll, (means, stds), (outputs, _) = super().forward(x)
        kl, nll = kl / torch.stack(means).numel(), nll / x.numel()
        self.last = tuple(stds)
        return {"loss": nll + kl, "kl": kl, "features": [torch.stack(means, 1), None, "nats"], "outputs": outputs}
