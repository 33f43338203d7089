"""The oracle and the fallback: the equations as they stand in the paper, one time step after the other.

Written from the equations of Chung et al. 2015 and not from the partition, so that it can catch a wrong cut.
Gradients are torch's own; any device and any floating dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihoods import MeanStd, bernoulli_log_prob, gaussian_log_prob, standard_deviation
from ..spec import CellSpec
from .result import SequenceResult

name = "reference"
verified = "CPU, float32 and float64: gradcheck, torch's own GRU and LSTM, and an exact log-marginal by quadrature"

Layers: TypeAlias = list[tuple[Tensor, Tensor]]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "identity": lambda x: x,
}


def unavailable() -> str | None:
    """None: it runs wherever torch does."""
    return None


def refuses(spec: CellSpec, x: Tensor) -> str | None:
    """None: it runs every spec, device and floating dtype."""
    return None


def launches(spec: CellSpec) -> str:
    """What one forward and one backward cost in launches."""
    return "a Python loop over time, forward and backward: the number of launches grows with T"


class Cell:
    """The networks of one cell as functions of tensors whose last dimension is features."""

    def __init__(self, spec: CellSpec, parameters: Sequence[Tensor]) -> None:
        rest = iter(parameters)

        def take(layers: int) -> Layers:
            return [(next(rest), next(rest)) for _ in range(layers)]

        self.spec = spec
        self.activation = _ACTIVATIONS[spec.activation]
        # in the order of spec.parameters(): hidden layers, then heads
        self.networks = {
            "phi_x": (take(len(spec.phi_x)), take(0)),
            "phi_z": (take(len(spec.phi_z)), take(0)),
            "encoder": (take(len(spec.encoder)), take(2)),
            "prior": ([], []) if spec.prior is None else (take(len(spec.prior)), take(2)),
            "decoder": (take(len(spec.decoder)), take(len(spec.decoder_heads))),
        }
        self.weight_ih, self.weight_hh = next(rest), next(rest)
        self.bias_ih = next(rest) if spec.bias else None
        self.bias_hh = next(rest) if spec.bias else None

    def _network(self, name: str, x: Tensor) -> list[Tensor]:
        """What the heads of a network give; for one without heads, its last hidden layer."""
        hidden, heads = self.networks[name]
        for weight, bias in hidden:
            x = self.activation(F.linear(x, weight, bias))
        return [F.linear(x, weight, bias) for weight, bias in heads] or [x]

    def _gaussian(self, name: str, x: Tensor) -> MeanStd:
        mean, raw = self._network(name, x)
        return MeanStd(mean, standard_deviation(self.spec.std, raw))

    def phi_x(self, x: Tensor) -> Tensor:
        """Features of x_t."""
        return self._network("phi_x", x)[0]

    def phi_z(self, z: Tensor) -> Tensor:
        """Features of z_t."""
        return self._network("phi_z", z)[0]

    def prior(self, h: Tensor) -> MeanStd:
        """p(z_t | h_{t-1}), eq. 5, or N(0, 1)."""
        if self.spec.prior is None:
            zeros = h.new_zeros((*h.shape[:-1], self.spec.latent_size))
            return MeanStd(zeros, torch.ones_like(zeros))
        return self._gaussian("prior", h)

    def decoder(self, phi_z: Tensor, h: Tensor) -> Tensor:
        """The raw parameters of p(x_t | z_t, h_{t-1}), eq. 6: its heads side by side."""
        return torch.cat(self._network("decoder", torch.cat([phi_z, h], -1)), -1)

    def posterior(self, phi_x: Tensor, h: Tensor, prior: MeanStd) -> MeanStd:
        """q(z_t | x_t, h_{t-1}), eq. 9, whose mean may start from that of the prior."""
        mean, std = self._gaussian("encoder", torch.cat([phi_x, h], -1))
        return MeanStd(prior.mean + mean if self.spec.residual else mean, std)

    def recur(self, phi_x: Tensor, phi_z: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """h_t = cell(phi_x(x_t), phi_z(z_t), h_{t-1}), eq. 7, as ``torch.nn.GRU``, ``LSTM`` and ``RNN`` compute it."""
        h = state[0]
        from_input = F.linear(torch.cat([phi_x, phi_z], -1), self.weight_ih, self.bias_ih)
        from_state = F.linear(h, self.weight_hh, self.bias_hh)
        if self.spec.cell == "gru":
            r_x, u_x, n_x = from_input.chunk(3, -1)
            r_h, u_h, n_h = from_state.chunk(3, -1)
            u = torch.sigmoid(u_x + u_h)
            n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
            return ((1 - u) * n + u * h,)
        if self.spec.cell == "rnn":
            return (_ACTIVATIONS[self.spec.nonlinearity](from_input + from_state),)
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def kl_divergence(q: MeanStd, p: MeanStd) -> Tensor:
    """KL(q || p) of diagonal Gaussians in nats, summed over the last dimension."""
    ratio = q.std / p.std
    return (0.5 * (ratio.square() + ((q.mean - p.mean) / p.std).square() - 1) - ratio.log()).sum(-1)


def run(
    spec: CellSpec,
    parameters: Sequence[Tensor],
    x: Tensor,
    eps: Tensor,
    lengths: Tensor | None,
    state: tuple[Tensor, ...],
    *,
    recompute: bool,
    want_prior: bool,
    want_raw: bool,
) -> SequenceResult:
    """Run a batch of sequences: x (T, B, X), eps (T, B, Z), lengths (B,), state of (B, H) tensors.

    ``recompute`` is about memory, never about numbers; autograd keeps what it keeps here.
    """
    cell = Cell(spec, parameters)
    real = None
    if lengths is not None:
        real = (torch.arange(x.shape[0], device=x.device)[:, None] < lengths.to(x.device)).unsqueeze(-1)
        x, eps = _zero_unless(real, x), _zero_unless(real, eps)
    steps = []
    for t in range(x.shape[0]):
        # padding may hold NaN: what a padded row would compute is cut off before it can meet a gradient
        before = state if real is None else tuple(_zero_unless(real[t], s) for s in state)
        h = before[0]
        phi_x = cell.phi_x(x[t])
        prior = cell.prior(h)
        posterior = cell.posterior(phi_x, h, prior)
        z = posterior.mean + posterior.std * eps[t]
        phi_z = cell.phi_z(z)
        raw = cell.decoder(phi_z, h)
        steps.append((_nll(spec, raw, x[t]), kl_divergence(posterior, prior), z, *posterior, *prior, raw))
        after = cell.recur(phi_x, phi_z, before)
        state = after if real is None else tuple(torch.where(real[t], a, s) for a, s in zip(after, state, strict=True))
    nll, kl, *features = (torch.stack(tensors) for tensors in zip(*steps, strict=True))
    if real is not None:
        nll, kl = _zero_unless(real.squeeze(-1), nll), _zero_unless(real.squeeze(-1), kl)
        features = [_zero_unless(real, f) for f in features]
    z, mean, std, prior_mean, prior_std, raw = features
    return SequenceResult(
        nll,
        kl,
        z,
        mean,
        std,
        prior_mean if want_prior else None,
        prior_std if want_prior else None,
        raw if want_raw else None,
        state,
    )


def _nll(spec: CellSpec, raw: Tensor, x: Tensor) -> Tensor:
    """-log p(x_t | z_<=t, x_<t) of each row; zero where an object outside computes it."""
    if spec.likelihood == "bernoulli":
        return -bernoulli_log_prob(raw, x)
    if spec.likelihood == "gaussian":
        return -gaussian_log_prob(raw, x, spec.output_std)
    return x.new_zeros(x.shape[:-1])


def _zero_unless(real: Tensor, tensor: Tensor) -> Tensor:
    return torch.where(real, tensor, torch.zeros_like(tensor))
