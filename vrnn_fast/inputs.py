"""A checked batch of sequences, as executors take it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """What a call was given, but for the noise.

    Attributes:
        x: (T, B, X).
        lengths: (B,) int64 on the device of x, or None where all T steps of every row are real.
        state: (B, H) tensors, h of every layer, then for an LSTM c of every layer.
        cond: (T, B, C), or None.
        resets: (T, B) bool, or None.
        mask: (T, B, X) bool, or None.
    """

    x: Tensor
    lengths: Tensor | None
    state: tuple[Tensor, ...]
    cond: Tensor | None
    resets: Tensor | None
    mask: Tensor | None

    def real(self) -> Tensor | None:
        """(T, B) bool, true where t < lengths[b]; None without lengths."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.x.shape[0], device=self.x.device)
        return steps.unsqueeze(1) < self.lengths.to(self.x.device)

    def repeated(self, times: int) -> Inputs:
        """Every row so many times, side by side: rows b * times to (b + 1) * times - 1 are row b.

        Without a copy where strides can say it, for one row or once.
        """

        def rows(tensor: Tensor, dim: int) -> Tensor:
            sizes = [-1] * tensor.dim()
            return tensor.unsqueeze(dim + 1).expand(*sizes[: dim + 1], times, *sizes[dim + 1 :]).flatten(dim, dim + 1)

        def of(tensor: Tensor | None, dim: int) -> Tensor | None:
            return None if tensor is None else rows(tensor, dim)

        return Inputs(
            rows(self.x, 1),
            None if self.lengths is None else self.lengths.repeat_interleave(times),  # contiguous for the kernels
            tuple(rows(s, 0) for s in self.state),
            of(self.cond, 1),
            of(self.resets, 1),
            of(self.mask, 1),
        )

    def step(self, t: int, state: tuple[Tensor, ...]) -> Inputs:
        """Step t alone, from this state: a length is then 0 or 1."""

        def at(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[t : t + 1]

        lengths = None if self.lengths is None else (self.lengths > t).long()
        return Inputs(self.x[t : t + 1], lengths, state, at(self.cond), at(self.resets), at(self.mask))


def at_real(real: Tensor | None, tensor: Tensor) -> Tensor:
    """``tensor`` (T, B, ...) with zeros at padding, whatever was there."""
    if real is None:
        return tensor
    return torch.where(real[(..., *(None,) * (tensor.dim() - 2))], tensor, torch.zeros_like(tensor))


def with_frames(x: Tensor, real: Tensor | None, lengths: Tensor | None) -> Tensor:
    """x (T, B, X) with some real frame in the place of padding: nothing that a likelihood has no density for."""
    if real is None or lengths is None:
        return x
    row = lengths.argmax(0, keepdim=True).to(x.device)  # its first step is real
    return torch.where(real.unsqueeze(-1), x, x[0].detach().index_select(0, row))
