"""The CUDA executor with its launches executed as NVRTC compiles them: CPU tensors, PTX of a chip, the interpreter."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from vrnn_fast.executors.cuda import emulator, nvrtc

from .machine import run
from .memory import Memory
from .report import Report
from .text import parse

ROWS = 16  # of the batch in a block: csrc/cuda/scan/program.h


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
        pointers = [_place(memory, places, i, tensor) for i, tensor in enumerate(tensors)]
        arguments = struct.pack(f"{len(pointers)}Q{len(numbers)}i", *pointers, *numbers)
        (parameter,) = kernel.parameters
        grid, shared = -(-numbers[1] // ROWS), int(re.findall(r"shared_bytes = (\d+);", text)[0])
        reports.append(run(kernel, grid, {parameter: arguments}, memory, dynamic_shared=shared))

    with mock.patch.object(emulator, "launch", launch):
        yield reports


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
