"""Layout eager-vrnn: the most copied PyTorch VRNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = torch.finfo(torch.float).eps


class VRNN(nn.Module):
    """x is (T, B, X). ``gaussian`` is the variant for real data, whose loss is broken as shipped unless ``fixed``."""

    def __init__(
        self,
        x_dim: int,
        h_dim: int,
        z_dim: int,
        n_layers: int = 1,
        bias: bool = False,
        gaussian: bool = False,
        fixed: bool = False,
        act: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.x_dim, self.h_dim, self.z_dim, self.n_layers = x_dim, h_dim, z_dim, n_layers
        self.gaussian, self.fixed = gaussian, fixed

        self.phi_x = nn.Sequential(nn.Linear(x_dim, h_dim), act(), nn.Linear(h_dim, h_dim), act())
        self.phi_z = nn.Sequential(nn.Linear(z_dim, h_dim), act())

        self.enc = nn.Sequential(nn.Linear(h_dim + h_dim, h_dim), act(), nn.Linear(h_dim, h_dim), act())
        self.enc_mean = nn.Linear(h_dim, z_dim)
        self.enc_std = nn.Sequential(nn.Linear(h_dim, z_dim), nn.Softplus())

        self.prior = nn.Sequential(nn.Linear(h_dim, h_dim), act())
        self.prior_mean = nn.Linear(h_dim, z_dim)
        self.prior_std = nn.Sequential(nn.Linear(h_dim, z_dim), nn.Softplus())

        self.dec = nn.Sequential(nn.Linear(h_dim + h_dim, h_dim), act(), nn.Linear(h_dim, h_dim), act())
        self.dec_std = nn.Sequential(nn.Linear(h_dim, x_dim), nn.Softplus())
        self.dec_mean = nn.Linear(h_dim, x_dim) if gaussian else nn.Sequential(nn.Linear(h_dim, x_dim), nn.Sigmoid())

        self.rnn = nn.GRU(h_dim + h_dim, h_dim, n_layers, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[list[Tensor], ...], tuple[list[Tensor], ...]]:
        enc_means, enc_stds, dec_means, dec_stds = [], [], [], []
        kld_loss = nll_loss = 0
        h = torch.zeros(self.n_layers, x.size(1), self.h_dim, device=x.device)
        for t in range(x.size(0)):
            phi_x_t = self.phi_x(x[t])
            enc_t = self.enc(torch.cat([phi_x_t, self.read(h)], 1))
            enc_mean_t, enc_std_t = self.enc_mean(enc_t), self.enc_std(enc_t)
            prior_t = self.prior(self.read(h))
            prior_mean_t, prior_std_t = self.prior_mean(prior_t), self.prior_std(prior_t)
            z_t = self.draw(enc_mean_t, enc_std_t)
            phi_z_t = self.phi_z(z_t)
            dec_t = self.dec(torch.cat([phi_z_t, self.read(h)], 1))
            dec_mean_t, dec_std_t = self.dec_mean(dec_t), self.dec_std(dec_t)
            _, h = self.rnn(torch.cat([phi_x_t, phi_z_t], 1).unsqueeze(0), h)
            kld_loss = kld_loss + self.kld(enc_mean_t, enc_std_t, prior_mean_t, prior_std_t)
            if self.gaussian:
                nll_loss = nll_loss + self.nll_gauss(dec_mean_t, dec_std_t, x[t])
            else:
                nll_loss = nll_loss + self.nll_bernoulli(dec_mean_t, x[t])
            enc_means.append(enc_mean_t)
            enc_stds.append(enc_std_t)
            dec_means.append(dec_mean_t)
            dec_stds.append(dec_std_t)
        return kld_loss, nll_loss, (enc_means, enc_stds), (dec_means, dec_stds)

    def read(self, h: Tensor) -> Tensor:
        """What the networks see of the state."""
        return h[-1]

    def sample(self, seq_len: int) -> Tensor:
        sample = torch.zeros(seq_len, self.x_dim)
        h = torch.zeros(self.n_layers, 1, self.h_dim)
        for t in range(seq_len):
            prior_t = self.prior(h[-1])
            z_t = self.draw(self.prior_mean(prior_t), self.prior_std(prior_t))
            phi_z_t = self.phi_z(z_t)
            dec_mean_t = self.dec_mean(self.dec(torch.cat([phi_z_t, h[-1]], 1)))
            phi_x_t = self.phi_x(dec_mean_t)
            _, h = self.rnn(torch.cat([phi_x_t, phi_z_t], 1).unsqueeze(0), h)
            sample[t] = dec_mean_t.detach()
        return sample

    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        eps = torch.empty(std.size(), dtype=torch.float, device=std.device).normal_()
        return eps.mul(std).add(mean)

    def kld(self, mean_1: Tensor, std_1: Tensor, mean_2: Tensor, std_2: Tensor) -> Tensor:
        logs = 2 * torch.log(std_2 + EPS) - 2 * torch.log(std_1 + EPS)
        return 0.5 * torch.sum(logs + (std_1.pow(2) + (mean_1 - mean_2).pow(2)) / std_2.pow(2) - 1)

    def nll_bernoulli(self, theta: Tensor, x: Tensor) -> Tensor:
        return -torch.sum(x * torch.log(theta + EPS) + (1 - x) * torch.log(1 - theta - EPS))

    def nll_gauss(self, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
        two_pi = torch.tensor(2 * torch.pi) if self.fixed else 2 * torch.pi
        return torch.sum(torch.log(std + EPS) + torch.log(two_pi) / 2 + (x - mean).pow(2) / (2 * std.pow(2)))
