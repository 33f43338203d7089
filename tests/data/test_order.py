"""The order of an epoch, and batches as they are loaded: the same for any number of ranks and processes."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import pytest
import torch
from torch import Tensor

from vrnn_fast.data.loader import Loaded, Pieces, loaded
from vrnn_fast.data.order import EpochOrder, Piece, seed_of, share

LENGTHS = [7, 1, 12, 3, 3, 9, 5, 1, 4, 11, 2]


@pytest.mark.parametrize("segment", [0, 1, 4, 100])
def test_every_step_of_every_sequence_is_read_once(segment: int) -> None:
    updates = list(EpochOrder(LENGTHS, 4, segment, seed=3, epoch=1).updates())
    steps = Counter(
        (piece.sequence, t) for update in updates for piece in update.pieces for t in range(piece.start, piece.stop)
    )
    assert steps == {(i, t): 1 for i, length in enumerate(LENGTHS) for t in range(length)}
    assert sum(update.steps for update in updates) == sum(LENGTHS)
    assert sum(update.last for update in updates) == 3
    for before, after in pairwise(updates):
        if not before.last:  # the same rows go on where they were
            assert [p.sequence for p in before.pieces] == [p.sequence for p in after.pieces]
            assert all(a.start == b.stop for b, a in zip(before.pieces, after.pieces, strict=True))


def test_an_epoch_goes_on_in_the_middle() -> None:
    order = EpochOrder(LENGTHS, 4, 3, seed=0, epoch=0)
    updates = list(order.updates())
    for at, update in enumerate(updates):
        assert list(order.updates(update.batch, update.segment)) == updates[at:]


def test_seed_and_epoch_decide() -> None:
    orders = [EpochOrder(LENGTHS, 2, 0, seed, epoch).batches for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (2, 1), (4, 1), (2, 3), (3, 2), (7, 3)])
def test_ranks_and_parts_share_all_rows(ranks: int, parts: int) -> None:
    rows = list(range(11))
    shares = [share(rows, rank, ranks, part, parts) for rank in range(ranks) for part in range(parts)]
    assert sorted(chain(*shares)) == rows
    sizes = [len(found) for found in shares]
    assert max(sizes) - min(sizes) <= 1


def sequences() -> tuple[Tensor, ...]:
    return tuple(torch.arange(length * 2.0).view(length, 2) + 100 * i for i, length in enumerate(LENGTHS))


def assert_equal(ours: Loaded, theirs: Loaded) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_was_asked_for(workers: int) -> None:
    pieces, wanted = Pieces(sequences(), 3, ("noise", 5)), [[Piece(2, 4, 8), Piece(1, 1, 1)], [], [Piece(0, 0, 7)]]
    before = torch.get_rng_state()
    first, empty, last = loaded(pieces, wanted, workers=workers)
    assert torch.equal(torch.get_rng_state(), before), "nobody's generator moves"
    assert first.lengths.tolist() == [4, 0]
    assert torch.equal(first.x[:, 0], sequences()[2][4:8])
    assert (first.x[:, 1] == 0).all()
    assert (first.eps[:, 1] == 0).all()
    assert empty.lengths.tolist() == [0]
    assert empty.x.shape == (1, 1, 2)
    assert torch.equal(last.x[:, 0], sequences()[0])


def test_the_noise_of_a_piece_is_its_own() -> None:
    """Whoever reads it, beside whom; and standard normal."""
    pieces = Pieces(sequences(), 3, ("noise", 5))
    (both,) = loaded(pieces, [[Piece(2, 4, 8), Piece(5, 0, 3)]])
    (alone,) = loaded(pieces, [[Piece(5, 0, 3)]])
    assert torch.equal(both.eps[:3, 1], alone.eps[:, 0])
    for stream in (("noise", 6), ("noise", 5, 0)):
        (other,) = loaded(Pieces(sequences(), 3, stream), [[Piece(5, 0, 3)]])
        assert not torch.equal(other.eps, alone.eps)
    long = Pieces((torch.zeros(4000, 1),) * 3, 5, ("noise",))
    eps = torch.cat([long[Piece(i, 0, 4000)][1] for i in range(3)])
    assert abs(eps.mean().item()) < 0.02
    assert abs(eps.std().item() - 1) < 0.02


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of("noise", 0, 1, 2) == 2742594726479796356
    assert seed_of("noise", 1, 23) != seed_of("noise", 12, 3)
