"""Copies of the eager VRNN and of deep features that differ in what they return, in how they draw, and in what their
networks end."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.foreign import deep
from tests.support.foreign.copied import VRNN


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


class DrawsFlat(VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * torch.randn(std.numel(), dtype=torch.float).view_as(std)


class WithoutEps(VRNN):
    """Its losses as they stand in a textbook."""

    def kld(self, mean_1: Tensor, std_1: Tensor, mean_2: Tensor, std_2: Tensor) -> Tensor:
        logs = 2 * torch.log(std_2) - 2 * torch.log(std_1)
        return 0.5 * torch.sum(logs + (std_1.pow(2) + (mean_1 - mean_2).pow(2)) / std_2.pow(2) - 1)

    def nll_bernoulli(self, theta: Tensor, x: Tensor) -> Tensor:
        return -torch.sum(x * torch.log(theta) + (1 - x) * torch.log(1 - theta))


class CrossEntropy(VRNN):
    """Which is at most 100."""

    def nll_bernoulli(self, theta: Tensor, x: Tensor) -> Tensor:
        return F.binary_cross_entropy(theta, x, reduction="sum")


class Clamped(WithoutEps):
    bound = 1e-6

    def nll_bernoulli(self, theta: Tensor, x: Tensor) -> Tensor:
        return super().nll_bernoulli(theta.clamp(self.bound, 1 - self.bound), x)


class ClampedElsewhere(Clamped):
    bound = 3e-7


class RoundedConstant(VRNN):
    """A Gaussian whose log(2 pi) is of float32; as a loss, the sum of its parts."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, gaussian=True)

    def nll_gauss(self, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
        constant = torch.log(torch.FloatTensor([2 * math.pi])) / 2
        return torch.sum(torch.log(std) + constant + (x - mean).pow(2) / (2 * std.pow(2)))

    def forward(self, x: Tensor) -> Any:
        kl, nll, _, _ = super().forward(x)
        return {"loss": kl + nll, "nll": nll}


class Bounded(VRNN):
    """The mean of its Gaussian is bounded by a module behind the head."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim, gaussian=True, fixed=True)
        self.dec_mean = nn.Sequential(nn.Linear(h_dim, x_dim), nn.Hardtanh(-0.2, 0.2))


class StartsLate(VRNN):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x[1:])


class ReturnsFeatures(VRNN):
    """And a mask, as booleans."""

    def forward(self, x: Tensor) -> Any:
        kl, nll, (means, stds), _ = super().forward(x)
        return kl, nll, means, stds, self.phi_x(x), x > 0.5
