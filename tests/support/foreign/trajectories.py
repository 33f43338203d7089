"""Layout trajectories: conditional ones, x_t the state after y_t."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def network(inputs: int, h: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU())


def half_log_two_pi(like: Tensor) -> Tensor:
    """Of float32, whatever the model is."""
    return 0.5 * torch.log(2 * torch.FloatTensor([math.pi])).to(like.device)


class VRNN(nn.Module):
    def __init__(self, x_dim: int, y_dim: int, z_dim: int, h_dim: int, rnn_dim: int, n_layers: int = 2) -> None:
        super().__init__()
        self.rnn_dim, self.n_layers = rnn_dim, n_layers
        self.enc = network(x_dim + y_dim + rnn_dim, h_dim)
        self.enc_mean, self.enc_std = nn.Linear(h_dim, z_dim), nn.Sequential(nn.Linear(h_dim, z_dim), nn.Softplus())
        self.prior = network(y_dim + rnn_dim, h_dim)
        self.prior_mean, self.prior_std = nn.Linear(h_dim, z_dim), nn.Sequential(nn.Linear(h_dim, z_dim), nn.Softplus())
        self.dec = network(y_dim + z_dim + rnn_dim, h_dim)
        self.dec_mean, self.dec_std = nn.Linear(h_dim, x_dim), nn.Sequential(nn.Linear(h_dim, x_dim), nn.Softplus())
        self.rnn = nn.GRU(y_dim + z_dim, rnn_dim, n_layers)

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        out = {"kl_loss": torch.zeros(1, device=states.device), "recon_loss": torch.zeros(1, device=states.device)}
        h = torch.zeros(self.n_layers, states.size(1), self.rnn_dim, device=states.device)
        for t in range(states.size(0) - 1):
            y, x = states[t], states[t + 1]
            enc = self.enc(torch.cat([x, y, h[-1]], 1))
            enc_mean, enc_std = self.enc_mean(enc), self.enc_std(enc)
            prior = self.prior(torch.cat([y, h[-1]], 1))
            prior_mean, prior_std = self.prior_mean(prior), self.prior_std(prior)
            z = enc_mean + torch.empty_like(enc_std).normal_() * enc_std
            dec = self.dec(torch.cat([y, z, h[-1]], 1))
            dec_mean, dec_std = self.dec_mean(dec), self.dec_std(dec)
            _, h = self.rnn(torch.cat([x, z], 1).unsqueeze(0), h)
            ratio = (enc_std**2 + (enc_mean - prior_mean) ** 2) / prior_std**2
            out["kl_loss"] = out["kl_loss"] + 0.5 * (2 * prior_std.log() - 2 * enc_std.log() + ratio - 1).sum()
            error = (x - dec_mean) ** 2 / (2 * dec_std**2)
            out["recon_loss"] = out["recon_loss"] + (error + dec_std.log() + half_log_two_pi(x)).sum()
        return out

    def sample(self, states: Tensor, burn_in: int = 0) -> tuple[Tensor, None]:
        """Continues the first ``burn_in`` of the states, with z from the prior there too."""
        h = torch.zeros(self.n_layers, states.size(1), self.rnn_dim)
        samples = [states[0]]
        for t in range(states.size(0) - 1):
            y = samples[t]
            prior = self.prior(torch.cat([y, h[-1]], 1))
            mean, std = self.prior_mean(prior), self.prior_std(prior)
            z = mean + torch.empty_like(std).normal_() * std
            if t < burn_in:
                x = states[t + 1]
            else:
                dec = self.dec(torch.cat([y, z, h[-1]], 1))
                mean, std = self.dec_mean(dec), self.dec_std(dec)
                x = mean + torch.empty_like(std).normal_() * std
            _, h = self.rnn(torch.cat([x, z], 1).unsqueeze(0), h)
            samples.append(x)
        return torch.stack(samples), None


class Agents(nn.Module):
    """The same for several agents, each with networks and a state of its own; all see everybody's last state."""

    def __init__(self, n_agents: int, x_dim: int, z_dim: int, h_dim: int, rnn_dim: int, n_layers: int = 2) -> None:
        super().__init__()
        self.rnn_dim, self.n_layers, self.n_agents, self.x_dim = rnn_dim, n_layers, n_agents, x_dim
        y_dim = n_agents * x_dim

        def each(make: Callable[[], nn.Module]) -> nn.ModuleList:
            return nn.ModuleList([make() for _ in range(n_agents)])

        def std(outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(h_dim, outputs), nn.Softplus())

        self.enc = each(lambda: network(x_dim + y_dim + rnn_dim, h_dim))
        self.enc_mean, self.enc_std = each(lambda: nn.Linear(h_dim, z_dim)), each(lambda: std(z_dim))
        self.prior = each(lambda: network(y_dim + rnn_dim, h_dim))
        self.prior_mean, self.prior_std = each(lambda: nn.Linear(h_dim, z_dim)), each(lambda: std(z_dim))
        self.dec = each(lambda: network(y_dim + z_dim + rnn_dim, h_dim))
        self.dec_mean, self.dec_std = each(lambda: nn.Linear(h_dim, x_dim)), each(lambda: std(x_dim))
        self.rnn = each(lambda: nn.GRU(x_dim + z_dim, rnn_dim, n_layers))

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        out = {"kl_loss": torch.zeros((), device=states.device), "recon_loss": torch.zeros((), device=states.device)}
        h = [torch.zeros(self.n_layers, states.size(1), self.rnn_dim) for _ in range(self.n_agents)]
        for t in range(states.size(0) - 1):
            y = states[t]
            for i in range(self.n_agents):
                x = states[t + 1][:, i * self.x_dim : (i + 1) * self.x_dim]
                enc = self.enc[i](torch.cat([x, y, h[i][-1]], 1))
                enc_mean, enc_std = self.enc_mean[i](enc), self.enc_std[i](enc)
                prior = self.prior[i](torch.cat([y, h[i][-1]], 1))
                prior_mean, prior_std = self.prior_mean[i](prior), self.prior_std[i](prior)
                z = enc_mean + torch.randn_like(enc_std) * enc_std
                dec = self.dec[i](torch.cat([y, z, h[i][-1]], 1))
                dec_mean, dec_std = self.dec_mean[i](dec), self.dec_std[i](dec)
                _, h[i] = self.rnn[i](torch.cat([x, z], 1).unsqueeze(0), h[i])
                ratio = (enc_std**2 + (enc_mean - prior_mean) ** 2) / prior_std**2
                out["kl_loss"] = out["kl_loss"] + 0.5 * (2 * prior_std.log() - 2 * enc_std.log() + ratio - 1).sum()
                error = (x - dec_mean) ** 2 / (2 * dec_std**2)
                out["recon_loss"] = out["recon_loss"] + (error + dec_std.log() + half_log_two_pi(x)).sum()
        return out
