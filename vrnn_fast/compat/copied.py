"""E, the most copied PyTorch VRNN: x (T, B, X), sums over everything and lists of per-step tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..executors.reference import kl_divergence
from ..likelihoods import MeanStd, bernoulli_log_prob
from .base import Fault, Layout, Objective, Run, std_of, steps_of
from .reading import LayoutError, Roles, Structure
from .tree import follows

EPS = torch.finfo(torch.float32).eps  # inside of its logarithms; also in double precision

_KL = Fault(f"its KL adds {EPS:.3g} to the standard deviations inside the logarithms only, and may be negative")


@dataclass(frozen=True)
class _Copied(Objective):
    """``eps`` is the constant inside its logarithms, ``floor`` that of the ones that have none in some copies."""

    eps: float
    floor: float

    def output(self, run: Run, mend: frozenset[str]) -> Any:
        raw, raw_std = run.heads
        mean, std = self.mean(raw), std_of(raw_std)
        return (
            self.kl(run, mend),
            self.nll(raw, mean, std, run.x, mend),
            (steps_of(run.mean), steps_of(run.std)),
            (steps_of(mean), steps_of(std)),
        )

    def kl(self, run: Run, mend: frozenset[str]) -> Tensor:
        """Of everything, in nats."""
        if "kl" in mend:
            return kl_divergence(MeanStd(run.mean, run.std), MeanStd(run.prior_mean, run.prior_std)).sum()
        logs = 2 * torch.log(run.prior_std + self.eps) - 2 * torch.log(run.std + self.eps)
        squares = (run.std.square() + (run.mean - run.prior_mean).square()) / run.prior_std.square()
        return 0.5 * (logs + squares - 1).sum()

    def mean(self, raw: Tensor) -> Tensor:
        raise NotImplementedError

    def nll(self, raw: Tensor, mean: Tensor, std: Tensor, x: Tensor, mend: frozenset[str]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class CopiedBernoulli(_Copied):
    faults: ClassVar[Mapping[str, Fault]] = {
        "nan": Fault("its negative log-likelihood is NaN from logit 16 on", no_number=True),
        "nll": Fault(f"its negative log-likelihood has {EPS:.3g} inside the logarithms, on the wrong side of one"),
        "kl": _KL,
    }

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw)

    def nll(self, raw: Tensor, mean: Tensor, std: Tensor, x: Tensor, mend: frozenset[str]) -> Tensor:
        if "nll" in mend:
            return -bernoulli_log_prob(raw, x).sum()
        rest = 1 - mean - self.eps
        good = rest > 0  # the original has a number just there
        log_rest = torch.where(good, torch.log(torch.where(good, rest, 1)), F.logsigmoid(-raw))
        present = mean + self.floor > 0
        log_mean = torch.where(present, torch.log(torch.where(present, mean + self.floor, 1)), F.logsigmoid(raw))
        return -(x * log_mean + (1 - x) * log_rest).sum()


@dataclass(frozen=True)
class CopiedGaussian(_Copied):
    faults: ClassVar[Mapping[str, Fault]] = {
        "type": Fault("its negative log-likelihood raises a TypeError, taking torch.log of a number", no_number=True),
        "nll": Fault(f"its negative log-likelihood has {EPS:.3g} inside a logarithm, and a density without bound"),
        "kl": _KL,
    }

    def example(self, spec: Any, steps: int, batch: int) -> Tensor:
        return torch.randn(steps, batch, spec.input_size)

    def repaired(self) -> AbstractContextManager[None]:
        return _logarithms_of_numbers()

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def nll(self, raw: Tensor, mean: Tensor, std: Tensor, x: Tensor, mend: frozenset[str]) -> Tensor:
        floor = 0.0 if "nll" in mend else self.floor
        return (torch.log(std + floor) + 0.5 * math.log(2 * math.pi) + (x - mean).square() / (2 * std.square())).sum()


@contextmanager
def _logarithms_of_numbers() -> Iterator[None]:
    """``torch.log`` also of a number, as the original means it."""
    log = torch.log
    torch.log = lambda value, **out: log(torch.as_tensor(value), **out)
    try:
        yield
    finally:
        torch.log = log


@dataclass(frozen=True)
class Copied(Layout):
    def objectives(self, model: nn.Module, structure: Structure) -> Iterator[Objective]:
        if len(structure.heads) != 2:
            raise LayoutError(f"{self} returns two lists of the decoder, found the heads {', '.join(structure.heads)}")
        bernoulli = follows(model, structure.heads[0]) is nn.Sigmoid
        own = getattr(type(model).forward, "__globals__", {}).get("EPS")
        for eps in dict.fromkeys((own if isinstance(own, float) else EPS, EPS, 1.19e-7)):
            for floor in (eps, 0.0):
                yield (CopiedBernoulli if bernoulli else CopiedGaussian)(eps, floor)

    def arguments(self, structure: Structure) -> dict[str, Any]:
        return {"likelihood": "bernoulli" if structure.heads[0].endswith(".0") else "gaussian"}


LAYOUT = Copied("E", "the most copied PyTorch VRNN", Roles(), ("dec_std",))
