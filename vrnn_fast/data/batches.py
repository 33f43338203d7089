"""Sequences of unequal length, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .stored import Series


class Padded(NamedTuple):
    """x (T, B, X) float32, zero from row b's ``lengths[b]`` on; lengths (B,) int64."""

    x: Tensor
    lengths: Tensor

    @property
    def steps(self) -> int:
        """The real time steps of all rows."""
        return int(self.lengths.sum())


def pad(sequences: Sequence[Series]) -> Padded:
    """Return one batch of all the sequences, each (T_i, X)."""
    return Padded(pad_sequence([x[:] for x in sequences]), torch.tensor([len(x) for x in sequences]))


def bucketed(lengths: Sequence[int], size: int, generator: torch.Generator, jitter: float = 0.3) -> list[list[int]]:
    """Cut the indices 0, 1, ... into batches of at most ``size`` of similar length, in random order.

    Each length is first scaled by a random factor within 1 ± jitter/2, so that no two epochs have the same batches.
    """
    noise = 1 + jitter * (torch.rand(len(lengths), generator=generator) - 0.5)
    order = (torch.tensor(lengths) * noise).argsort().tolist()
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
