"""What a forward may return, before any reduction: features and losses of a run, (T, B, features) each, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import losses
from ..layouts.base import Run
from ..layouts.losses import EPS
from ..likelihoods import MeanStd

Quantity = Callable[[Run], Tensor]

BERNOULLI, OF_THETA = "bernoulli", "bernoulli of log(1 - theta)"


def _q(run: Run) -> MeanStd:
    return MeanStd(run.mean, run.std)


def _p(run: Run) -> MeanStd:
    return MeanStd(run.prior_mean, run.prior_std)


def _features(heads: int) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {
        "mean": lambda run: run.mean,
        "std": lambda run: run.std,
        "prior_mean": lambda run: run.prior_mean,
        "prior_std": lambda run: run.prior_std,
        "z": lambda run: run.z,
        "x": lambda run: run.x,
        "log_variance": lambda run: 2 * torch.log(run.std),
        "prior_log_variance": lambda run: 2 * torch.log(run.prior_std),
        "variance": lambda run: run.std.square(),
        "prior_variance": lambda run: run.prior_std.square(),
    }
    for i in range(heads):
        for name, transform in _TRANSFORMS.items():
            found[f"{name} of head {i}"] = lambda run, i=i, transform=transform: transform(run.heads[i])  # type: ignore[misc]
    return found


_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "the output": lambda raw: raw,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "exp half": lambda raw: torch.exp(raw / 2),
}

_KL: dict[str, Quantity] = {
    "kl": lambda run: losses.kl(_q(run), _p(run)),
    "kl with eps": lambda run: losses.kl(_q(run), _p(run), EPS),
    "kl reversed": lambda run: losses.kl(_p(run), _q(run)),
    "kl reversed with eps": lambda run: losses.kl(_p(run), _q(run), EPS),
    "kl without its -1": lambda run: losses.kl(_q(run), _p(run)) + 0.5,
}


def _bernoulli_with_eps(run: Run, eps: float, floor: float) -> Tensor:
    return losses.bernoulli_with_eps(run.heads[0], torch.sigmoid(run.heads[0]), run.x, eps, floor)


def _gaussian(run: Run, mean: str, std: str, eps: float, constant: float) -> Tensor:
    return losses.gaussian(_TRANSFORMS[mean](run.heads[0]), _TRANSFORMS[std](run.heads[1]), run.x, eps) - constant


def _nll(heads: int) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {
        "bernoulli": lambda run: losses.bernoulli(run.heads[0], run.x),
        "bernoulli with eps": partial(_bernoulli_with_eps, eps=EPS, floor=EPS),
        "bernoulli with one eps": partial(_bernoulli_with_eps, eps=EPS, floor=0.0),
        "squared error": lambda run: (run.x - run.heads[0]).square(),
        "squared error of sigmoid": lambda run: (run.x - torch.sigmoid(run.heads[0])).square(),
        "itakura-saito": lambda run: run.x / run.heads[0].exp() - (run.x.log() - run.heads[0]) - 1,
    }
    if heads > 1:
        for mean, std in itertools.product(("the output", "sigmoid"), ("softplus", "exp", "exp half")):
            for eps, constant in itertools.product((0.0, EPS), (0.0, losses.HALF_LOG_TWO_PI)):
                name = f"gaussian of {mean}, {std}{' with eps' * (eps > 0)}{' without its constant' * (constant > 0)}"
                found[name] = partial(_gaussian, mean=mean, std=std, eps=eps, constant=constant)
    return found


THETA = {f"bernoulli of theta within {bound:g}": bound for bound in (1e-5, 1e-6, 1e-7, EPS, 1e-8)}


def _within(run: Run, bound: float) -> Tensor:
    theta = torch.sigmoid(run.heads[0]).clamp(bound, 1 - bound)
    return -(run.x * torch.log(theta) + (1 - run.x) * torch.log(1 - theta))


SATURATED: dict[str, Quantity] = {
    BERNOULLI: lambda run: losses.bernoulli(run.heads[0], run.x),
    OF_THETA: partial(_bernoulli_with_eps, eps=0.0, floor=0.0),
    "bernoulli up to 100": lambda run: F.binary_cross_entropy(torch.sigmoid(run.heads[0]), run.x, reduction="none"),
    **{name: partial(_within, bound=bound) for name, bound in THETA.items()},
}
"""Which the same logits give, unless they are so large that theta is 0 or 1."""


@dataclass(frozen=True)
class Vocabulary:
    """All quantities of a model with so many decoder heads, ``like_x`` if each is as wide as x."""

    heads: int
    like_x: bool

    def features(self) -> dict[str, Quantity]:
        return _features(self.heads)

    def losses(self) -> dict[str, Quantity]:
        return _KL | (_nll(self.heads) if self.like_x else {})

    def __getitem__(self, name: str) -> Quantity:
        return (self.features() | self.losses() | SATURATED)[name]
