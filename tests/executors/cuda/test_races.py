"""Races in the CUDA kernels: every barrier and wait is needed, and somebody notices if it is not there.

``make sanitize`` has more cells under the sanitizers (VRNN_FAST_SANITIZE=sweep)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.executors.cuda.cells import FILTER, GRU, LSTM, NORMALISED, cell
from tests.support.family import FAMILY
from tests.support.oracle import Problem
from tests.support.recorded import Recorded, compiled, differs, needs_setarch, races, recording, replayed, written
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors import cuda
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.cuda import build, chip, launch
from vrnn_fast.executors.cuda.emulator import Schedule
from vrnn_fast.executors.cuda.passes import OF_STATES
from vrnn_fast.executors.cuda.plan import TOTALS, WARPS, KernelPlan
from vrnn_fast.executors.cuda.steps import RESULTS, all_by, backward_steps, forward_steps, generation_steps, training

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")

FIRST_VISIT = (
    3  # of csrc/cuda/scan/kernel.h, behind the waits for weights and for a step's inputs and the first barrier
)
CELLS = {
    "gru": (GRU, torch.float32),
    "lstm": (LSTM, torch.float16),
    "particles": (FILTER, torch.float32),
    "normalised": (NORMALISED, torch.float32),
    "32 rows": (GRU, torch.float32),
}
STACKED = {"32 rows": 2}  # whose passes are tried, and nothing else of it
INPUTS = frozenset(("x", "eps", "cond"))
EVERYTHING = frozenset((*TOTALS, *RESULTS, OF_STATES))
PLANS = {
    (name, step.name): step.plan
    for name, (spec, _) in CELLS.items()
    for step in (
        *forward_steps(spec, Keep.STORED, Want(prior=True, raw=True), all_by(None, STACKED.get(name, 1))),
        *backward_steps(spec, EVERYTHING, INPUTS - {"cond"}, Keep.STORED, all_by(None, STACKED.get(name, 1))),
    )
    if step.plan.stacked == STACKED.get(name, 1)
}
WEIGHTS = "weight gradients"


def numbers(plan: KernelPlan) -> Iterator[int]:
    """Of a kernel's waits and barriers."""
    yield from range(FIRST_VISIT) if plan.barrier_first else (FIRST_VISIT - 1,)
    yield from (FIRST_VISIT + i for i, visit in enumerate(plan.visits) if visit.barrier)
    if any(unit.kind == "resample" for unit in plan.units):
        yield from (FIRST_VISIT + len(plan.visits) + i for i in range(2))  # of csrc/cuda/scan/particles.h


ALL = [(*key, n) for key, plan in PLANS.items() for n in numbers(plan)]
ALL += [(name, WEIGHTS, n) for name in CELLS if name not in STACKED for n in (0, 1)]  # of csrc/cuda/rows/weights.h


@pytest.fixture(autouse=True, scope="module")
def one_block_for_all_rows() -> Iterator[None]:
    """A pass then goes from tile to tile, as a scan does from step to step."""
    with mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", 1), mock.patch.object(launch, "MOST_BLOCKS", 1):
        yield


def schedules(without: int) -> Iterator[Schedule]:
    for warp in range(WARPS):
        yield Schedule("ahead", warp, without=without)
        yield Schedule("behind", warp, without=without)
    yield Schedule(late=False, without=without)


@cache
def problem(name: str) -> Problem:
    """A few steps, so that what a step leaves behind is met by the next."""
    return Problem.draw(CELLS[name][0], 3, 16, particles=4 if name == "particles" else 0)


def run(name: str) -> dict[str, Tensor]:
    with mock.patch.object(launch, "chosen", return_value=all_by(None, STACKED.get(name, 1))):
        return problem(name).run(cuda, CELLS[name][1])


@cache
def recorded(name: str) -> dict[str, Recorded]:
    """The launches of a training step."""
    return dict(recording(lambda: run(name), training(CELLS[name][0])))


def notices(name: str, way: str, schedule: Schedule) -> bool:
    """Whether a launch of this schedule is refused, or leaves other bits behind."""
    return differs(recorded(name)[way], schedule)


@pytest.mark.parametrize(("name", "way", "number"), ALL)
def test_no_wait_and_no_barrier_can_be_left_out(name: str, way: str, number: int) -> None:
    assert any(notices(name, way, schedule) for schedule in schedules(number))


@pytest.mark.parametrize(("name", "way"), [*PLANS, *((name, WEIGHTS) for name in CELLS if name not in STACKED)])
def test_with_all_of_them_no_schedule_changes_a_bit(name: str, way: str) -> None:
    assert not any(notices(name, way, schedule) for schedule in schedules(-1))


# ---- sanitizers, which see what no schedule shows


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """The source of each launch of a training step, and a file of what it was given."""
    found = written(tmp_path_factory.mktemp("launches"), recorded("gru").items())
    return {way: (text, data) for way, text, data in found}


def with_more_steps(raw: bytes, one: Recorded) -> bytes:
    """A launch with one step more than its buffers have: the second of the numbers, which come last."""
    (_, (blocks, steps, *others)) = one.given[-1]
    numbers = struct.pack(f"{2 + len(others)}i", blocks, steps + 1, *others)
    return raw[: -len(numbers)] + numbers


@needs_setarch
@pytest.mark.parametrize("way", ["forward", "after, backward", "backward"])
def test_thread_sanitizer_sees_no_race_and_each_that_is_planted(
    way: str, launches: dict[str, tuple[str, Path]]
) -> None:
    text, data = launches[way]
    program = compiled(text, data, "thread")
    assert races(program, data, Schedule()) == 0
    for number in numbers(PLANS["gru", way]):
        if number >= FIRST_VISIT:  # a wait orders a lane and its own copies: not what ThreadSanitizer looks at
            assert races(program, data, Schedule(without=number)) > 0, f"without barrier {number}"


@needs_setarch
def test_address_sanitizer_sees_no_access_outside_and_one_that_is_planted(
    launches: dict[str, tuple[str, Path]],
) -> None:
    text, data = launches["forward"]
    program = compiled(text, data, "address")
    done = replayed(program, data, Schedule())
    assert done.returncode == 0, done.stdout + done.stderr
    longer = data.with_name("longer")
    longer.write_bytes(with_more_steps(data.read_bytes(), recorded("gru")["forward"]))
    done = replayed(program, longer, Schedule())
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def test_address_sanitizer_sees_nothing_on_the_way_back_and_in_generation(tmp_path: Path) -> None:
    """Of another structure; ``make sanitize`` looks at more."""
    play, names = plays(LSTM, torch.bfloat16)
    launches = {"backward": recorded("lstm")["backward"], **dict(recording(play, names))}
    for way, text, data in written(tmp_path, ((way, launches[way]) for way in ("backward", "generate"))):
        done = replayed(compiled(text, data, "address"), data, Schedule("behind", 7))
        assert done.returncode == 0, way + done.stdout + done.stderr


# ---- more cells, each launch of them, under both sanitizers


def trains(spec: CellSpec, dtype: torch.dtype, **options: Any) -> tuple[Callable[[], object], Sequence[str]]:
    """A training step, and the names of its launches."""
    lengths, batch = [i % 4 for i in range(19)] if options.pop("ragged", False) else None, options.pop("batch", 19)
    return lambda: Problem.draw(spec, 3, batch, lengths, **options).run(cuda, dtype), training(spec)


def plays(spec: CellSpec, dtype: torch.dtype) -> tuple[Callable[[], object], Sequence[str]]:
    """Generation."""
    inputs = {name: t.to(dtype) for name, t in Problem.draw(spec, 3, 19).inputs.items()}
    state = tuple(inputs[f"state{i}"] for i in range(spec.state_tensors))
    batch = Batch(torch.rand(3, 19, spec.input_size, dtype=dtype), inputs["eps"], state, cond=inputs.get("cond"))
    parameters = [inputs[p.name] for p in spec.parameters()]
    names = ("pack", *(step.name for step in generation_steps(spec, mean=False)))
    return lambda: cuda.generate(spec, parameters, batch, mean=False), names


def sweep() -> dict[str, tuple[Callable[[], object], Sequence[str]]]:
    all_at_once = cell(**FAMILY["all at once"], initial_state=True)
    return {
        "gru, ragged, in bfloat16": trains(GRU, torch.bfloat16, ragged=True),
        "lstm of two layers in float16": trains(LSTM, torch.float16),
        "all at once, with resets": trains(all_at_once, torch.float32, ragged=True, resets=True, mask=True),
        "normalised": trains(cell(**FAMILY["some normalised"]), torch.float32, ragged=True),
        "weights of the sample": trains(cell(measure="log_weight", prior=None, cell="rnn"), torch.float32),
        "particles": trains(FILTER, torch.float32, particles=3, resets=True, mask=True, batch=21),
        "generation": plays(GRU, torch.float32),
        "generation of an lstm in bfloat16": plays(LSTM, torch.bfloat16),
    }


if os.environ.get("VRNN_FAST_SANITIZE") == "sweep":

    @needs_setarch
    @pytest.mark.parametrize("sanitizer", ["thread", "address"])
    @pytest.mark.parametrize("case", sweep())
    def test_sanitizers_see_nothing_in_any_launch(case: str, sanitizer: str, tmp_path: Path) -> None:
        for way, text, data in written(tmp_path, recording(*sweep()[case])):
            program = compiled(text, data, sanitizer)
            for schedule in (Schedule(), Schedule("ahead", 0), Schedule("behind", 7, late=False)):
                assert races(program, data, schedule) == 0, way
