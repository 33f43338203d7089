"""The primitives of the CUDA device layer as compiled: executed in the interpreter of PTX, and on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vrnn_fast.executors.cuda import driver, nvrtc

from .ptx.machine import run
from .ptx.memory import Memory
from .ptx.text import parse

FOLDER = Path(__file__).parents[1] / "executors" / "cuda"
KINDS = {1: "tf32", 2: "bf16", 3: "f16"}
Argument = NDArray[Any] | int


class Entry(NamedTuple):
    """A kernel of primitives.cu, and how tests/executors/cuda/primitives.cpp launches it."""

    function: str
    blocks: int
    threads: int
    shared: int


def entry(name: str, arguments: Sequence[Any]) -> tuple[Entry, list[Argument]]:
    """Return what a call of primitives.cpp launches, and with what."""
    first, *rest = arguments
    match name:
        case "mma":
            return Entry(f"mma_{KINDS[first]}", 1, 32, 0), rest
        case "load_matrices":
            function = f"load_matrices{'_transposed' if rest[0] else ''}_{first}"
            return Entry(function, 1, 32, 512), rest[1:]
        case "shuffle_xor":
            return Entry(name, 1, 64, 0), [first, *rest]
        case "barrier":
            return Entry(name, 1, 256, 4), [first]
        case "named_barrier":
            return Entry(name, 1, 256, 1024), [first]
        case "copy_async":
            return Entry(f"copy_async_{first}", 1, 64, 2048), rest
        case "publish":
            return Entry(name, 3, 32, 0), [first, *rest]
        case "exchange":
            return Entry(f"exchange_{first}", 8, 64, 1024), rest
        case "read_peer":
            return Entry(name, 8, 64, 1024), [first, *rest]
        case "convert":
            return Entry(name, 1, first, 0), rest
    raise LookupError(f"primitives.cu has no {name}")


@cache
def source(name: str) -> str:
    """Return primitives.cu or primitives.cpp with the header in it: what is compiled is kept by its text."""
    header = (FOLDER / "primitives.h").read_text().replace("#pragma once\n", "")
    return (FOLDER / name).read_text().replace('#include "primitives.h"\n', header)


@cache
def _ptx() -> str:
    return nvrtc.compiled(source("primitives.cu"), "compute_90", "PTX").decode().rstrip("\0")


def interpreted(name: str, *arguments: Any) -> str:
    """Execute the PTX of a primitive for sm_90; "", or what went wrong."""
    chosen, given = entry(name, arguments)
    kernel, memory = parse(_ptx(), chosen.function), Memory()
    values = [a if isinstance(a, int) else memory.add(f"argument {i}", a) for i, a in enumerate(given)]
    parameters = dict(zip(kernel.parameters, values, strict=True))
    report = run(kernel, chosen.blocks, parameters, memory, dynamic_shared=chosen.shared, threads=chosen.threads)
    return "; ".join(map(str, report.races))


def on_gpu(name: str, *arguments: Any) -> str:
    """Launch a primitive on GPU 0; "", or an exception."""
    chosen, given = entry(name, arguments)
    device = torch.device("cuda", 0)
    there = [a if isinstance(a, int) else torch.from_numpy(a.view(np.uint8).reshape(-1)).to(device) for a in given]
    torch.cuda.synchronize(device)
    library, module, function = driver.library(), ctypes.c_void_p(), ctypes.c_void_p()
    slots = [ctypes.c_int(v) if isinstance(v, int) else ctypes.c_void_p(v.data_ptr()) for v in there]
    pointers = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(slot) for slot in slots))
    with driver._current(0):
        image = nvrtc.compiled(source("primitives.cu"), driver.chip(0).architecture)
        _right(library.cuModuleLoadData(ctypes.byref(module), image), "cuModuleLoadData")
        _right(library.cuModuleGetFunction(ctypes.byref(function), module, chosen.function.encode()), chosen.function)
        how = driver.configuration(chosen.blocks, chosen.shared, driver.stream(0), threads=chosen.threads)
        code = library.cuLaunchKernelEx(ctypes.byref(how), function, ctypes.addressof(pointers), None)
        _right(code, f"launch of {chosen.function}")
    torch.cuda.synchronize(device)
    for array, tensor in zip(given, there, strict=True):
        if isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor):
            array.view(np.uint8).reshape(-1)[:] = tensor.cpu().numpy()
    return ""


def _right(code: int, what: str) -> None:
    driver._check(driver.library(), code, what)
