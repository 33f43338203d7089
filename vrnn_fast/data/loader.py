"""Batches as they are trained on, read and padded beforehand in processes of their own where that is wished.

The noise of z comes with them. It depends on the seed, the epoch, the sequence and the step it begins at, and so
neither on the number of ranks nor on where a run was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .order import Piece, seed_of
from .reading import DataError
from .stored import Series


class Loaded(NamedTuple):
    """x (T, B, X) and noise eps (T, B, Z), float32, zero from row b's ``lengths[b]`` on; lengths (B,) int64.

    Where something could not be read, ``failure`` says what, and no row has a step: a rank that has nothing to give
    still takes part in what all ranks do together, and tells them then.
    """

    x: Tensor
    lengths: Tensor
    eps: Tensor
    failure: DataError | None = None

    def to(self, device: torch.device) -> Loaded:
        """Return the same, there; without a wait where it can be."""
        x, lengths, eps = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Loaded(x, lengths, eps, self.failure)


@dataclass(frozen=True)
class Pieces(TorchDataset[tuple[Tensor, Tensor]]):
    """Pieces of sequences and their noise; ``stream`` names the noise, with the seed and the epoch in it."""

    sequences: Sequence[Series]
    latent_size: int
    stream: tuple[object, ...]

    def __getitems__(self, wanted: Sequence[Piece]) -> Loaded:
        """Read a batch, as DataLoader asks for it."""
        try:
            return _side_by_side([self[piece] for piece in wanted])
        except DataError as error:
            width, rows = self.sequences[0].shape[1], len(wanted)
            x, eps = (torch.zeros(1, rows, size) for size in (width, self.latent_size))
            return Loaded(x, torch.zeros(rows, dtype=torch.int64), eps, error)

    def __getitem__(self, piece: Piece) -> tuple[Tensor, Tensor]:
        x = self.sequences[piece.sequence][piece.start : piece.stop]
        generator = torch.Generator().manual_seed(seed_of(*self.stream, piece.sequence, piece.start))
        return x, torch.randn(len(x), self.latent_size, generator=generator)


NOTHING = Piece(0, 0, 0)  # what a rank without a sequence takes: it still has to take part


def loaded(
    pieces: Pieces, wanted: Iterable[Sequence[Piece]], *, workers: int = 0, pin: bool = False
) -> Iterator[Loaded]:
    """Yield a batch for each list of pieces, in order.

    Args:
        workers: processes that read ahead; 0 reads when it is asked.
        pin: whether to lay them into pinned memory, from which a copy to a GPU waits for nobody.
    """
    keys = ([*wanted_pieces] or [NOTHING] for wanted_pieces in wanted)
    options: Any = {"batch_sampler": _Once(keys), "collate_fn": _as_it_is, "num_workers": workers, "pin_memory": pin}
    yield from DataLoader(pieces, generator=torch.Generator(), **options)  # else it draws from everybody's


class _Once:
    """An iterable that is read once, as a sampler."""

    def __init__(self, batches: Iterable[list[Piece]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Piece]]:
        return iter(self._batches)


def _as_it_is(batch: Loaded) -> Loaded:
    return batch


def _side_by_side(rows: Sequence[tuple[Tensor, Tensor]]) -> Loaded:
    lengths = torch.tensor([len(x) for x, _ in rows])
    x, eps = (pad_sequence([row[i] for row in rows]) for i in (0, 1))
    if not len(x):  # a batch has a step, though no row may have one
        x, eps = (t.new_zeros((1, *t.shape[1:])) for t in (x, eps))
    return Loaded(x, lengths, eps)
