"""Scans by blocks that exchange operands through memory, on chips without clusters and beyond them: the bits of one
block, the law of errors, and what happens where one of them does not wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

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
    scans_alone,
    without_weights,
)
from tests.support.family import FAMILY
from tests.support.oracle import Errors, Problem
from tests.support.recorded import Recorded, compiled, copies, differs, needs_setarch, races, recording, written
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cuda, reference
from vrnn_fast.executors.cuda import chip, emulator
from vrnn_fast.executors.cuda.cluster import Cluster
from vrnn_fast.executors.cuda.emulator import Schedule
from vrnn_fast.executors.cuda.exchange import early, with_barriers
from vrnn_fast.executors.cuda.forward import forward
from vrnn_fast.executors.cuda.plan import WARPS, KernelPlan
from vrnn_fast.executors.cuda.reverse import reverse
from vrnn_fast.executors.cuda.steps import FORWARD, training

TWO = Cluster(2, alike=False, through="memory")
FOUR = Cluster(4, through="memory")


@pytest.fixture(autouse=True, scope="module")
def launches_apart() -> Iterator[None]:
    """One multiprocessor has no workers beside a scan."""
    with mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", 1):
        yield


# ---- plans


def test_two_buffers_are_enough_whatever_the_cell() -> None:
    """What a visit waits for keeps ranks together, and a barrier lies between what they copy and who reads it."""
    seen, late = 0, list[KernelPlan]()
    for plan in family("memory"):
        assert not list(early(plan))
        assert plan.cluster == 1
        makers = {plan.maker(part) for part in plan.exchanged}
        assert {i for i, visit in enumerate(plan.visits) if plan.publishes(visit)} == makers
        seen += len(makers)
        last = len(plan.visits) - 1  # where none reads any more, so that ranks may come too early
        visits = tuple(replace(v, waits=plan.exchanged if i == last else ()) for i, v in enumerate(plan.visits))
        late.append(replace(plan, visits=visits))
    assert seen > 100
    too_early = [plan for plan in late if next(early(plan), None) is not None]
    with pytest.raises(ValueError, match="does not keep the ranks of a tile together"):
        with_barriers(too_early[0])


# ---- numbers


CASES: dict[str, tuple[CellSpec, torch.dtype, Cluster, dict[str, Any], tuple[int, ...]]] = {
    "gru in float32, ragged": (GRU, torch.float32, TWO, {"lengths": RAGGED, "resets": True}, (1, 8)),
    "gru in bfloat16, more ranks than tiles": (GRU, torch.bfloat16, FOUR, {"lengths": RAGGED}, (1,)),
    "lstm of two layers in float16": (LSTM, torch.float16, TWO, {"resets": True}, (1,)),
    "all at once": (
        *(cell(**FAMILY["all at once"], initial_state=True), torch.float32, TWO),
        {"resets": True, "recompute": True, "mask": True},
        (1,),
    ),
}
"""Cells, and of how many multiprocessors: of one, launches are apart; of more, one has workers beside the scan."""


@needs_emulator
@pytest.mark.parametrize("case", CASES)
def test_ranks_compute_the_bits_of_one_block(case: str) -> None:
    """And so obey the law of errors as one does."""
    spec, dtype, cluster, options, multiprocessors = CASES[case]
    options = {"lengths": None, **options}
    recompute = options.pop("recompute", False)
    problem = Problem.draw(spec, 3, 18 if options["lengths"] is None else 5, **options)
    alone = problem.run(cuda, dtype, recompute=recompute)
    for count in multiprocessors:
        with by(cluster), mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", count):
            found = problem.run(cuda, dtype, recompute=recompute)
        assert not [name for name, t in alone.items() if not torch.equal(found[name], t)]


@needs_emulator
@pytest.mark.parametrize(("size", "dtype", "cluster"), [(64, torch.bfloat16, FOUR), (100, torch.float16, TWO)], ids=str)
def test_the_law_of_errors_of_wider_states(size: int, dtype: torch.dtype, cluster: Cluster) -> None:
    spec, errors = CellSpec(5, size, 16, **{**BARE, "encoder": (size,), "phi_z": (size,)}), Errors(dtype)
    problem = Problem.draw(spec, 2, 5)
    with by(cluster), scans_alone():
        runs = [problem.run(*of) for of in ((cuda, dtype), (reference, dtype), (reference, torch.float64))]
    errors.add(*(without_weights(run, spec) for run in runs))
    errors.assert_at_most_twice_torchs()


@needs_emulator
def test_generation_through_memory() -> None:
    assert_generates(TWO)


@needs_emulator
def test_every_element_is_written_whatever_the_schedule() -> None:
    """What ranks exchange begins as NaN as well."""
    assert_no_schedule_changes_a_bit(Problem.draw(GRU, 3, 5, RAGGED), TWO)


# ---- races


RACING = CellSpec(5, 40, 24, encoder=(40,), phi_z=(40,), **BARE)


@cache
def recorded() -> dict[str, Recorded]:
    """The launches of a training step."""
    with by(TWO):
        return dict(recording(lambda: Problem.draw(RACING, 4, 16).run(cuda, torch.float32), training(RACING)))


def plan_of(way: str) -> KernelPlan:
    return forward(RACING, TWO) if way == FORWARD else reverse(RACING, TWO, on_z=False, on_eps=True)


def numbers(way: str) -> Iterator[tuple[str, int]]:
    """What may be left out: barriers of visits, and four that csrc/cuda/scan/memory.h numbers by visits, behind which
    is what comes before the first one."""
    plan = plan_of(way)
    count, first = len(plan.visits), 3 + len(plan.visits)
    yield from (("barrier", 3 + i) for i, visit in enumerate(plan.visits) if visit.barrier)
    waits = [i for i, visit in enumerate(plan.visits) if visit.waits]
    made = [i for i, visit in enumerate(plan.visits) if plan.publishes(visit)]
    made += [count] * any(map(plan.is_for_next, plan.exchanged))
    for n, (kind, places) in enumerate({"wait": waits, "copied": waits, "pushed": made, "published": made}.items()):
        yield from ((kind, first + n * (count + 1) + i) for i in places)


def schedules(without: int) -> Iterator[Schedule]:
    for warp in range(TWO.ranks * WARPS):
        yield Schedule("one behind", warp, late=False, without=without)
        yield Schedule("one ahead", warp, without=without)
    yield Schedule(late=False, without=without)


ALL = [(way, kind, n) for way in SCANS for kind, n in numbers(way)]


@needs_emulator
@pytest.mark.parametrize(("way", "kind", "number"), ALL)
def test_none_of_what_an_exchange_waits_for_can_be_left_out(way: str, kind: str, number: int) -> None:
    assert any(differs(recorded()[way], schedule) for schedule in schedules(number)), kind


@needs_emulator
@pytest.mark.parametrize("way", SCANS)
def test_with_all_of_them_no_schedule_changes_a_bit(way: str) -> None:
    assert not any(differs(recorded()[way], schedule) for schedule in schedules(-1))


@needs_emulator
def test_one_buffer_in_memory_is_not_enough() -> None:
    """Of one exchange in a step; more would keep ranks apart."""
    spec = cell(cell="rnn", **FAMILY["no z"])
    with by(TWO):
        problem = Problem.draw(spec, 4, 16)
        one = dict(recording(lambda: problem.run(cuda, torch.float32), training(spec)))[FORWARD]
    assert not any(differs(one, schedule) for schedule in schedules(-1))
    text, left = one_buffer(one.text), copies(one.given)
    emulator.launch(text, *left[0], left[1:])
    assert any(differs(Recorded(text, one.given, left), schedule) for schedule in schedules(-1))


@needs_emulator
@needs_setarch
@pytest.mark.parametrize("way", SCANS)
def test_thread_sanitizer_sees_no_race_through_memory_and_one_that_is_planted(way: str, tmp_path: Path) -> None:
    ((_, text, data),) = written(tmp_path, [(way, recorded()[way])])
    program = compiled(text, data, "thread")
    assert races(program, data, Schedule()) == 0
    assert races(program, data, Schedule(late=False)) == 0
    wait = next(n for kind, n in numbers(way) if kind == "wait")
    assert races(program, data, Schedule(late=False, without=wait)) > 0
