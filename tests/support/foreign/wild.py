"""Variants as they are found in public repositories, written afresh from what they do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from tests.support.foreign.copied import VRNN


class LogVariances(VRNN):
    """The eager VRNN whose heads are named and used as log variances, Gaussian, with losses per sequence."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim, gaussian=True)
        del self.enc_std, self.prior_std, self.dec_std
        self.enc_logvar, self.prior_logvar = nn.Linear(h_dim, z_dim), nn.Linear(h_dim, z_dim)
        self.dec_logvar = nn.Linear(h_dim, x_dim)

    def forward(self, x: Tensor) -> Any:
        h = x.new_zeros(self.n_layers, x.size(1), self.h_dim)
        kl = nll = x.new_zeros(x.size(1))
        means, logvars = [], []
        for x_t in x:
            seen, top = self.phi_x(x_t), h[-1]
            q, p = self.enc(torch.cat([seen, top], 1)), self.prior(top)
            q_mean, q_logvar = self.enc_mean(q), self.enc_logvar(q)
            p_mean, p_logvar = self.prior_mean(p), self.prior_logvar(p)
            z = self.phi_z(q_mean + torch.exp(0.5 * q_logvar) * torch.randn_like(q_mean))
            d = self.dec(torch.cat([z, top], 1))
            mean, logvar = self.dec_mean(d), self.dec_logvar(d)
            _, h = self.rnn(torch.cat([seen, z], 1).unsqueeze(0), h)
            ratio = (q_logvar.exp() + (q_mean - p_mean) ** 2) / p_logvar.exp()
            kl = kl + 0.5 * (p_logvar - q_logvar + ratio - 1).sum(1)
            nll = nll + 0.5 * (logvar + (x_t - mean) ** 2 / logvar.exp() + torch.log(x_t.new_tensor(2 * torch.pi))).sum(
                1
            )
            means.append(mean)
            logvars.append(q_logvar)
        return kl.sum(), nll.sum(), means, logvars


class OneHead(VRNN):
    """The eager VRNN whose decoder gives probabilities alone, with means of its losses; ``inside`` the decoder's last
    layer is the head."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int, inside: bool = False) -> None:
        super().__init__(x_dim, h_dim, z_dim)
        del self.dec_std
        self.inside = inside
        if inside:
            self.dec.extend([*self.dec_mean])
            del self.dec_mean

    def forward(self, x: Tensor) -> Any:
        h = x.new_zeros(self.n_layers, x.size(1), self.h_dim)
        kl, outputs = x.new_zeros(()), []
        for x_t in x:
            seen, top = self.phi_x(x_t), h[-1]
            q, p = self.enc(torch.cat([seen, top], 1)), self.prior(top)
            q_mean, q_std, p_mean, p_std = self.enc_mean(q), self.enc_std(q), self.prior_mean(p), self.prior_std(p)
            z = self.phi_z(q_mean + q_std * torch.randn_like(q_std))
            output = self.dec(torch.cat([z, top], 1))
            outputs.append(output if self.inside else self.dec_mean(output))
            _, h = self.rnn(torch.cat([seen, z], 1).unsqueeze(0), h)
            ratio = (q_std**2 + (q_mean - p_mean) ** 2) / p_std**2
            kl = kl + 0.5 * (2 * p_std.log() - 2 * q_std.log() + ratio - 1).sum()
        made = torch.stack(outputs)
        return F.binary_cross_entropy(made, x, reduction="sum"), kl, made


class Clamped(VRNN):
    """The eager VRNN for real data whose mean, kept within bounds, sits in a Sequential as a Bernoulli's does."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim, gaussian=True, fixed=True)
        self.dec_mean = nn.Sequential(nn.Linear(h_dim, x_dim), nn.Hardtanh(-10, 10))


class Densities(VRNN):
    """The eager VRNN in the words of torch.distributions, which raise where a deviation is 0."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim, gaussian=True)

    def kld(self, mean_1: Tensor, std_1: Tensor, mean_2: Tensor, std_2: Tensor) -> Tensor:
        return kl_divergence(Normal(mean_1, std_1), Normal(mean_2, std_2)).sum()

    def nll_gauss(self, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
        return -Normal(mean, std).log_prob(x).sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kl, nll, (_, means), _ = super().forward(x)
        return kl, nll, torch.stack(means)


class BatchFirst(VRNN):
    """The eager VRNN for (B, T, X)."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.transpose(0, 1))


class Wrapped(nn.Module):
    """A trainer's module around the eager VRNN, and the file that its trainer writes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def checkpoint(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters())
        sum(p.sum() for p in self.parameters()).backward()
        optimizer.step()
        return {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": self.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "runs"}},
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": {"h_dim": 9, "lr": 1e-3},
        }


def normalised(x_dim: int, h_dim: int, z_dim: int, *, dropout: float = 0.0) -> VRNN:
    """The eager VRNN with normalised features, of x and of the output."""
    model = VRNN(x_dim, h_dim, z_dim)
    model.phi_x.insert(1, nn.BatchNorm1d(h_dim))
    model.phi_x.append(nn.Dropout(dropout))
    model.dec.insert(0, nn.BatchNorm1d(2 * h_dim))
    return model


def convolved(x_dim: int, h_dim: int, z_dim: int) -> VRNN:
    """The eager VRNN that sees x through a convolution."""
    model = VRNN(x_dim, h_dim, z_dim)
    convolution = nn.Conv1d(1, 3, 3)
    flat = nn.Linear(3 * (x_dim - 2), h_dim)
    model.phi_x = nn.Sequential(nn.Unflatten(1, (1, x_dim)), convolution, nn.ReLU(), nn.Flatten(), flat, nn.ReLU())
    return model


class Notes(VRNN):
    """The eager VRNN on integers (T, B), each embedded, with a categorical output."""

    def __init__(self, x_dim: int, h_dim: int, z_dim: int) -> None:
        super().__init__(x_dim, h_dim, z_dim)
        self.phi_x = nn.Embedding(x_dim, h_dim)
        del self.dec_std
        self.dec_mean = nn.Linear(h_dim, x_dim)

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(self.n_layers, x.size(1), self.h_dim)
        kl = nll = torch.zeros(())
        for x_t in x:
            seen, top = self.phi_x(x_t), h[-1]
            q, p = self.enc(torch.cat([seen, top], 1)), self.prior(top)
            q_mean, q_std, p_mean, p_std = self.enc_mean(q), self.enc_std(q), self.prior_mean(p), self.prior_std(p)
            z = self.phi_z(q_mean + q_std * torch.randn_like(q_std))
            nll = nll + F.cross_entropy(self.dec_mean(self.dec(torch.cat([z, top], 1))), x_t, reduction="sum")
            _, h = self.rnn(torch.cat([seen, z], 1).unsqueeze(0), h)
            ratio = (q_std**2 + (q_mean - p_mean) ** 2) / p_std**2
            kl = kl + 0.5 * (2 * p_std.log() - 2 * q_std.log() + ratio - 1).sum()
        return {"kl": kl, "nll": nll}


class Forecaster(nn.Module):
    """Forecasts what comes ``after`` from what it ``sees``, given a ``recipe`` for each step, all (B, T, .).

    Its loop begins with the second step, its posterior adds to the prior, and its cell does not see the recipe.
    """

    def __init__(self, seen: int, after: int, recipe: int, width: int, latent: int) -> None:
        super().__init__()
        self.width = width
        self.look = nn.Sequential(nn.Linear(seen, width), nn.Tanh())
        self.post = nn.Sequential(nn.Linear(2 * width + recipe, width), nn.Tanh())
        self.post_mu, self.post_sigma = nn.Linear(width, latent), nn.Sequential(nn.Linear(width, latent), nn.Softplus())
        self.pri = nn.Sequential(nn.Linear(width + recipe, width), nn.Tanh())
        self.pri_mu, self.pri_sigma = nn.Linear(width, latent), nn.Sequential(nn.Linear(width, latent), nn.Softplus())
        self.tell = nn.Sequential(nn.Linear(recipe + latent + width, width), nn.Tanh())
        self.out = nn.Linear(width, after)
        self.cell = nn.LSTMCell(width + latent, width)

    def forward(self, sees: Tensor, after: Tensor, recipe: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        h = c = sees.new_zeros(len(sees), self.width)
        kl, error = [], []
        for t in range(1, sees.shape[1]):
            look, hint = self.look(sees[:, t]), recipe[:, t]
            q, p = self.post(torch.cat([look, hint, h], -1)), self.pri(torch.cat([hint, h], -1))
            p_mean, p_std, q_std = self.pri_mu(p), self.pri_sigma(p), self.post_sigma(q)
            change = self.post_mu(q)
            z = p_mean + change + q_std * torch.randn_like(q_std)
            output = self.out(self.tell(torch.cat([hint, z, h], -1)))
            h, c = self.cell(torch.cat([look, z], -1), (h, c))
            kl.append((p_std.log() - q_std.log() + (q_std**2 + change**2) / (2 * p_std**2) - 0.5).sum(-1))
            error.append(((after[:, t] - output) ** 2).sum(-1))
        return {"kl": torch.stack(kl, 1).mean(), "loss": torch.stack(error, 1).mean() + weight * torch.stack(kl).mean()}
