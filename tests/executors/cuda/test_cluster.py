"""Scans by clusters of blocks: what their ranks compute, exchange and wait for; the law of errors; and what happens
where one of them does not wait."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.executors.cuda.cells import GRU, LSTM, cell
from tests.executors.cuda.scans import (
    BARE,
    RAGGED,
    SCANS,
    assert_generates,
    assert_no_schedule_changes_a_bit,
    by,
    family,
    needs_emulator,
    one_buffer,
    plans,
    scans_alone,
    square,
    without_weights,
)
from tests.support import standin_driver
from tests.support.family import FAMILY
from tests.support.oracle import Errors, Problem
from tests.support.recorded import (
    Recorded,
    compiled,
    copies,
    differs,
    needs_setarch,
    races,
    recording,
    written,
)
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Keep, Slice
from vrnn_fast.executors import cuda, reference
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.cuda import chip, emulator, exchange, launch, nvrtc
from vrnn_fast.executors.cuda.cluster import Cluster, ScanWay, fastest, priced, workers
from vrnn_fast.executors.cuda.cycles import cublas, squares
from vrnn_fast.executors.cuda.emulator import Fault, Schedule
from vrnn_fast.executors.cuda.exchange import BUFFERS, RanksApart, early
from vrnn_fast.executors.cuda.forward import alone, forward
from vrnn_fast.executors.cuda.memory import Operand, memory
from vrnn_fast.executors.cuda.plan import TOTALS, WARPS, KernelPlan
from vrnn_fast.executors.cuda.reverse import reverse
from vrnn_fast.executors.cuda.steps import (
    A100,
    BLOCKS,
    FORWARD,
    GAIN,
    H100,
    ScanRoom,
    ScanWays,
    all_by,
    are_cublas,
    backward_steps,
    chosen,
    missing,
    training,
)
from vrnn_fast.executors.cuda.weights import jobs, shares


@pytest.fixture(autouse=True, scope="module")
def launches_apart() -> Iterator[None]:
    """One multiprocessor has no workers beside a scan: those are in test_crew.py."""
    with mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", 1):
        yield


# ---- plans


def test_each_part_is_waited_for_once_and_before_it_is_read() -> None:
    seen = 0
    for plan in family():
        waited = [part for visit in plan.visits for part in visit.waits]
        assert sorted(map(repr, waited)) == sorted(map(repr, plan.exchanged))
        there: set[Slice] = set()
        for visit in plan.visits:
            there |= set(visit.waits)
            assert {p.source for p in visit.products} & set(plan.exchanged) <= there
        seen += len(waited)
    assert seen > 250


class Rank:
    """One block, whose warps go through the visits on their own: what each has done."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.at = [0] * WARPS  # visits behind each warp
        self.pushed: dict[tuple[Slice, int], set[int]] = defaultdict(set)  # warps that have pushed a turn


def active(plan: KernelPlan, unit: int) -> set[int]:
    """The warps that have tiles of a unit."""
    of = plan.units[unit]
    tiles = plan.share(-(-of.sums[0].width // 8), of.split)
    return {(plan.first_warp[unit] + tile) % WARPS for tile in range(min(tiles, WARPS))}


def overwrites(plan: KernelPlan, slow: int, steps: int = 6) -> str | None:
    """Hold one warp of a rank back wherever it may stand, let its peer run as far as it can, and look whether the peer
    pushes over what that warp has yet to read. None, or what it overwrote."""
    count = len(plan.visits)

    def turns(visit: int, step: int) -> Iterator[tuple[Slice, int]]:
        if plan.visits[visit].finishes:
            for part in plan.units[plan.visits[visit].unit].writes:
                if part in plan.exchanged:
                    yield part, step + plan.is_for_next(part)

    for held in range(count * (steps - 3)):
        here, peer = Rank(plan), Rank(plan)
        for rank in (here, peer):  # what start pushes
            for part in plan.exchanged:
                if plan.is_for_next(part):
                    rank.pushed[part, 0] = set(range(WARPS))
        moved = True
        while moved:
            moved = False
            for rank, other in ((here, peer), (peer, here)):
                for warp in range(WARPS):
                    if rank.at[warp] >= count * steps or (rank is here and warp == slow and rank.at[warp] == held):
                        continue
                    step, index = divmod(rank.at[warp], count)
                    visit = plan.visits[index]
                    if visit.barrier and any(rank.at[w] < rank.at[warp] for w in range(WARPS)):
                        continue
                    complete = all(
                        of.pushed[part, step] >= pushers(plan, part) for part in visit.waits for of in (other,)
                    )
                    if not complete:
                        continue
                    for part, turn in turns(index, step):
                        if rank is peer and warp in active(plan, visit.unit):
                            over = turn - BUFFERS
                            late = reading(plan, part, over, slow, here.at[slow])
                            if over >= 0 and late:
                                return f"turn {over} of {part} is overwritten while warp {slow} stands at {held}"
                        rank.pushed[part, turn].add(warp)
                    rank.at[warp] += 1
                    moved = True
    return None


@cache
def pushers(plan: KernelPlan, part: Slice) -> frozenset[int]:
    unit = next(u for u, of in enumerate(plan.units) if of.split and part in of.writes)
    return frozenset(active(plan, unit))


def reading(plan: KernelPlan, part: Slice, turn: int, warp: int, at: int) -> bool:
    """Whether a warp that has so many visits behind it has yet to read this turn of a part."""
    return any(
        turn * len(plan.visits) + i >= at and warp in active(plan, visit.unit)
        for i, visit in enumerate(plan.visits)
        if any(p.source == part for p in visit.products)
    )


SMALL = [
    (GRU, Cluster(2, alike=False)),
    (cell(cell="rnn", **FAMILY["no z"]), Cluster(2)),
    (cell(cell="lstm", num_layers=2), Cluster(2)),
]


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_no_rank_pushes_over_what_a_peer_may_still_read(case: int) -> None:
    """By letting ranks run apart as far as waits and barriers allow, not by the rule that places these."""
    for plan in plans(*SMALL[case]):
        for slow in range(0, WARPS, 3):
            assert overwrites(plan, slow) is None


def test_ranks_that_push_nothing_come_apart() -> None:
    """Of 96 columns some of 16 would have none; beside wider parts, which all push, a narrow one may be shared."""
    plan = partial(forward, square(96))
    with pytest.raises(RanksApart, match="what visit 4 waits for does not keep the ranks of a tile together"):
        plan(Cluster(16))
    assert {own.ranks for own, _ in priced(plan, "bf16", H100.shared, ["peers"]) if own} == {2, 4, 8}
    narrow = reverse(square(256), Cluster(8), on_z=True, on_eps=False)
    assert min(part.width for part in narrow.exchanged) == 16


@needs_emulator
def test_a_rank_that_pushes_nothing_would_come_too_late() -> None:
    """To read what others have pushed, who know nothing of it."""
    spec = cell(hidden_size=18, phi_z=(), encoder=())
    with mock.patch.object(exchange, "_all_push", return_value=True), by(Cluster(4)):
        problem = Problem.draw(spec, 4, 5)
        one = dict(recording(lambda: problem.run(cuda, torch.float32), training(spec)))[FORWARD]
    assert not differs(one, Schedule("one ahead", 0))
    assert any(differs(one, Schedule("one behind", warp, late=False)) for warp in range(4 * WARPS))


def test_the_rule_finds_a_push_that_comes_too_early() -> None:
    """Without barriers, a peer is kept back by nothing but its waits."""
    plan = forward(replace(square(256), latent_size=40), Cluster(8))  # which a warp reads that pushes nothing
    assert not list(early(plan))
    bare = replace(plan, visits=tuple(replace(v, barrier=False) for v in plan.visits))
    assert list(early(bare))
    assert any(overwrites(bare, slow) for slow in range(WARPS))


def test_what_is_cheap_is_computed_by_every_rank() -> None:
    """z and phi_z of 16 latent variables; not of 128."""
    for latent, whole in ((16, {"sample", "layer"}), (256, set())):
        spec = replace(square(256), latent_size=latent)
        plan = forward(spec, Cluster(8))
        assert {u.kind for u in plan.units if not u.split} == whole
        assert all(u.split for u in plan.units if u.kind == "gru")
    assert all(u.split for u in forward(square(256), Cluster(8, alike=False)).units)


CHOSEN = {  # on an H100, and on an A100, which knows no clusters
    64: ((None, None), (None, None)),
    96: ((4, 4), (None, None)),
    128: ((4, 4), (None, 4)),
    200: ((8, 8), (8, 8)),
    256: ((8, 8), (8, 8)),
    384: ((16, 16), (16, 16)),
    512: ((16, 16), (16, 16)),
}


@pytest.mark.parametrize("size", CHOSEN)
def test_the_ranks_that_the_clock_chooses(size: int) -> None:
    """Forward and back, of a batch whose tiles leave most of a chip to do nothing."""
    for room, through, ranks in zip((H100, A100), ("peers", "memory"), CHOSEN[size], strict=True):
        found = chosen(square(size), "bf16", room).clusters
        assert tuple(own and own.ranks for own in found[:2]) == ranks
        assert all(own is None or own.through == through for own in found)
    assert chosen(square(size), "bf16", A100._replace(together=0)) == BLOCKS


def test_ranks_leave_room_for_a_batch_and_for_workers() -> None:
    """Of many tiles, one block for each is faster than clusters that take turns; and a narrower cluster, beside which
    there is room, than a wide one with all else behind it."""
    spec = square(256)
    ranks = [(own := chosen(spec, "bf16", H100, batch).forward.cluster) and own.ranks for batch in (16, 400, 4096)]
    assert ranks == [8, 2, None]
    prices = ((None, 4000), (Cluster(8), 1000), (Cluster(16), 700))
    assert [H100.blocks(n) for n in (1, 2, 4, 8, 16)] == [132, 128, 128, 128, 128]
    assert fastest(prices, 8, H100.blocks, ((1, 0),)).cluster == Cluster(16)
    assert fastest(prices, 8, H100.blocks, ((1, 8000),)).cluster == Cluster(8)
    assert fastest(prices, 1, H100.blocks, ((1, 8000),)).cluster == Cluster(16)
    for most, own in ((8, Cluster(8)), (1, None)):
        found = fastest(prices, 1, lambda ranks, _, most=most: 128 * (ranks <= most), ((1, 8000),))
        assert found.cluster == own


def test_workers_take_32_rows_where_they_would_be_later_than_the_scan() -> None:
    """With 16 they are done sooner behind its last step, and ahead of the first."""
    prices = ((None, 4000), (Cluster(8), 1000))
    assert fastest(prices, 8, H100.blocks, ((1, 8000), (2, 5000))) == ScanWay(Cluster(8), 1)
    assert fastest(prices, 8, H100.blocks, ((1, 12000), (2, 8000))) == ScanWay(Cluster(8), 2)
    assert fastest(prices, 8, H100.blocks, ((1, 12000), (2, 11500))) == ScanWay(Cluster(8), 1)
    wide = square(384)
    assert [chosen(wide, "bf16", H100, batch).backward for batch in (64, 128)] == [
        ScanWay(Cluster(16)),
        ScanWay(Cluster(8), 2),
    ]
    assert chosen(square(64), "bf16", H100, 128) == BLOCKS


def test_a_pass_without_room_for_32_rows_takes_16() -> None:
    """And so does one of a cell so wide; those beside it may take 32."""
    found = [
        laid.plan.stacked
        for step in backward_steps(square(512), frozenset(TOTALS), frozenset(), Keep.STORED, all_by(None, 2))
        if step.plan.is_pass and (laid := memory(step.plan, "bf16", H100.shared)) is not None
    ]
    assert found == [1, 2]


def test_tiles_take_no_turns_where_their_ranks_wait_for_each_other_in_memory() -> None:
    """All blocks must run at once: of a larger batch fewer share a tile, and in the end one has it."""
    ways = [chosen(square(384), "bf16", A100, batch) for batch in (16, 128, 432, 880)]
    ranks = [(own := each.forward.cluster) and own.ranks for each in ways]
    assert ranks == [16, 8, 4, None]


def test_a_cell_runs_in_batches_of_every_size_or_in_none() -> None:
    """Blocks that share a tile of a batch of some size may have less room than one."""
    spec, room = square(512), H100._replace(shared=160 << 10)
    assert launch.misfit(spec, "bf16", room) is None
    one = ScanWays(backward=ScanWay(Cluster(8)))
    with mock.patch.object(launch, "chosen", lambda *of: one if of[3] == 128 else BLOCKS):
        assert launch.misfit(spec, "bf16", H100) is None
        assert str(launch.misfit(spec, "bf16", room)).endswith("does not fit into 160 KB of shared memory")
    plan = partial(reverse, spec, on_z=True, on_eps=False)
    assert not priced(plan, "bf16", 98 << 10, ("peers", "memory")), "one block has a tile of a large batch"
    assert priced(plan, "bf16", 100 << 10, ("memory",))


def test_no_rows_need_no_place() -> None:
    """Of a chip that does not run so many blocks at once."""
    prices = ((None, 4000), (Cluster(32, through="memory"), 700))
    assert fastest(prices, 0, A100._replace(together=16).blocks, ((1, 8000),)) == ScanWay()


def test_workers_are_as_many_as_blocks_that_scan() -> None:
    assert workers(8, 8, 128) == 64
    assert workers(9, 8, 128) == 0
    assert workers(1, 1, 132) == 131
    assert workers(67, 1, 132) == 0
    assert workers(0, 1, 132) == 0


@pytest.mark.parametrize("size", [128, 200, 256])
def test_all_weights_of_a_rank_are_on_the_chip(size: int) -> None:
    spec = square(size)
    there, back, _ = chosen(spec, "bf16", H100).clusters
    for plan in (forward(spec, there), reverse(spec, back, on_z=True, on_eps=False)):
        laid = memory(plan, "bf16", H100.shared)
        assert laid is not None
        assert "memory" not in laid.place.values()
        alone = memory(replace(plan, ranks=1), "bf16", H100.shared)
        assert alone is None or alone.streamed > 0


def test_registers_take_as_many_recurrent_weights_as_they_have_room_for() -> None:
    laid = memory(forward(square(384), Cluster(8)), "bf16", H100.shared)
    assert laid is not None
    assert Counter(laid.place.values()) == {"shared": 6, "registers": 2, "memory": 2}
    assert 4 * laid.resident_words == 96


def test_a_particle_filter_stays_in_one_block() -> None:
    assert chosen(square(256, measure="particle_filter"), "bf16", H100) == BLOCKS


def test_a_cluster_without_a_place_leads_to_the_next_tier() -> None:
    """On a part of a chip, such as a half of an H100, or a seventh of it."""
    spec = square(384)
    assert missing(spec, "bf16", H100) is None
    assert missing(spec, "bf16", A100) is None
    half = ScanRoom(H100.shared, 60, {2: 30, 4: 14, 8: 7, 16: 0}.__getitem__)
    assert [own and own.ranks for own in chosen(spec, "bf16", half).clusters] == [8, 8, 8]
    reason = missing(spec, "bf16", half)
    assert reason == "it has no place for a cluster of 16 blocks, so that clusters of up to 8 scan"
    assert missing(square(96), "bf16", half) is None, "which would have no cluster of 16"
    seventh = ScanRoom(H100.shared, 16, {2: 0, 4: 0, 8: 0, 16: 0}.__getitem__)
    assert chosen(spec, "bf16", seventh) == BLOCKS
    reason = missing(spec, "bf16", seventh)
    assert reason == "it has no place for a cluster of 8 or of 16 blocks, so that single blocks scan"
    reason = missing(spec, "bf16", seventh._replace(together=16))
    assert reason is not None
    assert reason.endswith(", so that up to 16 blocks scan that meet in memory")
    reason = missing(spec, "bf16", A100._replace(together=0))
    assert reason == "it does not run all blocks of a launch at once, so that single blocks scan"


def test_weight_gradients_are_cublas_where_ours_would_end_later() -> None:
    """Of many rows, and of a chip and operands whose products by wgmma are twice as fast as by mma.sync."""
    losses, wide = frozenset(TOTALS), square(256)

    def found(spec: CellSpec, *sizes: int, kind: Operand = "bf16", room: ScanRoom = H100) -> bool:
        return are_cublas(spec, losses, kind, room, *sizes)

    assert not found(wide, 128, 128), "workers multiply them beside the scan"
    assert found(wide, 64, 4096)
    assert not found(wide, 64, 4096, kind="tf32")
    assert not found(wide, 64, 4096, room=H100._replace(clusters=None))
    assert not found(wide, 1, 1072), "the launch of each product costs more"
    own = jobs(wide, losses, "bf16")
    ours = squares(len(own.tiles), own.side, 16384, shares(16384), "sm_90")
    assert ours > GAIN * cublas([(int(j[6]), int(j[7])) for j in own.jobs if j[7]], 16384)


def test_one_block_has_a_scan_that_normalises() -> None:
    """Of a cell whose decoder does, the one of generation."""
    spec = square(256, normalized=("decoder",))
    for room in (H100, A100):
        scans = chosen(spec, "bf16", room)
        assert scans.forward.cluster is not None
        assert scans.generate.cluster is None
    with pytest.raises(
        ValueError, match="2 blocks cannot share this scan: layer normalisation adds up a row's columns"
    ):
        alone(spec, Cluster(2), mean=False)


def test_explain_tells_who_scans_and_who_has_the_weights() -> None:
    with mock.patch.multiple(chip, EMULATED_MULTIPROCESSORS=132), mock.patch.object(cuda, "device", "cpu"):
        small, large = cuda.launches(GRU), cuda.launches(square(256))
    assert "cluster" not in small
    assert "fivo of up to 16 particles, the likelihood then inside the scan" in small
    assert "10 of 10 weights in shared memory of each of 8 blocks of a cluster in bf16" in large
    assert "by blocks, or clusters of them, that scan and workers, of up to" in large
    assert "; those of a batch without padding by cuBLAS, behind" in large
    assert "and computes nothing but weight gradients of large batches, by cuBLAS; generate" in large
    assert "with a launch of sums, of 64 steps from 512 rows on in bf16, f16; passes take" in large
    assert (
        "; passes take 16 rows at a time, and 32 from about 128 rows on in tf32, f32 and 256 rows on in bf16" in large
    )
    why = "; single blocks scan for fivo, as the rows of a particle filter exchange their states within one block"
    assert large.endswith(why)
    with mock.patch.object(cuda, "device", "cpu"):
        told = cuda.launches(square(256, normalized=("encoder",)))
    assert told.endswith("; single blocks scan, as layer normalisation adds up a row's columns within one block")
    part = ScanRoom(H100.shared, 16, {2: 8, 4: 4, 8: 0, 16: 0}.__getitem__)
    with mock.patch.object(chip, "room", return_value=part), mock.patch.object(cuda, "device", "cpu"):
        told = cuda.launches(square(256))
    assert "; in bf16 it has no place for a cluster of 8 blocks, so that clusters of up to 4 scan; in f16 it" in told
    whole = mock.patch.multiple(chip, EMULATED_MULTIPROCESSORS=108, room=lambda _: A100)
    with whole, mock.patch.object(cuda, "device", "cpu"):
        told = cuda.launches(square(256))
    assert "by blocks, or several to a tile that meet in memory, that scan and workers, of up to" in told
    assert "of each of 8 blocks that meet in memory in bf16" in told


# ---- the law of errors


CASES: dict[str, tuple[CellSpec, torch.dtype, Cluster | None, dict[str, Any]]] = {
    "gru in float32, ragged": (GRU, torch.float32, Cluster(2, alike=False), {"lengths": RAGGED, "resets": True}),
    "gru in bfloat16, uneven shares": (cell(hidden_size=40), torch.bfloat16, Cluster(4), {"lengths": RAGGED}),
    "lstm of two layers in float16": (LSTM, torch.float16, Cluster(2), {"resets": True}),
    "rnn without a latent variable": (cell(cell="rnn", **FAMILY["no z, the rest"]), torch.float32, Cluster(2), {}),
    "all at once": (
        cell(**FAMILY["all at once"], initial_state=True),
        torch.float32,
        Cluster(2, alike=False),
        {"resets": True, "recompute": True, "mask": True},
    ),
    "weights of the sample": (cell(measure="log_weight", prior=None, cell="rnn"), torch.float32, Cluster(2), {}),
}


@needs_emulator
@pytest.mark.parametrize("case", CASES)
def test_the_law_of_errors_by_clusters(case: str) -> None:
    spec, dtype, cluster, options = CASES[case]
    options = {"lengths": None, **options}
    recompute, errors = options.pop("recompute", False), Errors(dtype)
    with by(cluster):
        for seed in range(4):
            problem = Problem.draw(spec, 3, 5, seed=seed, **options)
            errors.add(
                problem.run(cuda, dtype, recompute=recompute),
                problem.run(reference, dtype),
                problem.run(reference, torch.float64),
            )
    errors.assert_at_most_twice_torchs()


@needs_emulator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cluster_computes_the_bits_of_one_block(dtype: torch.dtype) -> None:
    """So that a row's results do not depend on how large its batch is."""
    problem = Problem.draw(GRU, 3, 5)
    alone = problem.run(cuda, dtype)
    for cluster in (Cluster(2), Cluster(2, alike=False)):
        with by(cluster):
            found = problem.run(cuda, dtype)
        assert not [name for name, t in alone.items() if not torch.equal(found[name], t)]


LARGE: dict[str, tuple[int, torch.dtype, Cluster | None, int, int, bool]] = {
    "96 over 4, forward": (96, torch.bfloat16, Cluster(4), 2, 17, False),
    "128, forward": (128, torch.float16, None, 2, 3, False),
    "200, one step, forward": (200, torch.bfloat16, None, 1, 5, False),
    "256, one row": (256, torch.bfloat16, None, 2, 1, True),
    "384": (384, torch.bfloat16, None, 1, 4, True),
}


def forward_alone(problem: Problem, executor: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    given = {name: t.to(dtype) for name, t in problem.inputs.items()}
    batch = Batch(given["x"], given["eps"], (given["state0"],))
    with torch.no_grad():
        result = executor.run(problem.spec, [given[p.name] for p in problem.spec.parameters()], batch, Want(prior=True))
    return {n: getattr(result, n) for n in ("z", "mean", "std", "kl", "nll", "prior_mean")} | {"h": result.state[0]}


@needs_emulator
@pytest.mark.parametrize("case", LARGE)
def test_the_law_of_errors_of_large_states(case: str) -> None:
    size, dtype, cluster, steps, batch, back = LARGE[case]
    spec, errors, before = square(size, **BARE), Errors(dtype), launch.launches.copy()
    problem = Problem.draw(spec, steps, batch)
    with by(cluster), scans_alone():
        found = (cuda, dtype), (reference, dtype), (reference, torch.float64)
        runs = [problem.run(*of) if back else forward_alone(problem, *of) for of in found]
    assert launch.launches[FORWARD] == before[FORWARD] + 1
    errors.add(*(without_weights(run, spec) for run in runs))
    errors.assert_at_most_twice_torchs()


@needs_emulator
def test_generation_by_a_cluster() -> None:
    for cluster in (Cluster(2), Cluster(3, alike=False)):
        assert_generates(cluster)


@needs_emulator
def test_every_element_is_written_whatever_the_schedule() -> None:
    """Results begin as NaN; no block, and no warp, that runs ahead of its peers or behind them changes a bit."""
    assert_no_schedule_changes_a_bit(Problem.draw(GRU, 3, 20, [3, 1, 0, 2] * 5), Cluster(2, alike=False))


@needs_emulator
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
@pytest.mark.parametrize("ranks", [2, 16])
def test_a_launch_of_clusters(ranks: int) -> None:
    """By the driver: whole clusters, and more than 8 blocks of one where that is allowed first."""
    problem = Problem.draw(cell(cell="rnn", hidden_size=128, phi_z=(), encoder=()), 2, 18)
    with by(Cluster(ranks)):
        expected = forward_alone(problem, cuda, torch.float32)
        with standin_driver.installed() as gpu:
            found = forward_alone(problem, cuda, torch.float32)
    assert not gpu.faults
    assert [(one.grid[0], one.ranks) for one in gpu.launches] == [(16, 1), (3, 1), (2 * ranks, ranks), (3, 1)]
    assert gpu.launches[2].architecture == "sm_90a"
    for name, t in expected.items():
        assert torch.equal(found[name], t), name


# ---- races


RANKS = 2
RACING = {  # with work for several warps of each rank in every visit, lest one warp hands on to itself alone
    "gru": (CellSpec(5, 40, 24, encoder=(40,), phi_z=(40,), **BARE), torch.float32, Cluster(RANKS, alike=False)),
    "lstm": (
        CellSpec(5, 64, 64, "lstm", encoder=(64,), phi_z=(), num_layers=2, **BARE),
        torch.float16,
        Cluster(RANKS, alike=False),
    ),
    "small z": (CellSpec(5, 64, 3, encoder=(64,), phi_z=(5,), **BARE), torch.float32, Cluster(RANKS)),
}


@cache
def recorded(name: str) -> dict[str, Recorded]:
    """The launches of a training step by clusters."""
    spec, dtype, cluster = RACING[name]
    with by(cluster):
        return dict(recording(lambda: Problem.draw(spec, 4, 16).run(cuda, dtype), training(spec)))


def plan_of(name: str, way: str) -> KernelPlan:
    spec, _, cluster = RACING[name]
    return forward(spec, cluster) if way == FORWARD else reverse(spec, cluster, on_z=False, on_eps=True)


def numbers(plan: KernelPlan) -> Iterator[int]:
    """Of barriers, of waits for peers, and of the barrier before the first push."""
    yield from (3 + i for i, visit in enumerate(plan.visits) if visit.barrier)
    yield from range(3 + len(plan.visits), 4 + len(plan.visits) + len(plan.exchanged))


def schedules(without: int) -> Iterator[Schedule]:
    for warp in range(RANKS * WARPS):
        yield Schedule("one behind", warp, late=False, without=without)
        yield Schedule("one ahead", warp, without=without)
    yield Schedule(late=False, without=without)


ALL = [(name, way, n) for name in ("gru", "lstm") for way in SCANS for n in numbers(plan_of(name, way))]


@needs_emulator
@pytest.mark.parametrize(("name", "way", "number"), ALL)
def test_no_wait_and_no_barrier_of_a_cluster_can_be_left_out(name: str, way: str, number: int) -> None:
    assert any(differs(recorded(name)[way], schedule) for schedule in schedules(number))


@needs_emulator
@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("way", SCANS)
def test_with_all_of_them_no_schedule_changes_a_bit(name: str, way: str) -> None:
    assert not any(differs(recorded(name)[way], schedule) for schedule in schedules(-1))


@needs_emulator
def test_one_buffer_is_not_enough() -> None:
    one = recorded("small z")[FORWARD]
    assert not any(differs(one, schedule) for schedule in schedules(-1))
    planted = one._replace(text=one_buffer(one.text))
    assert any(differs(planted, schedule) for schedule in schedules(-1))


@needs_emulator
def test_a_push_before_its_peer_is_ready_is_a_fault() -> None:
    one, plan = recorded("gru")[FORWARD], plan_of("gru", FORWARD)
    without = 3 + len(plan.visits) + len(plan.exchanged)
    schedule = Schedule("one behind", WARPS, without=without)
    with mock.patch.object(emulator, "schedule", schedule), pytest.raises(Fault, match="block 1 has not made"):
        emulator.launch(one.text, *copies(one.given)[0])


@needs_emulator
@needs_setarch
@pytest.mark.parametrize("way", SCANS)
def test_thread_sanitizer_sees_no_race_between_ranks_and_one_that_is_planted(way: str, tmp_path: Path) -> None:
    one = recorded("gru")[way]
    ((_, text, data),) = written(tmp_path, [(way, one)])
    program = compiled(text, data, "thread")
    assert races(program, data, Schedule()) == 0
    assert races(program, data, Schedule(late=False)) == 0
    plan = plan_of("gru", way)
    wait = 3 + len(plan.visits)
    assert races(program, data, Schedule(late=False, without=wait)) > 0
