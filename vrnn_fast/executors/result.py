"""What every executor returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SequenceResult(NamedTuple):
    """One run over a batch of sequences. Everything is zero at padding, steps t >= lengths[b].

    Attributes:
        nll: (T, B) negative log-likelihood of x_t in nats; zeros where the likelihood is external.
        kl: (T, B) KL(posterior || prior) in nats.
        z: (T, B, Z) the latent sample.
        mean: (T, B, Z) the posterior's mean.
        std: (T, B, Z) the posterior's standard deviation.
        prior_mean: (T, B, Z), or None where it was not asked for.
        prior_std: (T, B, Z), or None where it was not asked for.
        raw: (T, B, output_size) the decoder's heads side by side before any transform, or None likewise.
        state: (B, H) tensors, h of every layer, then for an LSTM c of every layer: each row's state after its own last
            step.
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
