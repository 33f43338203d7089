"""The order of an epoch: which pieces of which sequences each update reads. It depends on the data's lengths, the seed
and the epoch alone, so every rank knows it, whatever their number, and a run may go on in the middle of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from .batches import bucketed
from .reading import Item


class Piece(NamedTuple):
    """Time steps ``start`` to ``stop`` of a sequence; none of them where that has ended before."""

    sequence: int
    start: int
    stop: int


class Update(NamedTuple):
    """What one step of the optimiser reads, on all ranks together: segment ``segment`` of batch ``batch``.

    Attributes:
        pieces: one for each sequence of the batch, ended ones too, in the same order in every segment.
        last: whether no sequence of the batch goes on.
    """

    batch: int
    segment: int
    pieces: tuple[Piece, ...]
    last: bool

    @property
    def steps(self) -> int:
        """Real time steps."""
        return sum(piece.stop - piece.start for piece in self.pieces)


class EpochOrder:
    """One epoch: batches of sequences of similar length, in random order, each cut into segments of time.

    Args:
        lengths: of the sequences.
        size: sequences of a batch, on all ranks together.
        segment: time steps of a segment; 0 for whole sequences.
    """

    def __init__(self, lengths: Sequence[int], size: int, segment: int, seed: int, epoch: int) -> None:
        self.lengths, self.segment = lengths, segment
        generator = torch.Generator().manual_seed(seed_of("order", seed, epoch))
        self.batches = bucketed(lengths, size, generator)

    def updates(self, batch: int = 0, segment: int = 0) -> Iterator[Update]:
        """Yield all from that one on."""
        for number in range(batch, len(self.batches)):
            rows = self.batches[number]
            longest = max(self.lengths[row] for row in rows)
            width = self.segment or longest
            segments = -(-longest // width)
            for at in range(segment if number == batch else 0, segments):
                start, stop = at * width, (at + 1) * width
                pieces = (Piece(r, min(start, self.lengths[r]), min(stop, self.lengths[r])) for r in rows)
                yield Update(number, at, tuple(pieces), at == segments - 1)


def share(rows: Sequence[Item], rank: int, ranks: int, part: int = 0, parts: int = 1) -> Sequence[Item]:
    """Return what a rank takes of the rows of an update in one of the parts that it is accumulated over."""
    return rows[rank + part * ranks :: ranks * parts]


def seed_of(*about: object) -> int:
    """Return the seed of what these words and numbers name: 63 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(about).encode()).digest()[:8], "little") >> 1
