"""The loop that people write: modules called step by step, torch's own recurrent cells, torch.distributions.

Shares no line with the package. Ragged batches run row by row at their own length, so no mask can be wrong here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class Run(NamedTuple):
    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: Tensor
    state: tuple[Tensor, ...]


def _stack(size: int, widths: tuple[int, ...], activation: str) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(size, width), ACTIVATIONS[activation]()]
        size = width
    return nn.Sequential(*layers), size


class LinearCell(nn.Module):
    """torch.nn.RNN without its nonlinearity, for one step."""

    def __init__(self, inputs: int, h: int, bias: bool) -> None:
        super().__init__()
        for name, p in nn.RNN(inputs, h, bias=bias).named_parameters():
            self.register_parameter(name, p)

    def forward(self, x: Tensor, h: Tensor) -> tuple[None, Tensor]:
        values = dict(self.named_parameters())
        from_input = nn.functional.linear(x, values["weight_ih_l0"], values.get("bias_ih_l0"))
        return None, from_input + nn.functional.linear(h, values["weight_hh_l0"], values.get("bias_hh_l0"))


class EagerVRNN(nn.Module):
    """The same names as the package's module, so that a state dict goes from one to the other."""

    def __init__(
        self,
        x: int,
        h: int,
        z: int,
        *,
        cell: str = "gru",
        bias: bool = True,
        phi_x: tuple[int, ...] = (),
        phi_z: tuple[int, ...] = (),
        encoder: tuple[int, ...] = (),
        prior: tuple[int, ...] | str = (),
        decoder: tuple[int, ...] = (),
        activation: str = "relu",
        residual: bool = False,
        nonlinearity: str = "tanh",
        likelihood: str = "bernoulli",
        min_std: float = 1e-3,
        latent_floor: float = 1e-6,
        latent_std: Callable[[Tensor], Tensor] | None = None,
        output_std: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.cell, self.likelihood = cell, likelihood
        self.h, self.z, self.residual = h, z, residual
        softplus = nn.Softplus(threshold=100)
        self.latent_std = latent_std or (lambda raw: softplus(raw) + latent_floor)
        self.output_std = output_std or (lambda raw: softplus(raw) + min_std)
        self.phi_x, fx = _stack(x, phi_x, activation)
        self.phi_z, fz = _stack(z, phi_z, activation)
        self.enc, e = _stack(fx + h, encoder, activation)
        self.enc_mean, self.enc_std = nn.Linear(e, z), nn.Sequential(nn.Linear(e, z))
        self.learned_prior = not isinstance(prior, str)
        self.prior, p = _stack(h, () if isinstance(prior, str) else prior, activation)
        if self.learned_prior:
            self.prior_mean, self.prior_std = nn.Linear(p, z), nn.Sequential(nn.Linear(p, z))
        self.dec, d = _stack(fz + h, decoder, activation)
        if likelihood == "bernoulli":
            self.dec_mean = nn.Sequential(nn.Linear(d, x), nn.Sigmoid())
        else:
            self.dec_mean = nn.Linear(d, x)
            self.dec_std = nn.Sequential(nn.Linear(d, x))
        if nonlinearity == "identity":
            self.rnn: nn.Module = LinearCell(fx + fz, h, bias)
        else:
            of_rnn = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
            self.rnn = getattr(nn, cell.upper())(fx + fz, h, bias=bias, **of_rnn)

    def forward(self, x: Tensor, eps: Tensor, state: tuple[Tensor, ...] | None = None) -> Run:
        """x (T, B, X), eps (T, B, Z), state of (B, H) tensors: every row at the full length."""
        batch = x.shape[1]
        if state is None:
            state = tuple(x.new_zeros(batch, self.h) for _ in range(2 if self.cell == "lstm" else 1))
        steps = []
        for x_t, eps_t in zip(x, eps, strict=True):
            h = state[0]
            fx = self.phi_x(x_t)
            e = self.enc(torch.cat([fx, h], 1))
            p = Normal(x.new_zeros(batch, self.z), x.new_ones(batch, self.z))
            if self.learned_prior:
                r = self.prior(h)
                p = Normal(self.prior_mean(r), self.latent_std(self.prior_std(r)))
            q = Normal(self.enc_mean(e) + (p.loc if self.residual else 0), self.latent_std(self.enc_std(e)))
            z = q.loc + q.scale * eps_t
            fz = self.phi_z(z)
            d = self.dec(torch.cat([fz, h], 1))
            if self.likelihood == "bernoulli":
                raw = self.dec_mean[0](d)
                log_density = Bernoulli(logits=raw).log_prob(x_t)
            else:
                mean, raw_std = self.dec_mean(d), self.dec_std(d)
                raw = torch.cat([mean, raw_std], 1)
                log_density = Normal(mean, self.output_std(raw_std)).log_prob(x_t)
            kl = kl_divergence(q, p).sum(1)
            steps.append((-log_density.sum(1), kl, z, q.loc, q.scale, p.loc, p.scale, raw))
            packed = tuple(s.unsqueeze(0) for s in state)
            _, after = self.rnn(torch.cat([fx, fz], 1).unsqueeze(0), packed if self.cell == "lstm" else packed[0])
            state = tuple(s.squeeze(0) for s in (after if self.cell == "lstm" else (after,)))
        return Run(*(torch.stack(tensors) for tensors in zip(*steps, strict=True)), state)

    def ragged(self, x: Tensor, eps: Tensor, lengths: Tensor, state: tuple[Tensor, ...]) -> Run:
        """Row after row, each at its own length, then zeros."""
        steps, rows = x.shape[0], []
        for b, length in enumerate(lengths.tolist()):
            start = tuple(s[b : b + 1] for s in state)
            if length == 0:
                widths = (self.z,) * 5 + (self.dec_width(x.shape[2]),)
                zeros = [x.new_zeros(steps, 1), x.new_zeros(steps, 1), *(x.new_zeros(steps, 1, w) for w in widths)]
                rows.append(Run(*zeros, start))
                continue
            run = self(x[:length, b : b + 1], eps[:length, b : b + 1], start)
            padded = [torch.cat([f, f.new_zeros(steps - length, *f.shape[1:])]) for f in run[:-1]]
            rows.append(Run(*padded, run.state))
        state = tuple(torch.cat(s) for s in zip(*(row.state for row in rows), strict=True))
        return Run(*(torch.cat(f, 1) for f in zip(*(row[:-1] for row in rows), strict=True)), state)

    def dec_width(self, x: int) -> int:
        return x if self.likelihood == "bernoulli" else 2 * x
