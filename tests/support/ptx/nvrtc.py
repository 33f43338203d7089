"""The CUDA executor with its launches executed as NVRTC compiles them: CPU tensors, PTX of a chip, the interpreter."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vrnn_fast.executors.cuda import emulator, nvrtc

from .machine import run
from .memory import Memory
from .report import Report
from .text import parse


@lru_cache(maxsize=64)
def compiled(text: str, chip: str) -> str:
    """The PTX of a kernel's source.

    Raises:
        CompileError: the compiler refuses it, in the compiler's words.
    """
    return nvrtc.compiled(text, f"compute_{chip.removeprefix('sm_')}", "PTX").decode().rstrip("\0")


@contextmanager
def executed(chip: str = "sm_90", *, edit: Callable[[str], str] = str) -> Iterator[list[Report]]:
    """Within, each launch of the CUDA executor runs as it is compiled for that chip, after ``edit`` has changed its
    text. Holds a report of each."""
    reports: list[Report] = []

    def launch(text: str, tensors: Sequence[Tensor | None], numbers: Sequence[int]) -> None:
        kernel = parse(edit(compiled(text, chip)))
        memory, places = Memory(), dict[int, int]()
        side_by_side = _together(memory, tensors) if "rows/pack.h" in text else None
        pointers = side_by_side or [_place(memory, places, i, tensor) for i, tensor in enumerate(tensors)]
        arguments = struct.pack(f"{len(pointers)}Q{len(numbers)}i0Q", *pointers, *numbers)
        (parameter,) = kernel.parameters
        shared = int(re.findall(r"shared_bytes = (\d+);", text)[0])
        reports.append(run(kernel, numbers[0], {parameter: arguments}, memory, dynamic_shared=shared))
        if side_by_side is not None:
            _apart(memory, side_by_side, tensors)

    with mock.patch.object(emulator, "launch", launch):
        yield reports


def _together(memory: Memory, tensors: Sequence[Tensor | None]) -> list[int]:
    """The addresses of copies of all tensors in one piece of memory: lanes may reach for several at once."""
    starts, end = list[int](), 0
    for t in tensors:
        starts.append(end)
        end += 0 if t is None else -(-t.numel() * t.element_size() // 256) * 256
    whole = np.zeros(end, np.uint8)
    for start, t in zip(starts, tensors, strict=True):
        if t is not None:
            whole[start : start + t.numel() * t.element_size()] = _bytes(t)
    base = memory.add("all tensors", whole)
    return [0 if t is None else base + start for start, t in zip(starts, tensors, strict=True)]


def _apart(memory: Memory, pointers: Sequence[int], tensors: Sequence[Tensor | None]) -> None:
    """What a launch has left in such copies goes where it belongs."""
    whole = memory.regions[0]
    for pointer, t in zip(pointers, tensors, strict=True):
        if t is not None:
            start, own = pointer - whole.base, _bytes(t)
            own[:] = whole.content[start : start + own.size]


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Of a contiguous tensor, in place."""
    found: NDArray[np.uint8] = tensor.detach().view(-1).view(torch.uint8).numpy()
    return found


def _place(memory: Memory, places: dict[int, int], index: int, tensor: Tensor | None) -> int:
    """The address of a tensor; those that share their first byte share it."""
    if tensor is None or not tensor.numel():
        return 0
    if tensor.data_ptr() not in places:
        assert tensor.is_contiguous()
        kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits: Any = tensor.detach().view(kinds[tensor.element_size()]).numpy()
        places[tensor.data_ptr()] = memory.add(f"pointer {index} {tuple(tensor.shape)}", bits)
    return places[tensor.data_ptr()]
