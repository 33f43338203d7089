"""Launches of the CUDA executor, recorded and run once more: in another order of threads, or under a sanitizer."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest import mock

import pytest
import torch
from torch import Tensor

from vrnn_fast.executors.cuda import emulator
from vrnn_fast.executors.cuda.build import EMULATOR
from vrnn_fast.executors.cuda.emulator import Fault, Order, Schedule
from vrnn_fast.executors.cuda.sources import SOURCE

REPLAY = Path(__file__).parents[1] / "executors" / "cuda" / "replay.cpp"
COMMON = ["g++", "-std=c++17", f"-I{SOURCE}"]


Parts = list[tuple[list[Tensor | None], tuple[int, ...]]]  # of a kernel's argument


class Recorded(NamedTuple):
    """A launch: its source, what it was given, and what of that it left behind."""

    text: str
    given: Parts
    left: Parts


def copies(parts: Iterable[tuple[Sequence[Tensor | None], Sequence[int]]]) -> Parts:
    """Tensors that share memory do so again."""
    storages: dict[int, Any] = {}

    def copied(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        own = t.untyped_storage()
        place = storages.setdefault(own.data_ptr(), own.clone()) if own.nbytes() else own
        return torch.empty(0, dtype=t.dtype).set_(place, t.storage_offset(), t.shape, t.stride())

    return [([copied(t) for t in tensors], tuple(numbers)) for tensors, numbers in parts]


def recording(play: Callable[[], object], names: Sequence[str]) -> Iterator[tuple[str, Recorded]]:
    """The launches of a run, which have these names."""
    calls: list[Recorded] = []
    launch = emulator.launch

    def record(text: str, tensors: Any, numbers: Any, more: Any = ()) -> None:
        parts = ((tensors, numbers), *more)
        given = copies(parts)
        launch(text, tensors, numbers, more)
        calls.append(Recorded(text, given, copies(parts)))

    with mock.patch.object(emulator, "launch", record):
        play()
    yield from zip(names, calls, strict=True)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def differs(one: Recorded, schedule: Schedule) -> bool:
    """Whether a launch of this schedule is refused, or leaves other bits behind."""
    given = copies(one.given)
    with mock.patch.object(emulator, "schedule", schedule):
        try:
            emulator.launch(one.text, *given[0], given[1:])
        except Fault:
            return True
    found, right = ([t for tensors, _ in parts for t in tensors] for parts in (given, one.left))
    pairs = zip(found, right, strict=True)
    return any(a is not None and b is not None and not torch.equal(bits(a), bits(b)) for a, b in pairs)


def written(folder: Path, launches: Iterable[tuple[str, Recorded]]) -> Iterator[tuple[str, str, Path]]:
    """The name and the source of each launch, and a file of what it was given: replay.cpp."""
    for i, (way, one) in enumerate(launches):
        tensors = [t for tensors, _ in one.given for t in tensors if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        places, data = list(storages), struct.pack("q", len(storages))
        for own in storages.values():
            data += struct.pack("q", own.nbytes()) + bytes(own.tolist())
        data += struct.pack("q", len(one.given))
        for tensors_, numbers in one.given:
            data += struct.pack("2q", len(tensors_), len(numbers))
            for t in tensors_:
                at = (-1, 0) if t is None else (places.index(t.untyped_storage().data_ptr()), t.storage_offset())
                data += struct.pack("2q", at[0], at[1] * (0 if t is None else t.element_size()))
            data += struct.pack(f"{len(numbers)}i", *numbers)
        path = folder / f"{i}_{way.replace(', ', '_').replace(' ', '_')}"
        path.write_bytes(data)
        yield way, one.text, path


def compiled(text: str, data: Path, sanitizer: str) -> Path:
    """The kernel and replay.cpp, with a sanitizer; the emulator without, but for what ThreadSanitizer must know."""
    folder = data.parent / sanitizer
    folder.mkdir(exist_ok=True)
    kernel, made, emulated = folder / f"{data.name}.cpp", folder / data.name, folder / "emulator.o"
    kernel.write_text(text)
    own = ["-DVRNN_THREAD_SANITIZER"] if sanitizer == "thread" else [f"-fsanitize={sanitizer}"]
    if not emulated.exists():
        source = emulated.with_suffix(".cpp")
        source.write_text(EMULATOR)
        subprocess.run([*COMMON, *own, "-O1", "-c", str(source), "-o", str(emulated)], check=True)
    sources = [str(kernel), str(REPLAY), str(emulated)]
    subprocess.run([*COMMON, "-O1", "-g1", f"-fsanitize={sanitizer}", *sources, "-o", str(made)], check=True)
    return made


def replayed(program: Path, data: Path, schedule: Schedule) -> subprocess.CompletedProcess[str]:
    """ThreadSanitizer knows no other layout of addresses than that without ASLR."""
    given = (get_args(Order).index(schedule.order), schedule.warp, schedule.seed, int(schedule.late), schedule.without)
    command = ["setarch", platform.machine(), "-R", str(program), str(data), *map(str, given)]
    options = {"TSAN_OPTIONS": "exitcode=0", "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=options)


def races(program: Path, data: Path, schedule: Schedule) -> int:
    done = replayed(program, data, schedule)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr.count("WARNING: ThreadSanitizer: data race")


needs_setarch = pytest.mark.skipif(shutil.which("setarch") is None, reason="ThreadSanitizer needs setarch")
