"""The loop over time, written as people write it: the yardstick of every speed-up, and what the tests compare with.

It shares no arithmetic with the package: modules are called step by step, and the recurrent cells are torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vrnn_fast.state import State

STD_FLOOR, OUTPUT_STD_FLOOR = 1e-6, 1e-3  # of the latent variable and of a Gaussian output
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "identity": nn.Identity,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
_NETWORKS = {"enc": "encoder", "prior": "prior", "dec": "decoder"}

LayerStates: TypeAlias = tuple[Tensor, ...]  # a State as (B, H) tensors, h of every layer, then c
Nonlinearity: TypeAlias = str | tuple[str, ...]  # of all hidden layers, or of each


class Advanced(NamedTuple):
    """One time step: z, its posterior and prior (B, Z), the decoder's heads before any transform, the next state."""

    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: tuple[Tensor, ...]
    state: State


class EagerRun(NamedTuple):
    """Results of every step, (T, B) and (T, B, .), and the state after the last one."""

    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: Tensor
    state: LayerStates


class LinearCell(nn.Module):
    """One layer of torch.nn.RNN without its nonlinearity, for one step."""

    def __init__(self, inputs: int, h: int, bias: bool) -> None:
        super().__init__()
        for name, p in nn.RNN(inputs, h, bias=bias).named_parameters():
            self.register_parameter(name, p)

    def forward(self, x: Tensor, h: Tensor) -> tuple[None, Tensor]:
        values = dict(self.named_parameters())
        from_input = F.linear(x, values["weight_ih_l0"], values.get("bias_ih_l0"))
        return None, from_input + F.linear(h, values["weight_hh_l0"], values.get("bias_hh_l0"))


def _stack(size: int, widths: Sequence[int], activation: Nonlinearity) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        layers += [nn.Linear(size, width), ACTIVATIONS[activation if isinstance(activation, str) else activation[i]]()]
        size = width
    return nn.Sequential(*layers), size


class EagerVRNN(nn.Module):
    """The VRNN as a Python loop over time: ``nn.Sequential`` networks, and ``nn.GRU`` or ``nn.LSTM`` called per step.

    Arguments and parameters are those of :class:`vrnn_fast.VRNN`, so one's state dict loads into the other. Its
    losses are the stable ones (logits, floors under the standard deviations), that results can be compared.
    ``latent_std`` and ``output_std`` make standard deviations of raw outputs; None is a softplus and a floor.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        phi_x: Sequence[int] = (),
        phi_z: Sequence[int] = (),
        encoder: Sequence[int] = (),
        prior: Sequence[int] | str = (),
        decoder: Sequence[int] = (),
        cell: str = "gru",
        num_layers: int = 1,
        bias: bool = True,
        nonlinearity: str = "tanh",
        activation: str | Mapping[str, Nonlinearity] = "relu",
        head_layers: Sequence[int] | Mapping[str, Sequence[int]] = (),
        packed_heads: bool = False,
        residual: bool = False,
        likelihood: str = "bernoulli",
        latent_std: Callable[[Tensor], Tensor] | None = None,
        output_std: Callable[[Tensor], Tensor] | None = None,
        cond_size: int = 0,
        cond_networks: Sequence[str] = ("encoder", "prior", "decoder"),
    ) -> None:
        super().__init__()
        self.hidden_size, self.latent_size, self.num_layers = hidden_size, latent_size, num_layers
        self.lstm, self.gaussian, self.residual = cell == "lstm", likelihood == "gaussian", residual
        self.packed_heads = packed_heads
        self.cond_networks = frozenset(cond_networks if cond_size else ())
        self.learned_prior = latent_size > 0 and not isinstance(prior, str)
        self.latent_std = latent_std or (lambda raw: F.softplus(raw, threshold=100) + STD_FLOOR)
        self.output_std = output_std or (lambda raw: F.softplus(raw, threshold=100) + OUTPUT_STD_FLOOR)

        def conditioned(name: str, width: int) -> int:
            return width + (cond_size if name in self.cond_networks else 0)

        def of(name: str) -> Nonlinearity:
            return activation if isinstance(activation, str) else activation.get(name, "relu")

        def of_head(name: str, network: str) -> Nonlinearity:
            if isinstance(activation, Mapping) and name in activation:
                return activation[name]
            of_network = of(network)
            return of_network if isinstance(of_network, str) else "relu"

        def heads(prefix: str, inputs: int, outputs: int, pair: bool = True) -> None:
            if packed_heads:
                head(f"{prefix}_params", inputs, outputs * (1 + pair))
                return
            head(f"{prefix}_mean", inputs, outputs, sequence=not pair)
            if pair:
                head(f"{prefix}_std", inputs, outputs, sequence=True)

        def head(name: str, inputs: int, outputs: int, sequence: bool = False) -> None:
            widths = head_layers.get(name, ()) if isinstance(head_layers, Mapping) else head_layers
            hidden, width = _stack(inputs, widths, of_head(name, _NETWORKS[name.partition("_")[0]]))
            last = nn.Linear(width, outputs)
            setattr(self, name, nn.Sequential(*hidden, last) if sequence or widths else last)

        self.phi_x, x_size = _stack(input_size, phi_x, of("phi_x"))
        self.phi_z, z_size = _stack(latent_size, phi_z, of("phi_z"))
        self.enc, width = _stack(conditioned("encoder", x_size + hidden_size), encoder, of("encoder"))
        if latent_size:
            heads("enc", width, latent_size)
        widths = () if isinstance(prior, str) else prior
        self.prior, width = _stack(conditioned("prior", hidden_size), widths, of("prior"))
        if self.learned_prior:
            heads("prior", width, latent_size)
        self.dec, width = _stack(conditioned("decoder", z_size + hidden_size), decoder, of("decoder"))
        heads("dec", width, input_size, pair=self.gaussian)
        inputs = conditioned("cell", x_size + z_size)
        if nonlinearity == "identity":
            self.rnn: nn.Module = LinearCell(inputs, hidden_size, bias)
        else:
            options = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
            self.rnn = getattr(nn, cell.upper())(inputs, hidden_size, num_layers, bias=bias, **options)

    def heads(self, prefix: str, features: Tensor, pair: bool = True) -> tuple[Tensor, ...]:
        """Compute what the heads of a network give: a mean (or logits) and, of a pair, what a standard deviation is
        made of."""
        if self.packed_heads:
            raw: Tensor = getattr(self, f"{prefix}_params")(features)
            return raw.chunk(2, 1) if pair else (raw,)
        names = ("mean", "std") if pair else ("mean",)
        return tuple(getattr(self, f"{prefix}_{name}")(features) for name in names)

    def start(self, like: Tensor) -> State:
        """Return zeros (num_layers, B, H), for an LSTM twice, for sequences of (B, .) tensors such as ``like``."""
        zeros = like.new_zeros(self.num_layers, like.size(0), self.hidden_size)
        return (zeros, zeros) if self.lstm else zeros

    def recur(self, inputs: Tensor, state: State) -> State:
        """Run one step of the recurrent cell on inputs (B, .)."""
        following: State = self.rnn(inputs.unsqueeze(0), state)[1]
        return following

    def read(self, name: str, before: Sequence[Tensor], cond: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        """Put side by side what a network reads; the conditioning input (B, C), where it reads one, in between."""
        sources = (*before, *(cond if name in self.cond_networks else ()), *after)
        return torch.cat(sources, 1) if len(sources) > 1 else sources[0]

    def prior_of(self, h: Tensor, *cond: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation of z_t given h_{t-1} and a conditioning input (B, C), if there is one."""
        if not self.learned_prior:
            zeros = h.new_zeros(h.size(0), self.latent_size)
            return zeros, torch.ones_like(zeros)
        mean, raw = self.heads("prior", self.prior(self.read("prior", (), cond, (h,))))
        return mean, self.latent_std(raw)

    def decode(self, phi_z: Tensor, h: Tensor, *cond: Tensor) -> tuple[Tensor, ...]:
        """Compute the decoder's heads before any transform: logits, or a Gaussian's mean and what its deviation is made
        of."""
        return self.heads("dec", self.dec(self.read("decoder", (), cond, (phi_z, h))), self.gaussian)

    def advance(self, x: Tensor, eps: Tensor, state: State, *cond: Tensor) -> Advanced:
        """Compute all of a step on x (B, X), eps (B, Z) but for its losses."""
        h = (state[0] if isinstance(state, tuple) else state)[-1]
        phi_x = self.phi_x(x)
        prior_mean, prior_std = self.prior_of(h, *cond)
        mean, std = prior_mean, prior_std
        if self.latent_size:
            mean, raw = self.heads("enc", self.enc(self.read("encoder", (phi_x,), cond, (h,))))
            mean, std = prior_mean + mean if self.residual else mean, self.latent_std(raw)
        z = mean + std * eps
        phi_z = self.phi_z(z)
        raws = self.decode(phi_z, h, *cond)
        state = self.recur(self.read("cell", (phi_x, phi_z), cond, ()), state)
        return Advanced(z, mean, std, prior_mean, prior_std, raws, state)

    def step(self, x: Tensor, eps: Tensor, state: State, *cond: Tensor) -> tuple[Tensor, Tensor, State]:
        """Compute from x (B, X) and eps (B, Z) the KL and NLL summed over the batch, and the next state."""
        now = self.advance(x, eps, state, *cond)
        kl = 0.5 * torch.sum(twice_gaussian_kl(now.mean, now.std, now.prior_mean, now.prior_std))
        if self.gaussian:
            nll = torch.sum(gaussian_nll(now.raw[0], self.output_std(now.raw[1]), x))
        else:
            nll = F.binary_cross_entropy_with_logits(now.raw[0], x, reduction="sum")
        return kl, nll, now.state

    def loss(self, x: Tensor, eps: Tensor, cond: Tensor | None = None) -> Tensor:
        """Compute the negative evidence lower bound in nats per time step and sequence.

        x is (T, B, X), eps (T, B, Z), cond (T, B, C).
        """
        state = self.start(x[0])
        kl_sum, nll_sum = x.new_zeros(()), x.new_zeros(())
        for t in range(x.size(0)):
            kl, nll, state = self.step(x[t], eps[t], state, *(() if cond is None else (cond[t],)))
            kl_sum, nll_sum = kl_sum + kl, nll_sum + nll
        return (nll_sum + kl_sum) / (x.size(0) * x.size(1))

    def forward(
        self,
        x: Tensor,
        eps: Tensor,
        state: LayerStates | None = None,
        cond: Tensor | None = None,
        resets: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> EagerRun:
        """Compute all results of x (T, B, X) and eps (T, B, Z), every row at the full length."""
        held, steps = self.start(x[0]) if state is None else self._packed(state), []
        for t, (x_t, eps_t) in enumerate(zip(x, eps, strict=True)):
            if resets is not None:
                kept = (~resets[t]).to(x.dtype).unsqueeze(1)
                held = (held[0] * kept, held[1] * kept) if isinstance(held, tuple) else held * kept
            now = self.advance(x_t, eps_t, held, *(() if cond is None else (cond[t],)))
            if self.gaussian:
                nll = gaussian_nll(now.raw[0], self.output_std(now.raw[1]), x_t)
            else:
                nll = F.binary_cross_entropy_with_logits(now.raw[0], x_t, reduction="none")
            nll = (nll if mask is None else nll * mask[t]).sum(1)
            kl = 0.5 * twice_gaussian_kl(now.mean, now.std, now.prior_mean, now.prior_std).sum(1)
            steps.append((nll, kl, *now[:5], torch.cat(now.raw, 1)))
            held = now.state
        after = held if isinstance(held, tuple) else (held,)
        return EagerRun._make(
            (*map(torch.stack, zip(*steps, strict=True)), tuple(layer for part in after for layer in part))
        )

    def ragged(
        self, x: Tensor, eps: Tensor, lengths: Tensor, state: LayerStates, **optional: Tensor | None
    ) -> EagerRun:
        """Run row after row, each at its own length, then zeros: no mask can be wrong here."""
        steps, rows = x.shape[0], []
        for b, length in enumerate(lengths.tolist()):
            begin = tuple(s[b : b + 1] for s in state)
            if length == 0:
                widths = (self.latent_size,) * 5 + (x.shape[2] * (1 + self.gaussian),)
                zeros = [x.new_zeros(steps, 1), x.new_zeros(steps, 1), *(x.new_zeros(steps, 1, w) for w in widths)]
                rows.append(EagerRun._make((*zeros, begin)))
                continue
            own: dict[str, Any] = {n: None if o is None else o[:length, b : b + 1] for n, o in optional.items()}
            run = self(x[:length, b : b + 1], eps[:length, b : b + 1], begin, **own)
            padded = [torch.cat([f, f.new_zeros(steps - length, *f.shape[1:])]) for f in run[:-1]]
            rows.append(EagerRun._make((*padded, run.state)))
        after = tuple(torch.cat(s) for s in zip(*(row.state for row in rows), strict=True))
        return EagerRun._make((*(torch.cat(f, 1) for f in zip(*(row[:-1] for row in rows), strict=True)), after))

    def _packed(self, state: LayerStates) -> State:
        parts = [torch.stack(state[i : i + self.num_layers]) for i in range(0, len(state), self.num_layers)]
        return (parts[0], parts[1]) if self.lstm else parts[0]

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
            x, *raw = self.decode(phi_z, h)
            if self.gaussian:
                x = x + self.output_std(raw[0]) * (noise[1][t] if noise else torch.randn_like(x))
            elif noise:
                x = (noise[1][t] < torch.sigmoid(x)).to(x.dtype)
            else:
                x = torch.bernoulli(torch.sigmoid(x))
            state = self.recur(torch.cat([self.phi_x(x), phi_z], 1), state)
            samples.append(x)
        return torch.stack(samples), state


def twice_gaussian_kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """Compute 2 KL(N(mean, std²) || N(prior_mean, prior_std²)) in nats, of every feature."""
    return 2 * torch.log(prior_std) - 2 * torch.log(std) + (std**2 + (mean - prior_mean) ** 2) / prior_std**2 - 1


def gaussian_nll(mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
    """Compute -log N(x; mean, std²) in nats, of every feature."""
    return 0.5 * ((x - mean) / std) ** 2 + torch.log(std) + 0.5 * math.log(2 * math.pi)
