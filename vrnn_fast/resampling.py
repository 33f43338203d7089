"""How the particles of a sequence are drawn anew when their weights have become too uneven.

Particle n of sequence b is row b * N + n of a batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Resampling = Literal["systematic", "stratified", "multinomial"]


_WIDE = torch.float32, torch.float64  # of these a conversion to the same is some 1 % of a single step


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least: a precision to add up many elements in, and to draw uniforms in."""
    return tensor if tensor.dtype in _WIDE else tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def uniforms(
    resampling: Resampling, steps: int, batch: int, particles: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw (T, B, N) numbers for :func:`ancestors`, each uniform on [0, 1), of the dtype of ``like``, :func:`widened`.

    Multinomial ones are independent, stratified one in each of N equal intervals, systematic at the same place in each
    (Douc et al. 2005, "Comparison of Resampling Schemes for Particle Filtering"): less noise, in that order.
    """
    each = 1 if resampling == "systematic" else particles
    drawn = widened(like.new_empty((steps, batch, each))).uniform_(generator=generator)
    if resampling == "multinomial":
        return drawn
    return (torch.arange(particles, dtype=drawn.dtype, device=like.device) + drawn) / particles


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Compute (sum of w)² / sum of w² over the last dimension, from 1 to N (Kong et al. 1994); NaN without a weight
    above 0."""
    weights = _relative(log_weights)
    return weights.sum(-1).square() / weights.square().sum(-1)


def ancestors(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw K of N particles in proportion to their weights, by the inverse of their distribution function.

    Args:
        log_weights: (B, N), up to a constant in each row.
        uniforms: (B, K) in [0, 1], one for each draw.

    Returns:
        (B, K) int64 from 0 to N - 1, particles whose weight is above 0.
    """
    upto = _relative(log_weights).cumsum(-1)
    total = upto[:, -1:].contiguous()
    drawn = torch.searchsorted(upto, (uniforms * total).contiguous(), right=True)
    return drawn.minimum(torch.searchsorted(upto, total))  # rounded up to 1, a uniform would draw beyond the end


class Filter:
    """The particles of a batch of sequences, from step to step.

    Args:
        uniforms: (T, B, N) in [0, 1], what is drawn with at the end of each step.
        threshold: a sequence draws anew where the effective sample size of its weights since it last did is below this
            share of N; never after its last step, where it would change nothing.
        lengths: (B * N,) real steps of each row, or None where all T are.

    Attributes:
        ancestors: (B, N) int64 for each step so far, which particle of its sequence each goes on from; -1 where all go
            on from themselves.
    """

    def __init__(self, uniforms: Tensor, threshold: float, lengths: Tensor | None) -> None:
        steps, batch, particles = uniforms.shape
        self.uniforms, self.threshold = uniforms, threshold
        self.last = torch.full((batch,), steps - 1, device=uniforms.device)
        if lengths is not None:
            self.last = lengths[::particles].to(uniforms.device) - 1
        self.log_weights = widened(uniforms.new_zeros(batch, particles))
        self.ancestors: list[Tensor] = []

    def step(self, log_weights: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Weigh the particles of the next step, (B * N), and return the states that they go on from."""
        t = len(self.ancestors)
        since = self.log_weights + log_weights.detach().reshape(self.log_weights.shape)
        due = (t < self.last) & (effective_sample_size(since) < self.threshold * since.shape[-1])
        chosen = torch.where(due.unsqueeze(-1), ancestors(since, self.uniforms[t]), -1)
        self.log_weights = torch.where(chosen < 0, since, 0.0)
        self.ancestors.append(chosen)
        return tuple(go_on_from(chosen, s) for s in state)


def go_on_from(chosen: Tensor, rows: Tensor) -> Tensor:
    """Return rows (B * N, H) of states, each replaced by that of its ancestor as a :class:`Filter` gives them."""
    own = torch.arange(rows.shape[0], device=rows.device).view_as(chosen)
    return rows.index_select(0, torch.where(chosen < 0, own, own[:, :1] + chosen).flatten())


def _relative(log_weights: Tensor) -> Tensor:
    """Return weights whose largest is 1 in each row."""
    return (log_weights - log_weights.amax(-1, keepdim=True)).exp()
