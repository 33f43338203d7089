"""The oracle and the fallback: the equations as they stand in the paper, one time step after the other.

Written from the equations of Chung et al. 2015 and not from the partition, so that it can catch a wrong cut.
Gradients are torch's own; any device and any floating dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cell.spec import CellSpec, Layer
from ..likelihoods import MeanStd, bernoulli_log_prob, gaussian_log_prob, standard_deviation
from ..resampling import Filter
from ..state import layers_of, stacked
from .base import Batch, SequenceResult, StepResult, Want, full_precision

name = "reference"
device = "any"
trusted = True
verified = "CPU, float32 and float64: gradcheck, torch's own GRU and LSTM, and an exact log-marginal by quadrature"

Layers: TypeAlias = list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]  # weight, bias, what follows
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
}


def unavailable() -> str | None:
    """Return None: it runs wherever torch does."""
    return None


def refuses(spec: CellSpec, x: Tensor, particles: int = 1) -> str | None:
    """Return None: it runs every spec, device and floating dtype."""
    return None


def launches(spec: CellSpec) -> str:
    """Say what one forward and one backward cost in launches."""
    return "a Python loop over time, forward and backward: the number of launches grows with T"


def source(spec: CellSpec, x: Tensor) -> str:
    """See :class:`vrnn_fast.executors.Executor`."""
    return "no kernel is generated: torch's own run the equations"


class Equations:
    """The networks of one cell as functions of tensors whose last dimension is features."""

    def __init__(self, spec: CellSpec, parameters: Sequence[Tensor]) -> None:
        rest = iter(parameters)

        def take(layers: Iterable[Layer]) -> Layers:
            return [(next(rest), next(rest), followed(layer)) for layer in layers]

        def followed(layer: Layer) -> Callable[[Tensor], Tensor]:
            activate = _ACTIVATIONS[layer.activation]
            if layer.norm is None:
                return activate
            scale, shift = next(rest), next(rest)
            return lambda x: activate(F.layer_norm(x, (layer.outputs,), scale, shift, spec.norm_eps))

        self.spec = spec
        # in the order of spec.parameters(): hidden layers, then heads
        self.networks: dict[str, tuple[Layers, list[Layers]]] = {}
        for name in ("phi_x", "phi_z", "encoder", "prior", "decoder"):
            network = spec.network(name)
            self.networks[name] = take(network.hidden), [take(head) for head in network.heads]
        self.layers = [
            (next(rest), next(rest), next(rest) if spec.bias else None, next(rest) if spec.bias else None)
            for _ in range(spec.num_layers)
        ]
        self.initial = tuple(rest)  # (H,) each: the state of a sequence that begins anew, or nothing for zeros

    def _network(self, name: str, x: Tensor) -> list[Tensor]:
        """Compute what the heads of a network give; for one without heads, its last hidden layer."""
        hidden, heads = self.networks[name]
        x = _chain(hidden, x)
        return [_chain(head, x) for head in heads] or [x]

    def _gaussian(self, name: str, x: Tensor) -> MeanStd:
        mean, raw = torch.cat(self._network(name, x), -1).chunk(2, -1)
        return MeanStd(mean, standard_deviation(self.spec.std, raw))

    def _input(self, name: str, **sources: Tensor | None) -> Tensor:
        """Put side by side what a network, or the ``cell``, reads of the sources."""
        return torch.cat([cast(Tensor, sources[source]) for source in self.spec.inputs(name)], -1)

    def top(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return the h that the networks read."""
        return state[self.spec.num_layers - 1]

    def phi_x(self, x: Tensor) -> Tensor:
        """Compute the features of x_t."""
        return self._network("phi_x", x)[0]

    def phi_z(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Compute the features of z_t."""
        return self._network("phi_z", self._input("phi_z", z=z, cond=cond))[0] if self.spec.phi_z else z

    def prior(self, h: Tensor, cond: Tensor | None = None) -> MeanStd:
        """Compute p(z_t | h_{t-1}), eq. 5, or N(0, 1)."""
        if self.spec.prior is None:
            zeros = h.new_zeros((*h.shape[:-1], self.spec.latent_size))
            return MeanStd(zeros, torch.ones_like(zeros))
        return self._gaussian("prior", self._input("prior", cond=cond, h=h))

    def decoder(self, z: Tensor, phi_z: Tensor, h: Tensor, cond: Tensor | None = None) -> Tensor:
        """Compute the raw parameters of p(x_t | z_t, h_{t-1}), eq. 6: its heads side by side."""
        return torch.cat(self._network("decoder", self._input("decoder", z=z, cond=cond, phi_z=phi_z, h=h)), -1)

    def posterior(self, phi_x: Tensor, h: Tensor, prior: MeanStd, cond: Tensor | None = None) -> MeanStd:
        """Compute q(z_t | x_t, h_{t-1}), eq. 9, whose mean may start from that of the prior. Without z the prior."""
        if not self.spec.latent_size:
            return prior
        mean, std = self._gaussian("encoder", self._input("encoder", phi_x=phi_x, cond=cond, h=h))
        return MeanStd(prior.mean + mean if self.spec.residual else mean, std)

    def recur(
        self, phi_x: Tensor, phi_z: Tensor, state: tuple[Tensor, ...], cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute h_t = cell(phi_x(x_t), phi_z(z_t), h_{t-1}), eq. 7, as ``torch.nn.GRU``, ``LSTM`` and ``RNN`` compute
        it."""
        layers = self.spec.num_layers
        x = self._input("cell", phi_x=phi_x, phi_z=phi_z, cond=cond)
        after = []
        for i in range(layers):
            after.append(self._layer(i, x, *state[i::layers]))
            x = after[-1][0]
        return tuple(part for parts in zip(*after, strict=True) for part in parts)

    def _layer(self, index: int, x: Tensor, h: Tensor, *c: Tensor) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, bias_ih, bias_hh = self.layers[index]
        from_input, from_state = F.linear(x, weight_ih, bias_ih), F.linear(h, weight_hh, bias_hh)
        if self.spec.cell == "gru":
            r_x, u_x, n_x = from_input.chunk(3, -1)
            r_h, u_h, n_h = from_state.chunk(3, -1)
            u = torch.sigmoid(u_x + u_h)
            n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
            return ((1 - u) * n + u * h,)
        if self.spec.cell == "rnn":
            return (_ACTIVATIONS[self.spec.nonlinearity](from_input + from_state),)
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        after = torch.sigmoid(f) * c[0] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(after), after


def _chain(layers: Layers, x: Tensor) -> Tensor:
    """Run one layer after the other."""
    for weight, bias, follow in layers:
        x = follow(F.linear(x, weight, bias))
    return x


def kl_divergence(q: MeanStd, p: MeanStd) -> Tensor:
    """Compute KL(q || p) of diagonal Gaussians in nats, summed over the last dimension."""
    ratio = q.std / p.std
    return (0.5 * (ratio.square() + ((q.mean - p.mean) / p.std).square() - 1) - ratio.log()).sum(-1)


def log_ratio(z: Tensor, eps: Tensor, q: MeanStd, p: MeanStd) -> Tensor:
    """Compute log q(z) - log p(z) of diagonal Gaussians in nats at z = q.mean + q.std * eps, summed over the last
    dimension."""
    return (0.5 * (((z - p.mean) / p.std).square() - eps.square()) - (q.std / p.std).log()).sum(-1)


def run(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> SequenceResult:
    """See :class:`vrnn_fast.executors.Executor`. Autograd keeps what it keeps, whatever ``recompute`` says."""
    cell, real = Equations(spec, parameters), batch.real()
    x, eps, state, lengths, cond, resets, mask, uniforms, threshold = batch
    if real is not None:
        real = real.unsqueeze(-1)
        x, eps = _zero_unless(real, x), _zero_unless(real, eps)
        cond = None if cond is None else _zero_unless(real, cond)
    steps = []
    particles = None if uniforms is None else Filter(uniforms, threshold, lengths)
    for t in range(x.shape[0]):
        # padding may hold NaN: what a padded row would compute is cut off before it can meet a gradient
        before = state if real is None else tuple(_zero_unless(real[t], s) for s in state)
        if resets is not None:
            begins, initial = resets[t].unsqueeze(-1), cell.initial or [torch.zeros_like(s) for s in before]
            before = tuple(torch.where(begins, i, s) for i, s in zip(initial, before, strict=True))
        h, cond_t = cell.top(before), None if cond is None else cond[t]
        phi_x = cell.phi_x(x[t])
        prior = cell.prior(h, cond_t)
        posterior = cell.posterior(phi_x, h, prior, cond_t)
        z = posterior.mean + posterior.std * eps[t]
        phi_z = cell.phi_z(z, cond_t)
        raw = cell.decoder(z, phi_z, h, cond_t)
        nll = _nll(spec, raw, x[t], None if mask is None else mask[t])
        kl = kl_divergence(posterior, prior) if spec.measure == "kl" else log_ratio(z, eps[t], posterior, prior)
        steps.append((nll, kl, z, *posterior, *prior, raw))
        after = cell.recur(phi_x, phi_z, before, cond_t)
        state = after if real is None else tuple(torch.where(real[t], a, s) for a, s in zip(after, state, strict=True))
        if particles is not None:
            state = particles.step(-(nll + kl), state)
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
        prior_mean if want.prior else None,
        prior_std if want.prior else None,
        raw if want.raw else None,
        state,
        None if particles is None else torch.stack(particles.ancestors),
    )


def generate(
    spec: CellSpec,
    parameters: Sequence[Tensor],
    batch: Batch,
    *,
    mean: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See :class:`vrnn_fast.executors.Executor`."""

    def draw(raw: Tensor, t: int) -> Tensor:
        if spec.likelihood == "bernoulli":
            return torch.sigmoid(raw) if mean else torch.where(raw.isnan(), raw, (raw > batch.x[t]).to(raw.dtype))
        centre, raw_std = raw.chunk(2, -1)
        return centre if mean else (centre + standard_deviation(spec.output_std, raw_std) * batch.x[t]).to(raw.dtype)

    played = generate_by(draw, spec, parameters, batch.eps, batch.state, batch.cond)
    return played.x, played.state


class Played(NamedTuple):
    """What a cell makes of noise: x (T, B, X), z (T, B, Z) and its prior, raw (T, B, output), the state after it."""

    x: Tensor
    z: Tensor
    prior: MeanStd
    raw: Tensor
    state: tuple[Tensor, ...]


def generate_by(
    draw: Callable[[Tensor, int], Tensor],
    spec: CellSpec,
    parameters: Sequence[Tensor],
    eps: Tensor,
    state: tuple[Tensor, ...],
    cond: Tensor | None,
) -> Played:
    """Let a cell run on its own, x_t = draw(decoder's raw output, t)."""
    cell = Equations(spec, parameters)
    steps = []
    for t in range(eps.shape[0]):
        h, cond_t = cell.top(state), None if cond is None else cond[t]
        prior = cell.prior(h, cond_t)
        z = prior.mean + prior.std * eps[t]
        phi_z = cell.phi_z(z, cond_t)
        raw = cell.decoder(z, phi_z, h, cond_t)
        x = draw(raw, t)
        state = cell.recur(cell.phi_x(x), phi_z, state, cond_t)
        steps.append((x, z, *prior, raw))
    x, z, mean, std, raw = (torch.stack(tensors) for tensors in zip(*steps, strict=True))
    return Played(x, z, MeanStd(mean, std), raw, state)


def step(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> StepResult:
    """See :class:`vrnn_fast.executors.Executor`."""
    return step_of_run(run, spec, parameters, batch, want)


def step_of_run(
    run: Callable[[CellSpec, Sequence[Tensor], Batch, Want], SequenceResult],
    spec: CellSpec,
    parameters: Sequence[Tensor],
    batch: Batch,
    want: Want,
) -> StepResult:
    """Make a step of an executor's ``run`` over a sequence of one, and the prediction in plain torch."""
    start, cond = layers_of(batch.state), batch.cond
    sequence = Batch(batch.x.unsqueeze(0), batch.eps.unsqueeze(0), start)
    if cond is not None:
        sequence = sequence._replace(cond=cond.unsqueeze(0))
    with full_precision(batch.x.device):
        result = run(spec, parameters, sequence, want)
        cell = Equations(spec, parameters)
        h = cell.top(start)
        z = cell.prior(h, cond).mean
        predicted = cell.decoder(z, cell.phi_z(z, cond), h, cond)
    return StepResult(
        result.nll[0],
        result.kl[0],
        None if result.raw is None else result.raw[0],
        predicted,
        stacked(result.state, len(batch.state)),
    )


def _nll(spec: CellSpec, raw: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
    """Compute -log p(x_t | z_<=t, x_<t) of each row, over what was observed; zero where an object outside computes
    it."""
    if spec.likelihood == "external":
        return x.new_zeros(x.shape[:-1])
    if observed is not None:
        # features are independent: the density of each on its own, of a zero in the place of what is missing
        x = _zero_unless(observed, x)
        raw = raw.unflatten(-1, (-1, x.shape[-1])).transpose(-1, -2)
        return _zero_unless(observed, _nll(spec, raw, x.unsqueeze(-1), None)).sum(-1)
    if spec.likelihood == "bernoulli":
        return -bernoulli_log_prob(raw, x)
    return -gaussian_log_prob(raw, x, spec.output_std)


def _zero_unless(real: Tensor, tensor: Tensor) -> Tensor:
    return torch.where(real, tensor, torch.zeros_like(tensor))
