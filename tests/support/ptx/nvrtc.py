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
from torch import Tensor

from vrnn_fast.executors.cuda import emulator, nvrtc
from vrnn_fast.executors.cuda.driver import Struct

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

    def launch(
        text: str, tensors: Sequence[Tensor | None], numbers: Sequence[int], more: Sequence[Struct] = ()
    ) -> None:
        kernel = parse(edit(compiled(text, chip)))
        memory, places = Memory(), dict[int, int]()
        parts = ((tensors, numbers), *more)
        tensors = [t for own, _ in parts for t in own]
        side_by_side = _together(memory, tensors) if "rows/pack.h" in text else None
        pointers = side_by_side or [_place(memory, places, i, tensor) for i, tensor in enumerate(tensors)]
        left, arguments = iter(pointers), b""
        for own, behind in parts:
            arguments += struct.pack(f"{len(own)}Q{len(behind)}i0Q", *(next(left) for _ in own), *behind)
        (parameter,) = kernel.parameters
        shared = max(map(int, re.findall(r"shared_bytes = (\d+)", text)))
        reports.append(run(kernel, numbers[0], {parameter: arguments}, memory, dynamic_shared=shared))
        if side_by_side is not None:
            _apart(memory, side_by_side, tensors)

    with mock.patch.object(emulator, "launch", launch):
        yield reports


def _together(memory: Memory, tensors: Sequence[Tensor | None]) -> list[int]:
    """The addresses of copies of all tensors in one piece of memory: lanes may reach for several at once. What shares
    memory does so there."""
    starts, end = dict[int, int](), 0
    for own in _storages(tensors):
        starts[own.data_ptr()], end = end, end + -(-own.numel() // 256) * 256
    whole = np.zeros(end, np.uint8)
    for own in _storages(tensors):
        whole[starts[own.data_ptr()] :][: own.numel()] = own.numpy()
    base = memory.add("all tensors", whole)
    return [0 if t is None else base + starts.get(t.untyped_storage().data_ptr(), 0) + _offset(t) for t in tensors]


def _apart(memory: Memory, pointers: Sequence[int], tensors: Sequence[Tensor | None]) -> None:
    """What a launch has left in such copies goes where it belongs."""
    whole = memory.regions[0]
    starts = {
        t.untyped_storage().data_ptr(): pointer - _offset(t)
        for pointer, t in zip(pointers, tensors, strict=True)
        if t is not None
    }
    for own in _storages(tensors):
        own.numpy()[:] = whole.content[starts[own.data_ptr()] - whole.base :][: own.numel()]


def _offset(tensor: Tensor) -> int:
    """Bytes from the begin of its storage."""
    return tensor.storage_offset() * tensor.element_size()


def _storages(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The memory of these, as bytes, each piece once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t is not None}
    return [torch.empty(0, dtype=torch.uint8).set_(own) for own in found.values() if own.nbytes()]


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
