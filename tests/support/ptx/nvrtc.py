"""The CUDA executor with its launches executed as NVRTC compiles them: CPU tensors, PTX of a chip, the interpreter."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from vrnn_fast.executors.cuda import build, emulator

from .machine import run
from .memory import Memory
from .report import Report
from .text import parse

ROWS = 16  # of the batch in a block: csrc/cuda/scan/program.h


def library() -> Path | None:
    """NVRTC, where a wheel of NVIDIA's has put it."""
    spec = find_spec("nvidia")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    return next((p for folder in folders for p in folder.glob("*/lib/libnvrtc.so.*")), None)


@lru_cache(maxsize=64)
def compiled(text: str, chip: str) -> str:
    """The PTX of a kernel's source.

    Raises:
        RuntimeError: the compiler refuses it, in the compiler's words.
    """
    return built(text, f"compute_{chip.removeprefix('sm_')}", "PTX").decode().rstrip("\0")


def built(text: str, architecture: str, what: str) -> bytes:
    """What NVRTC makes of a kernel's source, ``"PTX"`` or ``"CUBIN"``, without a GPU and without a header of CUDA's.

    Raises:
        RuntimeError: the compiler refuses it, in the compiler's words.
    """
    path = library()
    assert path is not None
    nvrtc, program = ctypes.CDLL(str(path)), ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    options = [f"-arch={architecture}".encode(), b"-std=c++17", f"-I{build.SOURCE}".encode()]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))

    def read(result: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{result}Size")(program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{result}")(program, found)
        return found.raw

    said = read("ProgramLog" if failed else what)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(said.decode())
    return said


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
