"""The loop over time, written as people write it: the yardstick of every speed-up, and in float64 the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vrnn_fast.cell.spec import STD_FLOOR
from vrnn_fast.likelihoods import Gaussian

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
OUTPUT_STD_FLOOR = Gaussian().min_std

State: TypeAlias = Tensor | tuple[Tensor, Tensor]


class EagerOutput(NamedTuple):
    """Sums over every step and sequence, then one tensor (B, .) per time step."""

    kl: Tensor
    nll: Tensor
    posterior_means: list[Tensor]
    posterior_stds: list[Tensor]
    decoder_means: list[Tensor]


class EagerVRNN(nn.Module):
    """The VRNN as a Python loop over time: ``nn.Sequential`` networks, and ``nn.GRU`` or ``nn.LSTM`` called per step.

    Arguments and parameters are those of :class:`vrnn_fast.VRNN`, so one's state dict loads into the other. Its
    losses are the stable ones (logits, floors under the standard deviations), that results can be compared.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        phi_x: Sequence[int],
        phi_z: Sequence[int],
        encoder: Sequence[int],
        prior: Sequence[int],
        decoder: Sequence[int],
        cell: str = "gru",
        num_layers: int = 1,
        cond_size: int = 0,
        bias: bool = True,
        activation: str = "relu",
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__()

        def network(inputs: int, widths: Sequence[int]) -> tuple[nn.Sequential, int]:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()]
                inputs = width
            return nn.Sequential(*layers), inputs

        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.lstm = cell == "lstm"
        self.gaussian = likelihood == "gaussian"
        self.phi_x, x_size = network(input_size, phi_x)
        self.phi_z, z_size = network(latent_size, phi_z)

        self.enc, width = network(x_size + cond_size + hidden_size, encoder)
        self.enc_mean = nn.Linear(width, latent_size)
        self.enc_std = nn.Sequential(nn.Linear(width, latent_size), nn.Softplus())

        self.prior, width = network(cond_size + hidden_size, prior)
        self.prior_mean = nn.Linear(width, latent_size)
        self.prior_std = nn.Sequential(nn.Linear(width, latent_size), nn.Softplus())

        self.dec, width = network(cond_size + z_size + hidden_size, decoder)
        if self.gaussian:
            self.dec_mean: nn.Module = nn.Linear(width, input_size)
            self.dec_std = nn.Sequential(nn.Linear(width, input_size), nn.Softplus())
        else:
            self.dec_mean = nn.Sequential(nn.Linear(width, input_size))

        recurrent = nn.LSTM if self.lstm else nn.GRU
        self.rnn: nn.Module = recurrent(x_size + z_size, hidden_size, num_layers, bias)

    def start(self, like: Tensor) -> State:
        """Zeros (num_layers, B, H), for an LSTM twice, for sequences of (B, .) tensors such as ``like``."""
        zeros = like.new_zeros(self.num_layers, like.size(0), self.hidden_size)
        return (zeros, zeros) if self.lstm else zeros

    def recur(self, inputs: Tensor, state: State) -> State:
        """One step of the recurrent cell on inputs (B, .)."""
        following: State = self.rnn(inputs.unsqueeze(0), state)[1]
        return following

    def prior_of(self, h: Tensor, *cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z_t given h_{t-1} and a conditioning input (B, C), if there is one."""
        prior = self.prior(torch.cat([*cond, h], 1) if cond else h)
        return self.prior_mean(prior), self.prior_std(prior) + STD_FLOOR

    def decode(self, phi_z: Tensor, h: Tensor, *cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's mean, or logits, and the standard deviation of a Gaussian."""
        dec = self.dec(torch.cat([*cond, phi_z, h], 1))
        return self.dec_mean(dec), self.dec_std(dec) + OUTPUT_STD_FLOOR if self.gaussian else None

    def step(
        self, x: Tensor, eps: Tensor, state: State, *cond: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, State]:
        """x (B, X), eps (B, Z) -> KL and NLL summed over the batch, mean and std of z, mean (or logits) of x, state."""
        h = (state[0] if isinstance(state, tuple) else state)[-1]

        phi_x = self.phi_x(x)
        enc = self.enc(torch.cat([phi_x, *cond, h], 1))
        enc_mean, enc_std = self.enc_mean(enc), self.enc_std(enc) + STD_FLOOR
        prior_mean, prior_std = self.prior_of(h, *cond)

        z = enc_mean + enc_std * eps
        phi_z = self.phi_z(z)
        dec_mean, dec_std = self.decode(phi_z, h, *cond)
        state = self.recur(torch.cat([phi_x, phi_z], 1), state)

        kl = gaussian_kl(enc_mean, enc_std, prior_mean, prior_std)
        if dec_std is not None:
            nll = gaussian_nll(dec_mean, dec_std, x)
        else:
            nll = F.binary_cross_entropy_with_logits(dec_mean, x, reduction="sum")
        return kl, nll, enc_mean, enc_std, dec_mean, state

    def forward(self, x: Tensor, eps: Tensor, cond: Tensor | None = None) -> EagerOutput:
        """x (T, B, X), eps (T, B, Z), cond (T, B, C), which encoder, prior and decoder read."""
        state = self.start(x[0])
        kl_sum, nll_sum = x.new_zeros(()), x.new_zeros(())
        posterior_means, posterior_stds, decoder_means = [], [], []
        for t in range(x.size(0)):
            kl, nll, enc_mean, enc_std, dec_mean, state = self.step(
                *(x[t], eps[t], state), *(() if cond is None else (cond[t],))
            )
            kl_sum, nll_sum = kl_sum + kl, nll_sum + nll
            posterior_means.append(enc_mean)
            posterior_stds.append(enc_std)
            decoder_means.append(dec_mean)
        return EagerOutput(kl_sum, nll_sum, posterior_means, posterior_stds, decoder_means)

    def loss(self, x: Tensor, eps: Tensor, cond: Tensor | None = None) -> Tensor:
        """The negative evidence lower bound in nats per time step and sequence."""
        out = self.forward(x, eps, cond)
        return (out.nll + out.kl) / (x.size(0) * x.size(1))

    def generate(self, steps: int, like: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, State]:
        """Draw sequences (steps, B, X), each x_t fed back; ``like`` is a (B, .) tensor. And the state after them.

        ``noise`` is drawn step by step if it is not given: standard normal of z (steps, B, Z), and of x (steps, B, X),
        uniform in [0, 1) where x is binary.
        """
        state, samples = self.start(like), []
        for t in range(steps):
            h = (state[0] if isinstance(state, tuple) else state)[-1]
            prior_mean, prior_std = self.prior_of(h)
            phi_z = self.phi_z(prior_mean + prior_std * (noise[0][t] if noise else torch.randn_like(prior_mean)))
            x, std = self.decode(phi_z, h)
            if std is not None:
                x = x + std * (noise[1][t] if noise else torch.randn_like(x))
            elif noise:
                x = (noise[1][t] < torch.sigmoid(x)).to(x.dtype)
            else:
                x = torch.bernoulli(torch.sigmoid(x))
            state = self.recur(torch.cat([self.phi_x(x), phi_z], 1), state)
            samples.append(x)
        return torch.stack(samples), state


def gaussian_kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """KL(N(mean, std²) || N(prior_mean, prior_std²)) in nats, summed over everything."""
    terms = 2 * torch.log(prior_std) - 2 * torch.log(std) + (std**2 + (mean - prior_mean) ** 2) / prior_std**2 - 1
    return 0.5 * torch.sum(terms)


def gaussian_nll(mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
    """-log N(x; mean, std²) in nats, summed over everything."""
    return torch.sum(0.5 * ((x - mean) / std) ** 2 + torch.log(std) + 0.5 * math.log(2 * math.pi))
