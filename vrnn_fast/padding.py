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
    """Return x (T, B, X) with some real frame in the place of padding: nothing that a likelihood has no density for."""
    if real is None or lengths is None:
        return x
    row = lengths.argmax(0, keepdim=True).to(x.device)  # its first step is real
    return torch.where(real.unsqueeze(-1), x, x[0].detach().index_select(0, row))
