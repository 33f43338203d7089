"""The bound of sequences, and what sums of it are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from ..data import DataError
from ..data.dataset import lengths_of
from ..data.loader import Pieces, loaded
from ..data.order import Piece
from ..data.stored import Series
from ..model import VRNN
from ..state import State
from .ranks import Ranks

_SEED = 1
_BATCH = 64  # sequences


@dataclass(frozen=True)
class Sums:
    """Nats over a number of real time steps, and the seconds that they took."""

    nll: float = 0.0
    kl: float = 0.0
    time_steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def bound(self) -> float:
        """The negative evidence lower bound in nats per time step."""
        return (self.nll + self.kl) / self.time_steps


def evaluate(model: VRNN, sequences: Sequence[Series], ranks: Ranks | None = None, segment: int = 0) -> Sums:
    """Return the evidence lower bound of whole sequences (T_i, X), one latent sample each, always with the same noise.

    Args:
        ranks: each takes its share, and has the sums of all.
        segment: time steps that are in memory at a time; 0 for whole sequences.

    Raises:
        RunError: on all ranks, what one of them could not read.
    """
    like = next(model.parameters())
    ranks = ranks or Ranks(0, 1, like.device)
    lengths = lengths_of(sequences)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    begun, nll, kl, steps = perf_counter(), 0.0, 0.0, 0
    unread: DataError | None = None
    with torch.no_grad():
        for i in range(0, len(by_length), _BATCH * ranks.size):  # of all ranks, which make as many calls each
            rows = by_length[i : i + _BATCH * ranks.size]
            longest, own = lengths[rows[-1]], ranks.share(rows)
            width = segment or longest
            cuts = range(0, longest, width)
            wanted = [[Piece(r, min(at, lengths[r]), min(at + width, lengths[r])) for r in own] for at in cuts]
            state: State | None = None
            for batch in loaded(Pieces(sequences, model.latent_size, (_SEED,)), wanted):
                unread = unread or batch.failure
                x, own_lengths, eps, _ = batch.to(like.device)
                given = {"eps": eps.to(like.dtype), "state": state, "normalizer": 1.0}  # a rank may have no step
                out = model(x.to(like.dtype), own_lengths, **given)
                state = out.state
                nll, kl = nll + out.nll.double().sum().item(), kl + out.kl.double().sum().item()
                steps += int(batch.lengths.sum())
    ranks.together(unread)
    nll, kl, counted = ranks.sum(nll, kl, steps)
    return Sums(nll, kl, round(counted), perf_counter() - begun)
