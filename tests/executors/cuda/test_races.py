"""Races in the CUDA kernels: every barrier and wait is needed, and somebody notices if it is not there."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.support.family import DEEP
from tests.support.oracle import Problem
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cuda
from vrnn_fast.executors.cuda import build, emulator
from vrnn_fast.executors.cuda.emulator import Fault, Schedule
from vrnn_fast.executors.cuda.forward import forward
from vrnn_fast.executors.cuda.plan import WARPS, Plan
from vrnn_fast.executors.cuda.reverse import reverse

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")

SPEC = CellSpec(5, 19, 3, **DEEP)
FIRST_VISIT = (
    3  # of csrc/cuda/scan/kernel.h, behind the waits for weights and for a step's inputs and the first barrier
)
PLANS = {"forward": forward(SPEC), "backward": reverse(SPEC, on_z=True, on_eps=True)}


def numbers(plan: Plan) -> Iterator[int]:
    """Of a kernel's waits and barriers."""
    yield from range(FIRST_VISIT) if plan.barrier_first else (FIRST_VISIT - 1,)
    yield from (FIRST_VISIT + i for i, visit in enumerate(plan.visits) if visit.barrier)


def schedules(without: int) -> Iterator[Schedule]:
    for warp in range(WARPS):
        yield Schedule("ahead", warp, without=without)
        yield Schedule("behind", warp, without=without)
    yield Schedule(late=False, without=without)


@cache
def problem() -> Problem:
    """A few steps, so that what a step leaves behind is met by the next."""
    return Problem.draw(SPEC, 3, 16)


@cache
def right() -> dict[str, torch.Tensor]:
    return problem().run(cuda, torch.float32)


def notices(way: str, schedule: Schedule) -> bool:
    """Whether a run is wrong, or refused, if one of the two launches has this schedule."""
    launch = emulator.launch
    calls = iter(("forward", "backward"))

    def planted(*arguments: object) -> None:
        with mock.patch.object(emulator, "schedule", schedule if next(calls) == way else Schedule()):
            launch(*arguments)  # type: ignore[arg-type]

    with mock.patch.object(emulator, "launch", planted):
        try:
            found = problem().run(cuda, torch.float32)
        except Fault:
            return True
    return any(not torch.equal(found[name], t) for name, t in right().items())


@pytest.mark.parametrize(("way", "number"), [(way, n) for way, plan in PLANS.items() for n in numbers(plan)])
def test_no_wait_and_no_barrier_can_be_left_out(way: str, number: int) -> None:
    assert any(notices(way, schedule) for schedule in schedules(number))


@pytest.mark.parametrize("way", PLANS)
def test_with_all_of_them_no_schedule_changes_a_bit(way: str) -> None:
    assert not any(notices(way, schedule) for schedule in schedules(-1))


# ---- ThreadSanitizer, which sees what no schedule shows


HERE = Path(__file__).parent
COMMON = ["g++", "-std=c++17", f"-I{build.SOURCE}"]


def recorded(folder: Path) -> Iterator[tuple[str, Path]]:
    """The source of each launch of a training step, and a file of what it was given."""
    calls: list[tuple[str, list[Tensor | None], Any]] = []
    launch = emulator.launch

    def record(text: str, tensors: Any, numbers: Any) -> None:
        calls.append((text, [None if t is None else t.clone() for t in tensors], numbers))
        launch(text, tensors, numbers)

    with mock.patch.object(emulator, "launch", record):
        problem().run(cuda, torch.float32)
    for way, (text, tensors, numbers) in zip(PLANS, calls, strict=True):
        data = struct.pack("q", len(tensors))
        for t in tensors:
            raw = b"" if t is None else bytes(t.contiguous().view(torch.uint8).flatten().tolist())
            data += struct.pack("q", -1 if t is None else len(raw)) + raw
        path = folder / way
        path.write_bytes(data + struct.pack("2i", *numbers))
        yield text, path


def compiled(text: str, path: Path, *flags: str) -> Path:
    """The kernel and replay.cpp, with a sanitizer; the emulator, without."""
    kernel, made = path.with_suffix(".cpp"), path.with_suffix(".exe")
    kernel.write_text(text)
    emulated = path.with_name("emulator.o")
    thread = ["-DVRNN_THREAD_SANITIZER"] if "-fsanitize=thread" in flags else []
    if not emulated.exists():
        source = str(build.SOURCE / "device" / "emulator.cpp")
        subprocess.run([*COMMON, *thread, "-O1", "-c", source, "-o", str(emulated)], check=True)
    sources = [str(kernel), str(HERE / "replay.cpp"), str(emulated)]
    subprocess.run([*COMMON, "-O1", "-g1", *flags, *sources, "-o", str(made)], check=True)
    return made


def reports(program: Path, schedule: Schedule) -> int:
    """How many data races ThreadSanitizer sees. It knows no other layout of addresses than that without ASLR."""
    given = (0, schedule.warp, schedule.seed, int(schedule.late), schedule.without)
    command = ["setarch", platform.machine(), "-R", str(program), str(program.with_suffix("")), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"TSAN_OPTIONS": "exitcode=0"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr.count("WARNING: ThreadSanitizer: data race")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sanitized")
    return {path.name: compiled(text, path, "-fsanitize=thread") for text, path in recorded(folder)}


@pytest.mark.skipif(shutil.which("setarch") is None, reason="ThreadSanitizer needs setarch")
@pytest.mark.parametrize("way", PLANS)
def test_thread_sanitizer_sees_no_race_and_each_that_is_planted(way: str, sanitized: dict[str, Path]) -> None:
    assert reports(sanitized[way], Schedule()) == 0
    for number in numbers(PLANS[way]):
        if number >= FIRST_VISIT:  # a wait orders a lane and its own copies: not what ThreadSanitizer looks at
            assert reports(sanitized[way], Schedule(without=number)) > 0, f"without barrier {number}"
