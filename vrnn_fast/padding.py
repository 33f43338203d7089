"""What padding may hold, and how it is kept out of results."""

from __future__ import annotations

import torch
from torch import Tensor


def at_real(real: Tensor | None, tensor: Tensor) -> Tensor:
    """Return ``tensor`` (T, B, ...) with zeros at padding, whatever was there."""
    if real is None:
        return tensor
    frames = (..., *(None,) * (tensor.dim() - 2))
    return torch.where(real[frames], tensor, torch.zeros_like(tensor))


def with_frames(x: Tensor, real: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return x (T, B, X) with some real frame in the place of padding: nothing that a likelihood has no density for.

    Where no row has a step, ones, which the support of each of ours holds.
    """
    if real is None or lengths is None:
        return x
    most, row = lengths.to(x.device).max(0, keepdim=True)  # the first step of this row is real
    frame = x[0].detach().index_select(0, row)
    frame = torch.where(most > 0, frame, torch.ones_like(frame))
    return torch.where(real.unsqueeze(-1), x, frame)
