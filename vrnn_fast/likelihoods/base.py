"""What every likelihood offers, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from ..cell.spec import Fused, Std


class Likelihood:
    """p(x_t | z_<=t, x_<t) as a function of the decoder's raw output, with the names of ``torch.distributions``.

    Subclass it to bring your own: :meth:`heads` and :meth:`log_prob` are enough to train, :meth:`mean` to predict,
    :meth:`sample` to generate. Methods may be called with any leading dimensions, and log_prob with x of fewer (it
    broadcasts against raw).

    At padding, raw is zeros and x repeats a frame that is real, so whatever a likelihood sees is data; what it returns
    there is discarded. A likelihood with parameters of its own is a ``torch.nn.Module`` as well: the model then trains
    and saves them under ``likelihood.``.

    Examples:
        >>> class Laplace(Likelihood):
        ...     def log_prob(self, raw, x):
        ...         return torch.distributions.Laplace(raw, 1.0).log_prob(x).sum(-1)
        >>> VRNN(3, 16, 2, likelihood=Laplace())(x).nll.shape
        torch.Size([5, 4])
    """

    fused: ClassVar[Fused] = "external"
    independent: ClassVar[int] = 0  # see marginal_log_prob
    output_std: Std = Std(floor=0.0)  # of the fused Gaussian

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "log_prob" in cls.__dict__ and "fused" not in cls.__dict__:  # a new density is never the parent's fused one
            cls.fused = "external"

    @property
    def support(self) -> constraints.Constraint:
        """Where x may lie; ``VRNN(check_values=True)`` raises where it does not.

        Examples:
            >>> Bernoulli().support
            Interval(lower_bound=0.0, upper_bound=1.0)
        """
        return constraints.real

    def heads(self, features: int) -> dict[str, int]:
        """Return the decoder's linear heads for x of X = ``features``: their names and widths, which add up to R.

        ``raw`` holds them in this order. A name is an attribute of the module (``"dec_mean"``), or that and the place
        in a ``Sequential`` (``"dec_mean.0"``). Whoever cannot have that many features raises ValueError.

        Examples:
            >>> Gaussian().heads(3)
            {'dec_mean': 3, 'dec_std.0': 3}
        """
        return {"dec_mean": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Compute the log-density or log-probability of x in nats, summed over features: (..., R), (..., X) -> (...).

        Outside of their :attr:`support` the likelihoods of this package give -inf, but for Bernoulli and the pen of
        Handwriting, whose formula goes on.

        Examples:
            >>> Gaussian().log_prob(torch.zeros(5, 4, 6), x).shape
            torch.Size([5, 4])
        """
        raise NotImplementedError(f"{type(self).__name__} does not define log_prob(raw, x)")

    @property
    def takes_mask(self) -> bool:
        """Whether :meth:`marginal_log_prob` is known.

        Examples:
            >>> Gaussian().takes_mask
            True
        """
        return self.independent > 0 or type(self).marginal_log_prob is not Likelihood.marginal_log_prob

    def marginal_log_prob(self, raw: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """Compute :meth:`log_prob` of the features that ``observed`` (..., X) marks, bool, all others integrated out.

        It is known where features are independent and the class says so: ``independent`` is the number of its heads,
        each as many values for every feature, those of the first feature first. Otherwise the class defines it.

        Examples:
            >>> Bernoulli().marginal_log_prob(torch.zeros(3), torch.ones(3), torch.tensor([True, False, False]))
            tensor(-0.6931)
        """
        if not self.independent:
            raise NotImplementedError(f"{type(self).__name__} does not define marginal_log_prob(raw, x, observed)")
        return torch.where(observed, self.log_prob_of_each(raw, torch.where(observed, x, 0)), 0).sum(-1)

    def log_prob_of_each(self, raw: Tensor, x: Tensor) -> Tensor:
        """Compute the log-density or log-probability of every feature on its own, all others integrated out: (..., R),
        (..., X) -> (..., X). Known where :meth:`marginal_log_prob` is.

        Examples:
            >>> Gaussian().log_prob_of_each(torch.zeros(5, 4, 6), x).shape
            torch.Size([5, 4, 3])
        """
        if self.independent:
            each = raw.unflatten(-1, (self.independent, x.shape[-1], -1)).transpose(-3, -2).flatten(-2)
            return self.log_prob(each, x.unsqueeze(-1))
        alone = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
        return torch.stack([self.marginal_log_prob(raw, x, observed) for observed in alone], -1)

    def prediction(self, raw: Tensor) -> Any:
        """Return the distribution's parameters, a tensor or a tuple of tensors; :meth:`mean` unless overridden.

        Examples:
            >>> Gaussian().prediction(torch.zeros(6)).mean
            tensor([0., 0., 0.])
        """
        return self.mean(raw)

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw x, (..., R) -> (..., X), its spread scaled by ``temperature``.

        Examples:
            >>> Gaussian().sample(torch.zeros(5, 4, 6)).shape
            torch.Size([5, 4, 3])
        """
        raise NotImplementedError(f"{type(self).__name__} does not define sample(raw, temperature, generator)")

    def mean(self, raw: Tensor) -> Tensor:
        """Compute the expected x, (..., R) -> (..., X).

        Examples:
            >>> Bernoulli().mean(torch.zeros(3))
            tensor([0.5000, 0.5000, 0.5000])
        """
        raise NotImplementedError(f"{type(self).__name__} does not define mean(raw)")


def decoder_heads(likelihood: Likelihood, features: int) -> tuple[tuple[str, int], ...]:
    """Return the likelihood's decoder heads, names and widths, fit to be attributes of the module.

    Raises:
        TypeError, ValueError: its :meth:`Likelihood.heads` gives something else.
    """
    if not callable(likelihood.heads):
        raise TypeError(f"likelihood.heads must be a method, heads(features), got {likelihood.heads!r}")
    heads = likelihood.heads(features)
    if not isinstance(heads, Mapping):
        raise TypeError(f"likelihood.heads(features) must return a mapping of names to widths, got {heads!r}")
    owners = [head.partition(".")[0] if isinstance(head, str) else "" for head in heads]
    good = all(
        o.startswith("dec_") and o.isidentifier() and h in (o, f"{o}.0") for o, h in zip(owners, heads, strict=True)
    )
    if not heads or not good or len(set(owners)) != len(owners):
        names = tuple(heads)
        raise ValueError(f"likelihood.heads must be distinct names such as 'dec_mean' or 'dec_std.0', got {names!r}")
    return tuple(heads.items())


def softplus(raw: Tensor) -> Tensor:
    """Compute log(1 + exp(raw)), exact to rounding in float64 as well (torch's default turns linear at 20 already)."""
    return F.softplus(raw, threshold=40.0)


def standard_deviation(std: Std, raw: Tensor) -> Tensor:
    """Compute the standard deviation that a raw output stands for, of the same shape."""
    if not std.plain:
        u = raw.clamp(*std.clamp) + std.offset
        if std.kind == "softplus":
            s = softplus(std.sharpness * u) / std.sharpness
        else:
            s = torch.exp(0.5 * u if std.kind == "log_variance" else u)
        return (s + std.floor).clamp(min=std.min_std)
    return softplus(raw) + std.floor


def feature_count(raw: Tensor, x: Tensor | None = None, *, each: int, shared: int = 0) -> int:
    """Find X of a raw output that is each * X + shared wide.

    Raises:
        ValueError: raw has no such width, or x is not X wide.
    """
    found, rest = divmod(raw.shape[-1] - shared, each)
    if rest or found < 1:
        expected = f"{each} X" + (f" + {shared}" if shared else "")
        raise ValueError(f"raw must have {expected} values in its last dimension, got shape {tuple(raw.shape)}")
    if x is not None and x.shape[-1] != found:
        raise ValueError(f"x must have X = {found} features as raw has, got shape {tuple(x.shape)}")
    return found


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw noise of the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
