"""What the decoder's raw output means: the negative log-likelihood of x_t, a prediction, a sample.

``raw`` is always the decoder's heads side by side, (..., R), before any transform. Bernoulli and Gaussian are computed
inside a fused launch; any other :class:`Likelihood` receives the raw output that the launch returns.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import Fused


class MeanStd(NamedTuple):
    """A diagonal Gaussian: mean and standard deviation, of equal shape."""

    mean: Tensor
    std: Tensor


def softplus(raw: Tensor) -> Tensor:
    """log(1 + exp(raw)), exact to rounding in float64 as well (torch's default turns linear at 20 already)."""
    return F.softplus(raw, threshold=40.0)


def bernoulli_nll(raw: Tensor, x: Tensor) -> Tensor:
    """-log Bernoulli(x; sigmoid(raw)) in nats, summed over features: (..., X) -> (...). Finite for finite logits."""
    return -(x * F.logsigmoid(raw) + (1 - x) * F.logsigmoid(-raw)).sum(-1)


def gaussian_nll(raw: Tensor, x: Tensor, min_std: float) -> Tensor:
    """-log N(x; mean, std²) in nats, summed over features: (..., 2X), (..., X) -> (...)."""
    mean, std = gaussian_parameters(raw, min_std)
    return (0.5 * ((x - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_parameters(raw: Tensor, min_std: float) -> MeanStd:
    """Split [mean | raw std] along the last dimension; std = softplus(raw std) + min_std."""
    mean, raw_std = raw.chunk(2, dim=-1)
    return MeanStd(mean, softplus(raw_std) + min_std)


class Likelihood:
    """p(x_t | z_<=t, x_<t) as a function of the decoder's raw output. Subclass it to bring your own.

    Methods see padding as zeros in both ``raw`` and ``x``, and must be finite there, gradients included; what they
    return at padding is discarded. They may be called with any leading dimensions. A likelihood with parameters of
    its own is a ``torch.nn.Module`` as well: the model then trains and saves them under ``likelihood.``.
    """

    fused: ClassVar[Fused] = "external"
    min_std: float = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "nll" in cls.__dict__ and "fused" not in cls.__dict__:  # a new density is never the parent's fused one
            cls.fused = "external"

    def heads(self, features: int) -> dict[str, int]:
        """The decoder's linear heads for x of X = ``features``: their names and widths, which add up to R.

        ``raw`` holds them in this order. A name is an attribute of the module (``"dec_mean"``), or that and the place
        in a ``Sequential`` (``"dec_mean.0"``). Whoever cannot have that many features raises ValueError.
        """
        return {"dec_mean": features}

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        """Negative log-likelihood in nats, summed over features: (..., R), (..., X) -> (...)."""
        raise NotImplementedError(f"{type(self).__name__} does not define nll(raw, x)")

    def prediction(self, raw: Tensor) -> Any:
        """The distribution's parameters, a tensor or a tuple of tensors; :meth:`mean` unless overridden."""
        return self.mean(raw)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw x, (..., R) -> (..., X), its spread scaled by ``temperature``."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample(raw, temperature, generator)")

    def mean(self, raw: Tensor) -> Tensor:
        """The expected x, (..., R) -> (..., X)."""
        raise NotImplementedError(f"{type(self).__name__} does not define mean(raw)")


class Bernoulli(Likelihood):
    """Independent binary features; raw holds logits. x in [0, 1] is taken as it comes (as in cross-entropy)."""

    fused = "bernoulli"

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean.0": features}

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return bernoulli_nll(raw, x)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """0 or 1 with probability sigmoid(raw / temperature)."""
        return torch.bernoulli(torch.sigmoid(raw / temperature), generator=generator)

    def mean(self, raw: Tensor) -> Tensor:
        """The probabilities, sigmoid(raw)."""
        return torch.sigmoid(raw)

    def __repr__(self) -> str:
        return "Bernoulli()"


class Gaussian(Likelihood):
    """Independent Gaussian features, std = softplus(raw std) + ``min_std``.

    The floor is in the units of x. It bounds the density of data that the model could reproduce exactly, where a
    free standard deviation would run to zero and the bound to infinity.
    """

    fused = "gaussian"

    def __init__(self, min_std: float = 1e-3) -> None:
        if not (isinstance(min_std, (int, float)) and math.isfinite(min_std) and min_std > 0):
            raise ValueError(f"min_std must be a positive number, got {min_std!r}")
        self.min_std = float(min_std)

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_mean": features, "dec_std.0": features}

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return gaussian_nll(raw, x, self.min_std)

    def prediction(self, raw: Tensor) -> MeanStd:
        return gaussian_parameters(raw, self.min_std)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """mean + temperature * std * noise."""
        mean, std = gaussian_parameters(raw, self.min_std)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + temperature * std * noise

    def mean(self, raw: Tensor) -> Tensor:
        return gaussian_parameters(raw, self.min_std).mean

    def __repr__(self) -> str:
        return f"Gaussian(min_std={self.min_std})"


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """``"bernoulli"``, ``"gaussian"`` or an object of the user's own.

    Raises:
        ValueError: an unknown name. TypeError: neither a name nor a :class:`Likelihood`.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(f"likelihood must be 'bernoulli', 'gaussian' or a Likelihood object, got {likelihood!r}")
    if likelihood == "bernoulli":
        return Bernoulli()
    if likelihood == "gaussian":
        return Gaussian()
    raise ValueError(f"likelihood must be 'bernoulli', 'gaussian' or a Likelihood object, got {likelihood!r}")
