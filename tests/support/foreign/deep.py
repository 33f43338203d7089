"""Layout deep-features: features and heads with hidden layers of their own, (B, T, X)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def head(h: int, outputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(*network(h, h, h), nn.Linear(h, outputs), *after)


class VRNN(nn.Module):
    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__()
        h = self.h_dim = h_dim
        self.x_fea, self.z_fea = network(x_dim, h, h, h, h), network(z_dim, h, h, h, h)
        self.prior_fea, self.encoder_fea, self.decoder_fea = network(h, h), network(2 * h, h), network(2 * h, h)
        self.prior_mean, self.prior_var = head(h, z_dim), head(h, z_dim, nn.Softplus())
        self.encoder_mean, self.encoder_var = head(h, z_dim), head(h, z_dim, nn.Softplus())
        self.decoder_mean, self.decoder_var = head(h, x_dim, nn.Sigmoid()), head(h, x_dim, nn.Softplus())
        self.rnn = nn.GRUCell(2 * h, h)

    def forward(self, x: Tensor) -> tuple[list[Tensor], ...]:
        found: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
        h = torch.zeros(x.size(0), self.h_dim, device=x.device)
        for t in range(x.size(1)):
            x_fea = self.x_fea(x[:, t])
            prior = self.prior_fea(h)
            encoder = self.encoder_fea(torch.cat([x_fea, h], -1))
            encoder_mean, encoder_var = self.encoder_mean(encoder), self.encoder_var(encoder)
            z = torch.rand_like(encoder_mean) * encoder_var + encoder_mean
            z_fea = self.z_fea(z)
            decoder = self.decoder_fea(torch.cat([z_fea, h], -1))
            h = self.rnn(torch.cat([x_fea, z_fea], -1), h)
            step = (self.prior_mean(prior), self.prior_var(prior), encoder_mean, encoder_var)
            step += (self.decoder_mean(decoder), self.decoder_var(decoder))
            for into, value in zip(found, step, strict=True):
                into.append(value)
        return found


class WithLosses(VRNN):
    """The same with its losses in forward: a KL of the prior to the posterior, and means over everything."""

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        p_mean, p_std, q_mean, q_std, mean, _ = (torch.stack(values, 1) for values in super().forward(x))
        kl = torch.log(q_std / p_std) + (p_std**2 + (p_mean - q_mean) ** 2) / (2 * q_std**2) - 0.5
        return {"kl": kl.mean(), "nll": F.binary_cross_entropy(mean, x)}

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        found = self.losses(x)
        return found["kl"] + found["nll"], found
