"""A model of nobody's layout: names of its own, x (B, T, X), a cell called step by step, a dictionary returned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence


class SequenceModel(nn.Module):
    def __init__(self, features: int, width: int, latent: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, width), nn.ELU())
        self.embed_latent = nn.Sequential(nn.Linear(latent, width), nn.ELU())
        self.infer = nn.Sequential(nn.Linear(2 * width, width), nn.ELU())
        self.infer_mu, self.infer_sigma = nn.Linear(width, latent), nn.Linear(width, latent)
        self.expect = nn.Sequential(nn.Linear(width, width), nn.ELU())
        self.expect_mu, self.expect_sigma = nn.Linear(width, latent), nn.Linear(width, latent)
        self.render = nn.Sequential(nn.Linear(2 * width, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.logits = nn.Linear(width, features)
        self.memory = nn.GRUCell(2 * width, width)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        h = frames.new_zeros(frames.shape[0], self.memory.hidden_size)
        losses, logits = [], []
        for x in frames.unbind(1):
            seen = self.embed(x)
            q = self.infer(torch.cat([seen, h], -1))
            posterior = Normal(self.infer_mu(q), F.softplus(self.infer_sigma(q)))
            p = self.expect(h)
            prior = Normal(self.expect_mu(p), F.softplus(self.expect_sigma(p)))
            latent = self.embed_latent(posterior.rsample())
            raw = self.logits(self.render(torch.cat([latent, h], -1)))
            nll = F.binary_cross_entropy_with_logits(raw, x, reduction="none").sum(-1)
            losses.append(nll + kl_divergence(posterior, prior).sum(-1))
            logits.append(raw)
            h = self.memory(torch.cat([seen, latent], -1), h)
        return {"loss": torch.stack(losses).mean(), "logits": torch.stack(logits, 1)}
