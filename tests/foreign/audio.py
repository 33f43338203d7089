"""B: the speech benchmark's VRNN. What its description leaves open (mixture, return) is one possible copy."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Normal


class Frames(nn.Module):
    """(B, S) samples as (B, T, frame)."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame = frame

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.frame)


class GaussianHead(nn.Module):
    """One layer for mean and standard deviation, the mean first."""

    def __init__(self, inputs: int, z: int) -> None:
        super().__init__()
        self.params = nn.Linear(inputs, 2 * z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.params(x).chunk(2, -1)
        return mean, nn.functional.softplus(raw, beta=math.log(2) / (1 - 1e-6)) + 1e-6


def relu(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return layers


class Cell(nn.Module):
    def __init__(self, x: int, z: int, h: int) -> None:
        super().__init__()
        self.phi_z = nn.Sequential(*relu(z, x, x, x, x))
        self.prior = nn.Sequential(*relu(h, x, x, x), GaussianHead(x, z))
        self.posterior = nn.Sequential(*relu(h + x, x, x, x), GaussianHead(x, z))
        self.gru_cell = nn.GRUCell(2 * x, h)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        prior_mean, prior_std = self.prior(h)
        mean, std = self.posterior(torch.cat([h, x], -1))
        mean = mean + prior_mean
        phi_z = self.phi_z(mean + std * torch.randn_like(std))
        return self.gru_cell(torch.cat([x, phi_z], -1), h), phi_z, mean, std, prior_mean, prior_std


class Mixture(nn.Module):
    """Ten Gaussians for every sample: logits, means, log standard deviations."""

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.Linear(30, 30)

    def forward(self, raw: Tensor, frames: Tensor) -> Tensor:
        logits, means, log_stds = self.params(raw.unflatten(-1, (-1, 30))).chunk(3, -1)
        densities = Normal(means, log_stds.exp()).log_prob(frames.unsqueeze(-1))
        return torch.logsumexp(logits.log_softmax(-1) + densities, -1).sum(-1)


class VRNN(nn.Module):
    def __init__(self, hidden: int, latent: int, frame: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Frames(frame), nn.Identity())
        for i, inputs in enumerate((frame, hidden, hidden)):
            self.encoder.add_module(str(2 * i + 2), nn.Linear(inputs, hidden))
            self.encoder.add_module(str(2 * i + 3), nn.LeakyReLU(0.01))
        h = 2 * hidden
        self.decoder = nn.Sequential(*relu(hidden + h, hidden, hidden), nn.Linear(hidden, 30 * frame))
        self.vrnn_cell = Cell(hidden, latent, h)
        self.likelihood = Mixture()


class VRNNAudio(nn.Module):
    def __init__(self, hidden: int = 512, latent: int = 256, frame: int = 200) -> None:
        super().__init__()
        self.frame = frame
        self.vrnn = VRNN(hidden, latent, frame)

    def forward(
        self,
        x: Tensor,
        x_sl: Tensor | None = None,
        beta: float = 1.0,
        free_nats: float = 0.0,
        h0: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, S); x_sl (B,) frames of each row."""
        features = self.vrnn.encoder(x)
        h = features.new_zeros(x.shape[0], self.vrnn.vrnn_cell.gru_cell.hidden_size) if h0 is None else h0
        kls, log_probs = [], []
        for t in range(features.shape[1]):
            after, phi_z, mean, std, prior_mean, prior_std = self.vrnn.vrnn_cell(features[:, t], h)
            raw = self.vrnn.decoder(torch.cat([phi_z, h], -1))
            log_probs.append(self.vrnn.likelihood(raw, x[:, t * self.frame : (t + 1) * self.frame]))
            ratio = ((std / prior_std) ** 2 + ((mean - prior_mean) / prior_std) ** 2 - 1) / 2
            kls.append((ratio - torch.log(std / prior_std)).sum(-1))
            h = after if x_sl is None else torch.where((t < x_sl).unsqueeze(-1), after, h)
        kl, log_prob = torch.stack(kls, 1), torch.stack(log_probs, 1)
        if x_sl is not None:
            real = torch.arange(kl.shape[1]) < x_sl.unsqueeze(1)
            kl, log_prob = kl * real, log_prob * real
        loss = (beta * kl.clamp(min=free_nats) - log_prob).sum() / x.shape[0]
        return loss, {"kl": kl.sum(1), "log_prob": log_prob.sum(1), "h_n": h}
