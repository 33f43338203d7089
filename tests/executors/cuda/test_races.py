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

from tests.executors.cuda.cells import GRU, LSTM
from tests.support.oracle import Problem
from vrnn_fast.executors import cuda
from vrnn_fast.executors.cuda import build, emulator
from vrnn_fast.executors.cuda.emulator import Fault, Schedule
from vrnn_fast.executors.cuda.forward import forward
from vrnn_fast.executors.cuda.plan import WARPS, Plan
from vrnn_fast.executors.cuda.reverse import reverse
from vrnn_fast.executors.cuda.sources import SOURCE

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")

FIRST_VISIT = (
    3  # of csrc/cuda/scan/kernel.h, behind the waits for weights and for a step's inputs and the first barrier
)
CELLS = {"gru": (GRU, torch.float32), "lstm": (LSTM, torch.float16)}
PLANS = {
    (name, way): forward(spec) if way == "forward" else reverse(spec, on_z=True, on_eps=True)
    for name, (spec, _) in CELLS.items()
    for way in ("forward", "backward")
}


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
def problem(name: str) -> Problem:
    """A few steps, so that what a step leaves behind is met by the next."""
    return Problem.draw(CELLS[name][0], 3, 16)


def run(name: str) -> dict[str, Tensor]:
    return problem(name).run(cuda, CELLS[name][1])


@cache
def right(name: str) -> dict[str, Tensor]:
    return run(name)


def notices(name: str, way: str, schedule: Schedule) -> bool:
    """Whether a run is wrong, or refused, if one of the two launches has this schedule."""
    launch = emulator.launch
    calls = iter(("forward", "backward"))

    def planted(*arguments: Any) -> None:
        with mock.patch.object(emulator, "schedule", schedule if next(calls) == way else Schedule()):
            launch(*arguments)

    with mock.patch.object(emulator, "launch", planted):
        try:
            found = run(name)
        except Fault:
            return True
    return any(not torch.equal(found[n], t) for n, t in right(name).items())


@pytest.mark.parametrize(("name", "way", "number"), [(*key, n) for key, plan in PLANS.items() for n in numbers(plan)])
def test_no_wait_and_no_barrier_can_be_left_out(name: str, way: str, number: int) -> None:
    assert any(notices(name, way, schedule) for schedule in schedules(number))


@pytest.mark.parametrize(("name", "way"), PLANS)
def test_with_all_of_them_no_schedule_changes_a_bit(name: str, way: str) -> None:
    assert not any(notices(name, way, schedule) for schedule in schedules(-1))


# ---- sanitizers, which see what no schedule shows


HERE = Path(__file__).parent
COMMON = ["g++", "-std=c++17", f"-I{SOURCE}"]


def recorded(folder: Path) -> Iterator[tuple[str, Path]]:
    """The source of each launch of a training step, and a file of what it was given."""
    calls: list[tuple[str, list[Tensor | None], Any]] = []
    launch = emulator.launch

    def record(text: str, tensors: Any, numbers: Any) -> None:
        calls.append((text, [None if t is None else t.clone() for t in tensors], numbers))
        launch(text, tensors, numbers)

    with mock.patch.object(emulator, "launch", record):
        run("gru")
    for way, (text, tensors, numbers) in zip(("forward", "backward"), calls, strict=True):
        data = struct.pack("q", len(tensors))
        for t in tensors:
            raw = b"" if t is None else bytes(t.contiguous().view(torch.uint8).flatten().tolist())
            data += struct.pack("q", -1 if t is None else len(raw)) + raw
        path = folder / way
        path.write_bytes(data + struct.pack("2i", *numbers))
        yield text, path


def compiled(text: str, data: Path, sanitizer: str) -> Path:
    """The kernel and replay.cpp, with a sanitizer; the emulator without, but for what ThreadSanitizer must know."""
    folder = data.parent / sanitizer
    folder.mkdir(exist_ok=True)
    kernel, made, emulated = folder / f"{data.name}.cpp", folder / data.name, folder / "emulator.o"
    kernel.write_text(text)
    own = ["-DVRNN_THREAD_SANITIZER"] if sanitizer == "thread" else [f"-fsanitize={sanitizer}"]
    if not emulated.exists():
        source = str(SOURCE / "device" / "emulator.cpp")
        subprocess.run([*COMMON, *own, "-O1", "-c", source, "-o", str(emulated)], check=True)
    sources = [str(kernel), str(HERE / "replay.cpp"), str(emulated)]
    subprocess.run([*COMMON, "-O1", "-g1", f"-fsanitize={sanitizer}", *sources, "-o", str(made)], check=True)
    return made


def replayed(program: Path, data: Path, schedule: Schedule) -> subprocess.CompletedProcess[str]:
    """ThreadSanitizer knows no other layout of addresses than that without ASLR."""
    given = (0, schedule.warp, schedule.seed, int(schedule.late), schedule.without)
    command = ["setarch", platform.machine(), "-R", str(program), str(data), *map(str, given)]
    options = {"TSAN_OPTIONS": "exitcode=0", "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=options)


def races(program: Path, data: Path, schedule: Schedule) -> int:
    done = replayed(program, data, schedule)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr.count("WARNING: ThreadSanitizer: data race")


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """The source of each launch of a training step, and a file of what it was given."""
    return {data.name: (text, data) for text, data in recorded(tmp_path_factory.mktemp("launches"))}


needs_setarch = pytest.mark.skipif(shutil.which("setarch") is None, reason="ThreadSanitizer needs setarch")


@needs_setarch
@pytest.mark.parametrize("way", ["forward", "backward"])
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
    *whole, steps, batch = struct.unpack(f"{data.stat().st_size - 8}s2i", data.read_bytes())
    longer = data.with_name("longer")
    longer.write_bytes(struct.pack(f"{len(whole[0])}s2i", whole[0], steps + 1, batch))
    done = replayed(program, longer, Schedule())
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
