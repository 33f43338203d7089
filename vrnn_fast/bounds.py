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

Particles of a sequence are adjacent rows of a launch: row b * N + n is particle n of sequence b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .executors import SequenceResult
from .inputs import Inputs
from .spec import CellSpec

Kind = Literal["elbo", "iwae", "fivo"]
Resampling = Literal["systematic", "stratified", "multinomial"]

State: TypeAlias = tuple[Tensor, ...]
Launch: TypeAlias = Callable[[Inputs, Tensor], tuple[Tensor, State]]


def elbo(log_weights: Tensor) -> Tensor:
    """The evidence lower bound of each sequence: log w_t (T, B, N) -> (B,)."""
    return log_weights.sum(0).mean(-1)


def iwae(log_weights: Tensor) -> Tensor:
    """The importance weighted bound of each sequence: log w_t (T, B, N) -> (B,)."""
    return _log_mean_exp(log_weights.sum(0))


def fivo(log_weights: Tensor, resampled: Tensor) -> Tensor:
    """The filtering bound of each sequence.

    Args:
        log_weights: (T, B, N) log w_t of every particle.
        resampled: (T, B) bool, true where the particles were drawn anew at the end of the step.

    Returns:
        (B,).
    """
    counted = resampled.long()
    segment = (counted.cumsum(0) - counted).unsqueeze(-1).expand_as(log_weights)
    sums = torch.zeros_like(log_weights).scatter_add(0, segment, log_weights)
    return _log_mean_exp(sums).sum(0)  # of a segment that there is not: log mean exp(0) = 0


def _log_mean_exp(value: Tensor) -> Tensor:
    """Over the last dimension; of zeros exactly 0, of -inf alone -inf."""
    peak = value.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(value.dtype).min)
    return (value - peak).exp().mean(-1).log() + peak.squeeze(-1)


def log_ratio(result: SequenceResult, eps: Tensor, real: Tensor | None) -> Tensor:
    """log q(z_t | x_t, h_{t-1}) - log p(z_t | h_{t-1}) of the sampled z, (T, B): what the KL is the mean of."""
    mean, std, prior_std = result.prior_mean, result.std, result.prior_std
    assert mean is not None
    assert prior_std is not None
    if real is not None:  # padding is zeros
        std, prior_std = (s.masked_fill(~real.unsqueeze(-1), 1.0) for s in (std, prior_std))
        eps = eps.masked_fill(~real.unsqueeze(-1), 0.0)
    return (0.5 * (((result.z - mean) / prior_std).square() - eps.square()) + (prior_std / std).log()).sum(-1)


def filtered(launch: Launch, inputs: Inputs, eps: Tensor, uniforms: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """A particle filter step by step: one launch for every time step, and the resampling between two of them.

    Args:
        launch: runs a batch of sequences, given the noise, and returns log w_t of every row, (T, B * N), and the state.
        inputs: B * N rows.
        eps: (T, B * N, Z) the noise.
        uniforms: (T, B, N) in [0, 1), what :func:`ancestors` draws with at the end of each step.
        threshold: resample where the effective sample size is below this share of N.

    Returns:
        log w_t of every row, (T, B * N), and the ancestor of every row, (T, B * N) int64: which particle of its
        sequence it goes on from after the step, -1 where all go on from themselves.
    """
    steps, batch, particles = uniforms.shape
    own = torch.arange(particles, device=eps.device)
    first = torch.arange(0, batch * particles, particles, device=eps.device).unsqueeze(1)
    last = torch.full((batch,), steps - 1, device=eps.device)
    if inputs.lengths is not None:
        last = inputs.lengths[::particles].to(eps.device) - 1
    since = eps.new_zeros(batch, particles)
    state, log_weights, drawn = inputs.state, [], []
    for t in range(steps):
        weights, state = launch(inputs.step(t, state), eps[t : t + 1])
        since = since + weights.detach().reshape(batch, particles)
        # the last step is the end of what the bound sees: drawing anew there would change nothing
        due = ((effective_sample_size(since) < threshold * particles) & (t < last)).unsqueeze(-1)
        chosen = torch.where(due, ancestors(since, uniforms[t]), -1)
        rows = (first + torch.where(due, chosen, own)).flatten()
        state = tuple(s.index_select(0, rows) for s in state)
        since = since.masked_fill(due, 0.0)
        log_weights.append(weights)
        drawn.append(chosen.flatten())
    return torch.cat(log_weights), torch.stack(drawn)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum of w)² / sum of w² over the last dimension, from 1 to N (Kong et al. 1994); NaN without a weight above 0."""
    weights = _relative(log_weights)
    return weights.sum(-1).square() / weights.square().sum(-1)


def ancestors(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw N of N particles in proportion to their weights, by the inverse of their distribution function.

    Args:
        log_weights: (B, N), up to a constant in each row.
        uniforms: (B, N) in [0, 1], one for each draw.

    Returns:
        (B, N) int64 from 0 to N - 1, particles whose weight is above 0.
    """
    upto = _relative(log_weights).cumsum(-1)
    total = upto[:, -1:].contiguous()
    drawn = torch.searchsorted(upto, uniforms * total, right=True)
    return drawn.minimum(torch.searchsorted(upto, total))  # rounded up to 1, a uniform would draw beyond the end


def _relative(log_weights: Tensor) -> Tensor:
    """Weights whose largest is 1 in each row."""
    return (log_weights - log_weights.amax(-1, keepdim=True)).exp()


def uniforms(
    resampling: Resampling, steps: int, batch: int, particles: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """(T, B, N) what :func:`ancestors` draws with, each uniform on [0, 1).

    Multinomial ones are independent, stratified one in each of N equal intervals, systematic at the same place in each
    (Douc et al. 2005, "Comparison of Resampling Schemes for Particle Filtering"): less noise, in that order.
    """
    each = 1 if resampling == "systematic" else particles
    drawn = torch.rand(steps, batch, each, generator=generator, dtype=like.dtype, device=like.device)
    if resampling == "multinomial":
        return drawn
    return (torch.arange(particles, dtype=like.dtype, device=like.device) + drawn) / particles


def launches(spec: CellSpec) -> str:
    """How the bounds run, in words."""
    return "bounds: elbo and iwae as above; fivo: step by step, one launch for each and resampling between them"
