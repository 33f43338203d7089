"""What every executor returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SequenceResult(NamedTuple):
    """One run over a batch of sequences. Everything is zero at padding, steps t >= lengths[b].

    Attributes:
        nll: (T, B) negative log-likelihood of x_t in nats; zeros where the likelihood is external.
        kl: (T, B) KL(posterior || prior) in nats, or what the spec's objective has in its place.
        z: (T, B, Z) the latent sample.
        mean: (T, B, Z) the posterior's mean.
        std: (T, B, Z) the posterior's standard deviation.
        prior_mean: (T, B, Z), or None where it was not asked for.
        prior_std: (T, B, Z), or None where it was not asked for.
        raw: (T, B, output_size) the decoder's heads side by side before any transform, or None likewise.
        state: (B, H) tensors, h of every layer, then for an LSTM c of every layer: each row's state after its own last
            step.
        ancestors: (T, B / particles, particles) int64 of a particle filter: whose state each particle took over after
            the step, -1 where its sequence did not resample.
    """

    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor | None
    prior_std: Tensor | None
    raw: Tensor | None
    state: tuple[Tensor, ...]
    ancestors: Tensor | None = None

    def to(self, dtype: torch.dtype) -> SequenceResult:
        """The same results, rounded or widened to ``dtype``."""
        *per_step, state, ancestors = self
        tensors = (None if t is None else t.to(dtype) for t in per_step)
        return SequenceResult._make((*tensors, tuple(s.to(dtype) for s in state), ancestors))


class StepResult(NamedTuple):
    """One time step.

    Attributes:
        nll: (B,) negative log-likelihood of x_t in nats; zeros where the likelihood is external.
        kl: (B,) KL(posterior || prior) in nats.
        raw: (B, output_size) the decoder's heads side by side before any transform, or None where not asked for.
        predicted: (B, output_size) the same at the prior's mean of z_t, which has seen nothing of x_t.
        state: (1, B, H) tensors, h for a GRU and (h, c) for an LSTM.
    """

    nll: Tensor
    kl: Tensor
    raw: Tensor | None
    predicted: Tensor
    state: Sequence[Tensor]
