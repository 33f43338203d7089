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


NETWORKS = {"enc": "encoder", "prior": "prior", "dec": "decoder"}
PLACES = ("encoder", "prior", "decoder", "cell")


class EagerRun(NamedTuple):
    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: Tensor
    state: tuple[Tensor, ...]


Activation = str | tuple[str, ...]  # of all layers, or of each


def _stack(size: int, widths: tuple[int, ...], activation: Activation) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        layers += [nn.Linear(size, width), ACTIVATIONS[activation if isinstance(activation, str) else activation[i]]()]
        size = width
    return nn.Sequential(*layers), size


class LinearCell(nn.Module):
    """One layer of torch.nn.RNN without its nonlinearity, for one step."""

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
        num_layers: int = 1,
        bias: bool = True,
        phi_x: tuple[int, ...] = (),
        phi_z: tuple[int, ...] = (),
        encoder: tuple[int, ...] = (),
        prior: tuple[int, ...] | str = (),
        decoder: tuple[int, ...] = (),
        head_layers: tuple[int, ...] | dict[str, tuple[int, ...]] = (),
        packed_heads: bool = False,
        activation: str | dict[str, Activation] = "relu",
        residual: bool = False,
        nonlinearity: str = "tanh",
        likelihood: str = "bernoulli",
        min_std: float = 1e-3,
        latent_floor: float = 1e-6,
        latent_std: Callable[[Tensor], Tensor] | None = None,
        output_std: Callable[[Tensor], Tensor] | None = None,
        cond_size: int = 0,
        cond_networks: tuple[str, ...] = ("encoder", "prior", "decoder"),
    ) -> None:
        super().__init__()
        self.cell, self.likelihood, self.layers = cell, likelihood, num_layers
        self.h, self.z, self.residual, self.packed_heads = h, z, residual, packed_heads
        self.cond_networks = cond_networks if cond_size else ()
        softplus = nn.Softplus(threshold=100)
        self.latent_std = latent_std or (lambda raw: softplus(raw) + latent_floor)
        self.output_std = output_std or (lambda raw: softplus(raw) + min_std)

        def conditioned(name: str, width: int) -> int:
            return width + (cond_size if name in self.cond_networks else 0)

        def own(name: str) -> Activation:
            return activation if isinstance(activation, str) else activation.get(name, "relu")

        def own_of_head(name: str, network: str) -> Activation:
            if isinstance(activation, dict) and name in activation:
                return activation[name]
            of_network = own(network)
            return of_network if isinstance(of_network, str) else "relu"

        def heads(prefix: str, inputs: int, outputs: int, pair: bool = True) -> None:
            """Modules by the names of the package, and where they are found by what they give."""
            if packed_heads:
                head(f"{prefix}_params", inputs, outputs * (1 + pair))
                return
            head(f"{prefix}_mean", inputs, outputs, sequence=not pair)
            if pair:
                head(f"{prefix}_std", inputs, outputs, sequence=True)

        def head(name: str, inputs: int, outputs: int, sequence: bool = False) -> None:
            widths = head_layers.get(name, ()) if isinstance(head_layers, dict) else head_layers
            hidden, width = _stack(inputs, widths, own_of_head(name, NETWORKS[name.partition("_")[0]]))
            last = nn.Linear(width, outputs)
            setattr(self, name, nn.Sequential(*hidden, last) if sequence or widths else last)

        self.phi_x, fx = _stack(x, phi_x, own("phi_x"))
        self.phi_z, fz = _stack(z, phi_z, own("phi_z"))
        self.enc, e = _stack(conditioned("encoder", fx + h), encoder, own("encoder"))
        self.learned_prior = z > 0 and not isinstance(prior, str)
        self.prior, p = _stack(conditioned("prior", h), () if isinstance(prior, str) else prior, own("prior"))
        if z:
            heads("enc", e, z)
        if self.learned_prior:
            heads("prior", p, z)
        self.dec, d = _stack(conditioned("decoder", fz + h), decoder, own("decoder"))
        heads("dec", d, x, pair=likelihood == "gaussian")
        inputs = conditioned("cell", fx + fz)
        if nonlinearity == "identity":
            self.rnn: nn.Module = LinearCell(inputs, h, bias)
        else:
            of_rnn = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
            self.rnn = getattr(nn, cell.upper())(inputs, h, num_layers, bias=bias, **of_rnn)

    def head(self, prefix: str, features: Tensor) -> Tensor:
        """What the heads of a network give, side by side."""
        names = ("params",) if self.packed_heads else ("mean", "std")
        return torch.cat([getattr(self, f"{prefix}_{n}")(features) for n in names if hasattr(self, f"{prefix}_{n}")], 1)

    def forward(
        self,
        x: Tensor,
        eps: Tensor,
        state: tuple[Tensor, ...] | None = None,
        cond: Tensor | None = None,
        resets: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> EagerRun:
        """x (T, B, X), eps (T, B, Z), state of (B, H) tensors: every row at the full length."""
        batch = x.shape[1]
        if state is None:
            state = tuple(x.new_zeros(batch, self.h) for _ in range(self.layers * (2 if self.cell == "lstm" else 1)))
        steps = []
        for t, (x_t, eps_t) in enumerate(zip(x, eps, strict=True)):
            if resets is not None:
                state = tuple(torch.stack([row * (not r) for row, r in zip(s, resets[t], strict=True)]) for s in state)
            with_cond = {name: [cond[t]] if cond is not None and name in self.cond_networks else [] for name in PLACES}
            h = state[self.layers - 1]
            fx = self.phi_x(x_t)
            p = Normal(x.new_zeros(batch, self.z), x.new_ones(batch, self.z))
            if self.learned_prior:
                mean, raw = self.head("prior", self.prior(torch.cat([*with_cond["prior"], h], 1))).chunk(2, 1)
                p = Normal(mean, self.latent_std(raw))
            q = p
            if self.z:
                e = self.enc(torch.cat([fx, *with_cond["encoder"], h], 1))
                mean, raw = self.head("enc", e).chunk(2, 1)
                q = Normal(mean + (p.loc if self.residual else 0), self.latent_std(raw))
            z = q.loc + q.scale * eps_t
            fz = self.phi_z(z)
            out = self.head("dec", self.dec(torch.cat([*with_cond["decoder"], fz, h], 1)))
            if self.likelihood == "bernoulli":
                log_density = Bernoulli(logits=out).log_prob(x_t)
            else:
                mean, raw = out.chunk(2, 1)
                log_density = Normal(mean, self.output_std(raw)).log_prob(x_t)
            if mask is not None:
                log_density = log_density * mask[t]
            kl = kl_divergence(q, p).sum(1)
            steps.append((-log_density.sum(1), kl, z, q.loc, q.scale, p.loc, p.scale, out))
            packed = tuple(torch.stack(state[i : i + self.layers]) for i in range(0, len(state), self.layers))
            entered = torch.cat([fx, fz, *with_cond["cell"]], 1).unsqueeze(0)
            _, after = self.rnn(entered, packed if self.cell == "lstm" else packed[0])
            state = tuple(h for part in (after if self.cell == "lstm" else (after,)) for h in part)
        return EagerRun(*(torch.stack(tensors) for tensors in zip(*steps, strict=True)), state)

    def ragged(
        self, x: Tensor, eps: Tensor, lengths: Tensor, state: tuple[Tensor, ...], **optional: Tensor | None
    ) -> EagerRun:
        """Row after row, each at its own length, then zeros."""
        steps, rows = x.shape[0], []
        for b, length in enumerate(lengths.tolist()):
            start = tuple(s[b : b + 1] for s in state)
            if length == 0:
                widths = (self.z,) * 5 + (self.dec_width(x.shape[2]),)
                zeros = [x.new_zeros(steps, 1), x.new_zeros(steps, 1), *(x.new_zeros(steps, 1, w) for w in widths)]
                rows.append(EagerRun(*zeros, start))
                continue
            own = {name: None if o is None else o[:length, b : b + 1] for name, o in optional.items()}
            run = self(x[:length, b : b + 1], eps[:length, b : b + 1], start, **own)
            padded = [torch.cat([f, f.new_zeros(steps - length, *f.shape[1:])]) for f in run[:-1]]
            rows.append(EagerRun(*padded, run.state))
        state = tuple(torch.cat(s) for s in zip(*(row.state for row in rows), strict=True))
        return EagerRun(*(torch.cat(f, 1) for f in zip(*(row[:-1] for row in rows), strict=True)), state)

    def dec_width(self, x: int) -> int:
        return x if self.likelihood == "bernoulli" else 2 * x
