"""One launch each way, by blocks or clusters that scan and workers beside them: who waits, waits long enough, and not
for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.executors.cuda.cells import FILTER, GRU, LSTM, cell
from tests.support.family import FAMILY
from tests.support.oracle import Problem
from tests.support.recorded import (
    Recorded,
    compiled,
    copies,
    differs,
    needs_setarch,
    races,
    recording,
    replayed,
    written,
)
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cuda, rows
from vrnn_fast.executors.cuda import build, chip, crew, emulator, launch, sources, weights
from vrnn_fast.executors.cuda.cluster import Cluster
from vrnn_fast.executors.cuda.emulator import Fault, Schedule
from vrnn_fast.executors.cuda.kernels import PlannedKernel, program
from vrnn_fast.executors.cuda.plan import stacked
from vrnn_fast.executors.cuda.steps import PlannedLaunch, all_by

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")

WHOLE = "all of forward", "all of backward"
MULTIPROCESSORS = {"blocks": 5, "clusters": 8, "memory": 8, "32 rows": 5}
"""Two tiles by a block or by two; and three or four work, who take 16 rows at a time but in the last case."""
STACKED = {"32 rows": 2}
CLUSTERS = {"clusters": Cluster(2, alike=False), "memory": Cluster(2, alike=False, through="memory")}
RAGGED = [4, 1, 0, 4, 3] * 4
NUMBERS = {  # of csrc/cuda/rows/crew.h, but of the barrier before a scan's number: no plan of today needs it
    WHOLE[0]: (900, 901, 902, 903, 906, 908),
    WHOLE[1]: (900, 901, 902, 903, 904, 905, 906, 908),
}
PUBLISHED = 909, 910


@pytest.fixture(autouse=True, scope="module")
def a_small_chip() -> Iterator[None]:
    """With several looks in a scan, and several shares of weight gradients. Memory begins as zeros, lest an order of
    rows that nobody has written leads out of it."""

    def cleared(like: Tensor, shape: tuple[int, ...], fill: float | None = None, *rest: Any) -> Tensor:
        return rows.allocate(like, shape, fill, *rest).fill_(fill or 0)

    with (
        mock.patch.object(launch, "allocate", cleared),
        mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", MULTIPROCESSORS["blocks"]),
        mock.patch.object(crew, "LOOKS", (2,)),
        mock.patch.object(weights, "ROWS_OF_A_SHARE", 30),
    ):
        yield


@contextmanager
def by(name: str) -> Iterator[None]:
    """All scans by blocks, or by two to a tile, which exchange all that they can."""
    ways = all_by(CLUSTERS.get(name), STACKED.get(name, 1))
    with (
        mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", MULTIPROCESSORS[name]),
        mock.patch.object(launch, "chosen", return_value=ways),
    ):
        yield


def schedules(name: str, without: int = -1) -> Iterator[Schedule]:
    for block in range(MULTIPROCESSORS[name]):
        yield Schedule("ahead", -1 - block, without=without)
        yield Schedule("behind", -1 - block, without=without)
    for warp in (0, 7):
        yield Schedule("ahead", warp, without=without)
        yield Schedule("behind", warp, without=without)
    for seed in (1, 2):
        yield Schedule("random", seed=seed, without=without)
    yield Schedule(late=False, without=without)


@cache
def recorded(name: str = "blocks") -> dict[str, Recorded]:
    problem = Problem.draw(GRU, 4, len(RAGGED), RAGGED)
    with by(name):
        return dict(recording(lambda: problem.run(cuda, torch.float32), WHOLE))


@pytest.mark.parametrize("name", MULTIPROCESSORS)
@pytest.mark.parametrize(
    ("way", "number"), [(way, number) for way, own in NUMBERS.items() for number in (*own, *PUBLISHED)]
)
def test_no_wait_and_no_number_published_can_be_left_out(name: str, way: str, number: int) -> None:
    assert any(differs(recorded(name)[way], schedule) for schedule in schedules(name, number))


@pytest.mark.parametrize("name", MULTIPROCESSORS)
@pytest.mark.parametrize("way", WHOLE)
def test_no_schedule_changes_a_bit(name: str, way: str) -> None:
    assert not any(differs(recorded(name)[way], schedule) for schedule in schedules(name))


def by_one_rank(text: str) -> str:
    """Plant a fault: of a cluster, the first block alone publishes its steps."""
    return text.replace("device::present(steps_published)", "device::block() % ranks == 0")


def test_all_blocks_of_a_cluster_are_waited_for() -> None:
    """Which the memory of a GPU asks for. Here one of them would be enough: a peer's results lie in memory before it
    pushes what this block needs to go on."""
    one = recorded("clusters")[WHOLE[0]]
    text = (sources.SOURCE / "rows" / "crew.h").read_text().replace("#pragma once", "")
    given, planted = copies(one.given), by_one_rank(text)
    assert planted != text
    fault = one.text.replace('#include "rows/crew.h"\n', planted)
    assert fault != one.text
    with pytest.raises(Fault, match=r"threads wait: .* at wait_for"):
        emulator.launch(fault, *given[0], given[1:])


def test_a_share_waits_for_the_tile_in_which_its_last_step_ends() -> None:
    """Of so many workers that whoever multiplies a share has waited for no other: the 28 rows of step 1 end in the tile
    in which those of step 2 begin, and in a ragged batch the first of them lie there."""
    spec, multiprocessors = CellSpec(2, 3, 1, phi_x=(2,), phi_z=(), encoder=(), prior=(), decoder=()), 48
    problem = Problem.draw(spec, 3, 28, [2] * 4 + [3] * 24)
    with by("blocks"), mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", multiprocessors):
        one = dict(recording(lambda: problem.run(cuda, torch.float32), WHOLE))[WHOLE[1]]
    assert not any(differs(one, Schedule("behind", -1 - block)) for block in range(multiprocessors))


def test_a_number_that_nobody_publishes_is_said_to_be_missing() -> None:
    """In the emulator; on a GPU a wait ends after so many looks, and the launch fails."""
    one = recorded()[WHOLE[0]]
    given = copies(one.given)
    with mock.patch.object(emulator, "schedule", Schedule(without=910)), pytest.raises(Fault, match="wait_for"):
        emulator.launch(one.text, *given[0], given[1:])


SWEEP = os.environ.get("VRNN_FAST_SANITIZE") == "sweep"


@needs_setarch
@pytest.mark.parametrize(
    ("way", "name"),
    [own for own in product(WHOLE, MULTIPROCESSORS) if SWEEP or own != (WHOLE[0], "memory")],
)
def test_thread_sanitizer_sees_no_race_and_one_that_is_planted(name: str, way: str, tmp_path: Path) -> None:
    """Each of them, with ``VRNN_FAST_SANITIZE=sweep``, and ranks that meet in memory forward as well."""
    ((_, text, data),) = written(tmp_path, [(way, recorded(name)[way])])
    program = compiled(text, data, "thread")
    assert races(program, data, Schedule("behind", -1)) == 0
    for number in NUMBERS[way] if SWEEP else (903,):
        said = replayed(program, data, Schedule(without=number)).stderr  # of a launch that may come to no end
        assert "WARNING: ThreadSanitizer: data race" in said, f"without {number}"


CASES: dict[str, tuple[CellSpec, torch.dtype, int, dict[str, Any]]] = {
    "lstm of two layers in float16": (LSTM, torch.float16, 20, {"resets": True}),
    "particles": (FILTER, torch.float32, 20, {"particles": 4, "mask": True}),
    "all at once": (cell(**FAMILY["all at once"]), torch.float32, 20, {"resets": True}),
    "no phi_x": (cell(phi_x=()), torch.float32, 1, {}),
    "a long product": (cell(prior=(170,), phi_z=(), decoder=()), torch.bfloat16, 20, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_one_launch_leaves_what_many_do(case: str) -> None:
    """To the last bit, whatever the number of workers, and of rows that they take at a time."""
    spec, dtype, batch, options = CASES[case]
    problem, found = Problem.draw(spec, 5, batch, **options), []
    recompute = spec.cond_size > 0
    for count, height in ((1, 1), (4, 1), (1, 2), (6, 2)):
        before = launch.launches.copy()
        ways = mock.patch.object(launch, "chosen", return_value=all_by(None, height))
        with ways, mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", count):
            found.append(problem.run(cuda, dtype, recompute=recompute))
        assert ((launch.launches - before).total() == 2) == (count > 1)
    for name, t in found[0].items():
        assert all(torch.equal(t, other[name]) for other in found[1:]), name


def test_passes_ahead_of_a_scan_may_take_other_numbers_of_rows() -> None:
    """One that has no room for 32: what follows it waits for two of its tiles, and it for half of one."""
    problem, found = Problem.draw(GRU, 5, 20, [t % 6 for t in range(20)]), []
    for small in ((), ("again",), ("before", "after, backward"), ("before", "again", "after, backward")):

        def own(step: PlannedLaunch, *rest: Any, small: tuple[str, ...] = small) -> PlannedKernel:
            return program(step._replace(plan=stacked(step.plan, 1)) if step.name in small else step, *rest)

        ways = mock.patch.object(launch, "chosen", return_value=all_by(None, 2))
        for schedule in (Schedule(), Schedule("behind", -4), Schedule("ahead", -5)):
            with ways, mock.patch.object(launch, "program", own), mock.patch.object(emulator, "schedule", schedule):
                found.append(problem.run(cuda, torch.float32, recompute=True))
    for name, t in found[0].items():
        assert all(torch.equal(t, other[name]) for other in found[1:]), name


def test_clusters_leave_what_blocks_do() -> None:
    """In one launch each way, to the last bit."""
    problem, found = Problem.draw(LSTM, 3, len(RAGGED), [t % 4 for t in RAGGED], resets=True), []
    for name in MULTIPROCESSORS:
        before = launch.launches.copy()
        with by(name):
            found.append(problem.run(cuda, torch.float16))
        assert launch.launches - before == dict.fromkeys(WHOLE, 1)
    for name, t in found[0].items():
        assert torch.equal(found[1][name], t), name


def test_what_is_several_launches_says_why() -> None:
    assert crew.apart(1, 132, True, 100, 1) is None
    assert crew.apart(66, 132, True, 100, 1) is None
    assert str(crew.apart(67, 132, True, 100, 1)).startswith("the batch is 67 tiles of rows, and of 132 blocks at once")
    assert crew.apart(1, 132, False, 100, 1) == "this GPU does not run all blocks of a launch at once"
    assert crew.apart(8, 128, True, 100, 8) is None
    wide = "the batch is 8 tiles of rows of 16 blocks each, and of 128 blocks at once half are for what waits"
    assert crew.apart(8, 128, True, 100, 16) == wide
    assert crew.apart(1, 132, True, 5000, 1) == "its kernel would be given 5000 bytes, and takes 4096"
