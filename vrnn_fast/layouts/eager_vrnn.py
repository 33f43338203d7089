"""The most copied PyTorch VRNN: x (T, B, X), sums over everything and lists of per-step tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cell.spec import Std
from ..likelihoods import MeanStd
from . import losses
from .base import Deviation, Layout, Outcome, Run, Sampler, holds, std_of, steps_of
from .losses import EPS
from .modules import class_after, parameter_shapes
from .sampling import Player
from .structure import LayoutError, Roles, Shapes, Structure, chain

_LOGVAR = Std("log_variance", floor=0.0)
_KL = Deviation(f"its KL adds {EPS:.3g} to the standard deviations inside the logarithms only, and may be negative")


@dataclass(frozen=True)
class _Copied(Outcome):
    """``eps`` is the constant inside its logarithms, ``floor`` that of the ones that have none in some copies."""

    eps: float
    floor: float

    @property
    def quantities(self) -> Mapping[str, str]:
        return {"output[0]": "the KL", "output[1]": "the negative log-likelihood"}

    def output(self, run: Run, fix: frozenset[str]) -> Any:
        raw, raw_std = run.heads
        mean, std = self.mean(raw), std_of(raw_std)
        return (
            self.kl(run, fix),
            self.nll(raw, mean, std, run.x, fix),
            (steps_of(run.mean), steps_of(run.std)),
            (steps_of(mean), steps_of(std)),
        )

    def kl(self, run: Run, fix: frozenset[str]) -> Tensor:
        """Compute the KL of everything, in nats."""
        q, p = MeanStd(run.mean, run.std), MeanStd(run.prior_mean, run.prior_std)
        return losses.kl(q, p, 0.0 if "kl" in fix else self.eps).sum()

    def mean(self, raw: Tensor) -> Tensor:
        raise NotImplementedError

    def nll(self, raw: Tensor, mean: Tensor, std: Tensor, x: Tensor, fix: frozenset[str]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class CopiedBernoulli(_Copied):
    @property
    def deviations(self) -> Mapping[str, Deviation]:
        return {
            "nan": Deviation("its negative log-likelihood is NaN from logit 16 on", no_number=True),
            "nll": Deviation(
                f"its negative log-likelihood has {EPS:.3g} inside the logarithms, on the wrong side of one"
            ),
            "kl": _KL,
        }

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw)

    def nll(self, raw: Tensor, mean: Tensor, std: Tensor, x: Tensor, fix: frozenset[str]) -> Tensor:
        if "nll" in fix:
            return losses.bernoulli(raw, x).sum()
        return losses.bernoulli_with_eps(raw, mean, x, self.eps, self.floor).sum()


@dataclass(frozen=True)
class CopiedGaussian(_Copied):
    @property
    def deviations(self) -> Mapping[str, Deviation]:
        return {
            "type": Deviation(
                "its negative log-likelihood raises a TypeError, taking torch.log of a number", no_number=True
            ),
            "nll": Deviation(f"its negative log-likelihood has {EPS:.3g} inside its logarithm"),
            "kl": _KL,
        }

    def repaired(self) -> AbstractContextManager[None]:
        return _logarithms_of_numbers()

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def nll(self, raw: Tensor, mean: Tensor, std: Tensor, x: Tensor, fix: frozenset[str]) -> Tensor:
        return losses.gaussian(mean, std, x, 0.0 if "nll" in fix else self.floor).sum()


@contextmanager
def _logarithms_of_numbers() -> Iterator[None]:
    """Let ``torch.log`` take a number too, as the original means it, in this thread alone.

    The call fails before it asks for any mode of torch. So the function itself is another one meanwhile, which does in
    other threads what it did. Proofs run one at a time: nobody else puts one in its place.
    """
    log, thread = torch.log, threading.get_ident()

    def of_numbers(value: Any, **out: Any) -> Tensor:
        return log(torch.as_tensor(value) if threading.get_ident() == thread else value, **out)

    torch.log = of_numbers  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.log = log


@dataclass(frozen=True)
class Copied(Layout):
    """With two heads of the decoder and standard deviations it computes what the original does, else what is found."""

    def variant(self, shapes: Shapes) -> Layout:
        """Take ``*_logvar`` for log variances, and the last layer of ``dec`` where the mean has no head of its own."""
        mean, *deviations = self.roles.decoder_heads

        def named(path: str) -> str:
            other = path.replace("_std", "_logvar")
            return other if holds(shapes, other) and not holds(shapes, path) else path

        heads = (mean, *map(named, deviations))
        if not holds(shapes, mean):
            heads = chain(shapes, self.roles.decoder)[-1:] or heads
        posterior, prior = named(self.roles.encoder_std), named(self.roles.prior_std)
        std = _LOGVAR if posterior != self.roles.encoder_std else self.traits.std
        return replace(
            self,
            roles=replace(self.roles, encoder_std=posterior, prior_std=prior, decoder_heads=heads),
            optional=(*self.optional, *heads[1:]),
            traits=replace(self.traits, std=std),
        )

    def refined(self, model: nn.Module) -> Layout:
        """Take a log variance by name for a standard deviation where what follows it makes it one."""
        last = chain(parameter_shapes(model), self.roles.encoder_std)[-1:]
        if self.traits.std == _LOGVAR and last and class_after(model, last[0]) is nn.Softplus:
            return replace(self, traits=replace(self.traits, std=Std(floor=0.0)))
        return self

    def outcomes(self, model: nn.Module, structure: Structure) -> Iterator[Outcome]:
        if len(structure.heads) != 2 or structure.spec.std == _LOGVAR:
            return
        bernoulli = class_after(model, structure.heads[0]) is nn.Sigmoid
        own = getattr(type(model).forward, "__globals__", {}).get("EPS")
        for eps in dict.fromkeys((own if isinstance(own, float) else EPS, EPS, 1.19e-7)):
            for floor in (eps, 0.0):
                yield (CopiedBernoulli if bernoulli else CopiedGaussian)(eps, floor)

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        head = self.roles.encoder_std
        if self.traits.std == _LOGVAR and "std" not in given and f"{head}.weight" not in structure.names:
            raise LayoutError(
                f"{self}: names and shapes do not tell whether {head} gives log variances: pass "
                "std=Std('log_variance', floor=0.0), or Std(floor=0.0) if a Softplus follows it"
            )
        deviations = [path.endswith("_logvar") for path in self.roles.decoder_heads[1:]]
        return self.output_likelihood(structure, given, _LOGVAR if any(deviations) else Std(floor=0.0))


def sample(self: Any, seq_len: int) -> Tensor:
    """Draw one sequence (seq_len, X) of the decoder's means, each fed back."""
    heads = self._recipe.structures[0].heads
    bernoulli = class_after(self, heads[0]) is nn.Sigmoid
    player = Player(self, "bernoulli" if bernoulli else "gaussian", 1 if bernoulli else 2)
    eps = torch.cat([*(player.noise(1, player.spec.latent_size)[0] for _ in range(seq_len))])
    noise = eps.new_zeros((seq_len, 1, player.spec.input_size))
    return player.play(eps, noise, player.zeros(1), mean=True)[0].squeeze(1)


def _examples(features: int) -> tuple[tuple[Any, ...], ...]:
    return (1,), (4,)


LAYOUT = Copied(
    "eager-vrnn",
    "the most copied PyTorch VRNN",
    Roles(),
    ("dec_std",),
    sampler=Sampler("sample", _examples, sample),
)
