"""Lower bounds of log p(x) from weighted samples of z.

With w_t = p(x_t | z_<=t, x_<t) p(z_t | h_{t-1}) / q(z_t | x_t, h_{t-1}) at samples z of q, N of them (particles) for
each sequence::

    ELBO   mean over particles of the sum over t of log w_t
    IWAE   log mean over particles of exp of that sum               (Burda et al. 2016)
    FIVO   log of a particle filter's estimate of p(x)              (Maddison et al. 2017)

They are equal in expectation for N = 1, and IWAE and FIVO rise with N towards log p(x). The filter draws a sequence's
particles anew, in proportion to their weights, at the end of a step where the effective sample size of the weights
since the last time that it did has fallen below a threshold; FIVO is then the sum over the segments in between of the
log mean weight. Gradients flow along z and along the states of the ancestors; the terms of the resampling's own
probabilities are dropped, as Maddison et al. recommend (section 3.2: they only add variance).

Particles of a sequence are adjacent rows of a launch: row b * N + n is particle n of sequence b. Weights of 16 bits are
added up in float32, and the bound is rounded once; so are the terms of a loss.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import checks
from .padding import at_real
from .resampling import widened

BoundKind = Literal["elbo", "iwae", "fivo"]


def elbo(log_weights: Tensor) -> Tensor:
    """Compute the evidence lower bound of each sequence: log w_t (T, B, N) -> (B,)."""
    return widened(log_weights).sum(0).mean(-1).to(log_weights.dtype)


def iwae(log_weights: Tensor) -> Tensor:
    """Compute the importance weighted bound of each sequence: log w_t (T, B, N) -> (B,)."""
    return _log_mean_exp(widened(log_weights).sum(0)).to(log_weights.dtype)


def fivo(log_weights: Tensor, resampled: Tensor) -> Tensor:
    """Compute the filtering bound of each sequence.

    Args:
        log_weights: (T, B, N) log w_t of every particle.
        resampled: (T, B) bool, true where the particles were drawn anew at the end of the step.

    Returns:
        (B,).
    """
    counted = resampled.long()
    segment = (counted.cumsum(0) - counted).unsqueeze(-1).expand_as(log_weights)
    wide = widened(log_weights)
    sums = torch.zeros_like(wide).scatter_add(0, segment, wide)
    return _log_mean_exp(sums).sum(0).to(log_weights.dtype)  # of a segment that there is not: log mean exp(0) = 0


def _log_mean_exp(value: Tensor) -> Tensor:
    """Average over the last dimension, in logarithms; of zeros exactly 0, of -inf alone -inf."""
    peak = value.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(value.dtype).min)
    return (value - peak).exp().mean(-1).log() + peak.squeeze(-1)


def evidence(nll: Tensor, kl: Tensor) -> Tensor:
    """Compute the evidence lower bound of each sequence with the exact KL: nll and kl (T, B), 0 at padding -> (B,)."""
    return -(widened(nll) + widened(kl)).sum(0).to(nll.dtype)


class Weights(NamedTuple):
    """How the terms of a loss are weighed: see :meth:`VRNN.forward`."""

    beta: float | Tensor
    free_nats: float | Tensor
    normalizer: float | Tensor | None

    @classmethod
    def checked(cls, beta: float | Tensor, free_nats: float | Tensor, normalizer: float | Tensor | None) -> Weights:
        """Raise ValueError or TypeError, naming it, where one is no number >= 0, or the normalizer none > 0."""
        beta = checks.number("beta", beta, zero=True)
        free_nats = checks.number("free_nats", free_nats, zero=True)
        if normalizer is not None:
            normalizer = checks.number("normalizer", normalizer, zero=False)
        return cls(beta, free_nats, normalizer)


def loss(nll: Tensor, kl: Tensor, real: Tensor | None, lengths: Tensor | None, weights: Weights) -> Tensor:
    """Compute the sum over real steps of nll + beta * max(kl, free_nats), over the normalizer; in the dtype of nll."""
    beta, free_nats, normalizer = weights
    dtype, nll, kl = nll.dtype, widened(nll), widened(kl)
    if isinstance(free_nats, Tensor) or free_nats > 0:
        kl = at_real(real, torch.clamp(kl, min=free_nats))
    # as an alpha, a compiled call took beta for a constant, and torch refuses one beyond its dtype
    fixed = not (isinstance(beta, Tensor) or torch.compiler.is_compiling() or beta > torch.finfo(kl.dtype).max)
    if fixed and normalizer is None and lengths is None:
        return torch.add(nll, kl, alpha=float(beta)).mean().to(dtype)  # two nodes: of a single step, each is some 1 %
    if normalizer is None:
        normalizer = nll.shape[0] * nll.shape[1] if lengths is None else lengths.sum().to(nll.device)
    total = torch.add(nll.sum(), kl.sum(), alpha=float(beta)) if fixed else nll.sum() + beta * kl.sum()
    return (total / normalizer).to(dtype)
