"""Layout dynamical-vae: the VRNN of the dynamical-VAE collection, from its description alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WithoutLoss(nn.Module):
    """The KL is its users' affair. x is (T, B, X). ``exponential``: forward returns exp of its output."""

    def __init__(
        self,
        x_dim: int,
        z_dim: int = 16,
        activation: str = "tanh",
        dense_x: Sequence[int] = (128,),
        dense_z: Sequence[int] = (128,),
        dense_hx_z: Sequence[int] = (128,),
        dense_hz_x: Sequence[int] = (128,),
        dense_h_z: Sequence[int] = (128,),
        dim_RNN: int = 128,
        num_RNN: int = 1,
        dropout_p: float = 0,
        exponential: bool = False,
    ) -> None:
        super().__init__()

        def network(inputs: int, widths: Sequence[int]) -> tuple[nn.Sequential, int]:
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for n, width in enumerate(widths):
                layers[f"linear{n}"] = nn.Linear(inputs, width)
                layers[f"activation{n}"] = nn.Tanh() if activation == "tanh" else nn.ReLU()
                layers[f"dropout{n}"] = nn.Dropout(dropout_p)
                inputs = width
            return nn.Sequential(layers) if layers else nn.Sequential(nn.Identity()), inputs

        self.dim_RNN, self.num_RNN, self.z_dim, self.exponential = dim_RNN, num_RNN, z_dim, exponential
        self.feature_extractor_x, x = network(x_dim, dense_x)
        self.feature_extractor_z, z = network(z_dim, dense_z)
        self.mlp_hx_z, width = network(x + dim_RNN, dense_hx_z)
        self.inf_mean, self.inf_logvar = nn.Linear(width, z_dim), nn.Linear(width, z_dim)
        self.mlp_h_z, width = network(dim_RNN, dense_h_z)
        self.prior_mean, self.prior_logvar = nn.Linear(width, z_dim), nn.Linear(width, z_dim)
        self.mlp_hz_x, width = network(z + dim_RNN, dense_hz_x)
        self.gen_out = nn.Linear(width, x_dim)
        self.rnn = nn.LSTM(x + z, dim_RNN, num_RNN)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(self.num_RNN, x.shape[1], self.dim_RNN).to(x.device)
        c = torch.zeros(self.num_RNN, x.shape[1], self.dim_RNN).to(x.device)
        found: list[list[Tensor]] = [[], [], [], [], [], []]
        for t in range(x.shape[0]):  # (1, B, .) all of it
            top = h[-1:]
            feature_x = self.feature_extractor_x(x[t : t + 1])
            inferred = self.mlp_hx_z(torch.cat([feature_x, top], -1))
            mean, logvar = self.inf_mean(inferred), self.inf_logvar(inferred)
            expected = self.mlp_h_z(top)
            mean_p, logvar_p = self.prior_mean(expected), self.prior_logvar(expected)
            std = torch.exp(0.5 * logvar)
            z = torch.addcmul(mean, torch.randn_like(std), std)
            feature_z = self.feature_extractor_z(z)
            y = self.gen_out(self.mlp_hz_x(torch.cat([feature_z, top], -1)))
            _, (h, c) = self.rnn(torch.cat([feature_x, feature_z], -1), (h, c))
            for into, value in zip(found, (mean, logvar, mean_p, logvar_p, z, y), strict=True):
                into.append(value)
        stacked = [torch.cat(values) for values in found]
        self.z_mean, self.z_logvar, self.z_mean_p, self.z_logvar_p, self.z = stacked[:5]
        return torch.exp(stacked[5]) if self.exponential else stacked[5]


class VRNN(WithoutLoss):
    def divergence(self, x: Tensor, y: Tensor) -> Tensor:
        """Itakura-Saito, of power spectra."""
        ratio = x / torch.exp(y)
        return torch.sum(ratio - torch.log(ratio) - 1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """With a KL without its -1."""
        squares = (self.z_logvar.exp() + (self.z_mean - self.z_mean_p) ** 2) / self.z_logvar_p.exp()
        return self.divergence(x, y) + 0.5 * torch.sum(self.z_logvar_p - self.z_logvar + squares)

    def parts(self, x: Tensor, y: Tensor, beta: float = 1.0) -> dict[str, Any]:
        """The same apart, per step."""
        squares = (self.z_logvar.exp() + (self.z_mean - self.z_mean_p) ** 2) / self.z_logvar_p.exp()
        kl = -0.5 * torch.sum(self.z_logvar - self.z_logvar_p - squares)
        steps = x.shape[0] * x.shape[1]
        return {"recon": self.divergence(x, y) / steps, "kl": beta * kl / steps, "nats": True}
