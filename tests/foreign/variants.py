"""Copies of E and H that differ in what they return, in how they draw, and in what their networks end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import deep
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


class AffineEnds(VRNN):
    """Features that are linear in the end, an encoder that changes its mind, a prior of affine layers alone."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim)
        self.phi_x = nn.Sequential(nn.Linear(x_dim, h_dim), nn.ReLU(), nn.Linear(h_dim, h_dim))
        self.phi_z = nn.Sequential(nn.Linear(z_dim, h_dim))
        self.enc[1] = nn.ELU()
        self.prior = nn.Sequential(nn.Linear(h_dim, 7), nn.Linear(7, h_dim))


class DeepMean(VRNN):
    """Of all heads, that for the output's mean alone has a hidden layer."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim)
        self.dec_mean = nn.Sequential(nn.Linear(h_dim, 7), nn.Tanh(), nn.Linear(7, x_dim), nn.Sigmoid())


class UnlikeHeads(deep.VRNN):
    """Two heads of a single layer, and one of another depth and width."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim)
        self.encoder_mean = nn.Linear(h_dim, z_dim)
        self.prior_var = nn.Sequential(nn.Linear(h_dim, z_dim), nn.Softplus())
        self.decoder_var = nn.Sequential(nn.Linear(h_dim, 5), nn.ReLU(), nn.Linear(5, x_dim), nn.Softplus())
