"""Launch kernels on a GPU, by NVIDIA's driver. Not yet run on one: only against a driver that tests put in its place.

A kernel is compiled, loaded and told its shared memory once in a process and device. From then on a launch allocates
nothing and waits for nothing, so that it may be a part of a CUDA graph.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import nvrtc
from .cluster import PORTABLE
from .header import clustered

THREADS = 256  # of a block: the warps of plan.py
FUNCTION = b"vrnn_scan"
MOST_COMPILERS = 8  # at a time
_MAJOR, _MINOR, _SHARED, _MULTIPROCESSORS, _COOPERATIVE = 75, 76, 97, 16, 95  # of CUdevice_attribute
_DYNAMIC_SHARED, _LARGE_CLUSTERS = 8, 14  # of CUfunction_attribute
_COOPERATES, _CLUSTER = 2, 4  # of CUlaunchAttributeID
_NO_SUCH_CLUSTER = 912  # CUDA_ERROR_INVALID_CLUSTER_SIZE
_ADVICE = {
    2: "the GPU has no memory left: a smaller batch, or recompute=True",
    100: "no GPU is visible (CUDA_VISIBLE_DEVICES)",
    200: "the driver does not know what this NVRTC makes: update the driver, or install the NVRTC of its CUDA version",
    209: "the driver does not know what this NVRTC makes: update the driver, or install the NVRTC of its CUDA version",
    700: "a fault of ours: the process must be started anew, and backend='reference' runs the model; please report it",
    701: "a fault of ours: backend='reference' runs the model; please report it",
    716: "a fault of ours: the process must be started anew, and backend='reference' runs the model; please report it",
    719: "a fault of ours, or a block has waited for another in vain: the process must be started anew, and "
    "backend='reference' runs the model; please report it",
    720: "something else holds multiprocessors of it; with the GPU to itself the kernel is launched",
}


class DriverError(RuntimeError):
    """What the driver said."""


class Kernel(NamedTuple):
    """A kernel: what it is in words, its source, bytes of shared memory of a block, blocks of a cluster, whether blocks
    wait for each other."""

    name: str
    text: str
    shared: int
    ranks: int = 1
    cooperative: bool = False


class NvidiaChip(NamedTuple):
    """What a device has.

    Attributes:
        capability: of computing, major and minor.
        shared: bytes of shared memory that one block may have.
        multiprocessors: how many.
        cooperative: whether the driver promises that all blocks of a launch run at once.
    """

    capability: tuple[int, int]
    shared: int
    multiprocessors: int
    cooperative: bool

    @property
    def architecture(self) -> str:
        """As compilers call it, ``sm_90a``: with all that this chip alone has, from Hopper on."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: what a launch asks for, and a union of 64 bytes."""

    _fields_ = (("number", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_uint * 16))


class Configuration(ctypes.Structure):
    """CUlaunchConfig: how a kernel is launched."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


def configuration(
    blocks: int, shared: int, on: int, *, threads: int = THREADS, ranks: int = 1, cooperative: bool = False
) -> Configuration:
    """Say how a kernel is launched on a stream: so many blocks, in clusters of so many, all of them at once or not."""
    asked: list[tuple[int, tuple[int, ...]]] = [(_COOPERATES, (1,))] if cooperative else []
    asked += [(_CLUSTER, (ranks, 1, 1))] if ranks > 1 else []
    attributes = (_Attribute * len(asked))()
    for attribute, (number, value) in zip(attributes, asked, strict=True):
        attribute.number, attribute.value[: len(value)] = number, value
    return Configuration((blocks, 1, 1), (threads, 1, 1), shared, on, attributes, len(asked))


@cache
def library() -> ctypes.CDLL:
    """Load the driver and begin it.

    Raises:
        DriverError: it is not there, or does not begin.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"NVIDIA's driver was not found: {error}") from None
    for function in (driver.cuGetErrorName, driver.cuGetErrorString):
        function.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    driver.cuModuleLoadData.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    driver.cuModuleGetFunction.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
    driver.cuFuncSetAttribute.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    driver.cuStreamIsCapturing.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    pointers = [ctypes.c_void_p] * 3  # to a function, to its arguments, to more
    driver.cuLaunchKernelEx.argtypes = [ctypes.POINTER(Configuration), *pointers]
    driver.cuMemsetD8Async.argtypes = [ctypes.c_void_p, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p]
    occupancy = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
    occupancy.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    clusters = driver.cuOccupancyMaxActiveClusters
    clusters.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_void_p, ctypes.POINTER(Configuration)]
    _check(driver, driver.cuInit(0), "NVIDIA's driver does not begin")
    return driver


def _check(driver: ctypes.CDLL, code: int, what: str) -> None:
    """Raise what the driver says of this code, unless all went well."""
    if code:
        said = []
        for function in (driver.cuGetErrorName, driver.cuGetErrorString):
            words = ctypes.c_char_p()
            function(code, ctypes.byref(words))
            said.append((words.value or b"unknown").decode())
        advice = f". {_ADVICE[code]}" if code in _ADVICE else ""
        raise DriverError(f"{what}: {said[0]} ({code}), {said[1]}{advice}")


@cache
def chip(index: int) -> NvidiaChip:
    """Tell what a device has, by its number.

    Raises:
        DriverError: there is none.
    """
    driver, device, value = library(), ctypes.c_int(), ctypes.c_int()
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), index), f"there is no GPU {index}")

    def attribute(number: int) -> int:
        code = driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        _check(driver, code, f"GPU {index} does not tell its attribute {number}")
        return value.value

    capability, sizes = (attribute(_MAJOR), attribute(_MINOR)), (attribute(_SHARED), attribute(_MULTIPROCESSORS))
    return NvidiaChip(capability, *sizes, bool(attribute(_COOPERATIVE)))


def stream(index: int) -> int:
    """Return torch's current stream on a device."""
    return int(torch.cuda.current_stream(index).cuda_stream)


Struct = tuple[Sequence[Tensor | None], Sequence[int]]  # of a kernel's argument: pointers, and numbers behind them


def structs(parts: Iterable[Struct]) -> bytes:
    """Lay out a kernel's argument: structs one behind the other, padded as C++ pads them."""
    found = b""
    for tensors, numbers in parts:
        pointers = [0 if t is None else t.data_ptr() for t in tensors]
        found += struct.pack(f"{len(pointers)}P{len(numbers)}i0P", *pointers, *numbers)
    return found


def resident(index: int, kernel: Kernel) -> int:
    """Count the blocks of a kernel that a device runs at once, by its registers and shared memory.

    Raises:
        CompileError: NVRTC does not compile it.
        DriverError: the driver does not take it, or a CUDA graph is captured in which nothing can be loaded.
    """
    driver, count, on = library(), ctypes.c_int(), stream(index)
    with _current(index):
        function = _prepared(index, kernel, on)
        if kernel.ranks > 1:
            how = configuration(kernel.ranks, kernel.shared, on, ranks=kernel.ranks)
            code = driver.cuOccupancyMaxActiveClusters(ctypes.byref(count), function, ctypes.byref(how))
            if code == _NO_SUCH_CLUSTER:
                return 0
            each = kernel.ranks
        else:
            places = ctypes.byref(count), function, THREADS, kernel.shared
            code = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(*places)
            each = chip(index).multiprocessors
    _check(driver, code, f"kernel {kernel.name!r} does not tell how many of its blocks GPU {index} runs at once")
    return count.value * each


@cache
def clusters(index: int, ranks: int) -> int:
    """Count the clusters of so many blocks that a device runs at once, each with all shared memory of a multiprocessor
    to itself.

    Raises:
        CompileError, DriverError: as :func:`resident`.
    """
    return resident(index, Kernel(f"a cluster of {ranks}", _empty(ranks), chip(index).shared, ranks)) // ranks


def _empty(ranks: int) -> str:
    """Write a kernel that does nothing, by clusters of so many blocks."""
    return f"""\
{clustered(ranks)}#include "device/entry.h"
namespace vrnn {{
struct Call {{
    int blocks;
}};
struct Kernel {{
    static constexpr int threads = {THREADS}, blocks = 1, shared = 0, limit = 0;
    static VRNN_DEVICE void run(const Call&) {{}}
}};
}}  // namespace vrnn
VRNN_ENTRY
"""


def launch(index: int, kernel: Kernel, blocks: int, arguments: bytes, cleared: Sequence[Tensor] = ()) -> None:
    """Launch a kernel on torch's current stream of a device.

    Args:
        blocks: of the grid; nothing is launched for none.
        arguments: the one struct that the kernel takes.
        cleared: those that are zeros when it begins.

    Raises:
        CompileError: NVRTC does not compile it.
        DriverError: the driver does not take it, or a CUDA graph is captured in which nothing can be loaded.
    """
    if blocks == 0:
        return
    driver, on = library(), stream(index)
    with _current(index):
        function = _prepared(index, kernel, on)
        given = ctypes.create_string_buffer(arguments, len(arguments))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        for each in cleared:
            code = driver.cuMemsetD8Async(each.data_ptr(), 0, each.nbytes, on)
            _check(driver, code, f"what kernel {kernel.name!r} counts with on GPU {index} was not cleared")
        how = configuration(blocks, kernel.shared, on, ranks=kernel.ranks, cooperative=kernel.cooperative)
        code = driver.cuLaunchKernelEx(ctypes.byref(how), function, ctypes.addressof(parameters), None)
    where = f"kernel {kernel.name!r} ({blocks} blocks, {kernel.shared >> 10} KB of shared memory each) on GPU {index}"
    _check(driver, code, f"{where} was not launched")


@contextmanager
def _current(index: int) -> Iterator[None]:
    """Take the context that torch has on the device."""
    driver = library()
    _check(driver, driver.cuCtxPushCurrent_v2(_context(index)), f"the context of GPU {index} was not taken")
    try:
        yield
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@cache
def _context(index: int) -> ctypes.c_void_p:
    driver, device, context = library(), ctypes.c_int(), ctypes.c_void_p()
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), index), f"there is no GPU {index}")
    code = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(driver, code, f"GPU {index} has no context")
    return context


def refuse_capture(on: int, what: str) -> None:
    """Raise unless something can be loaded now, so that a stream captures no CUDA graph.

    Raises:
        DriverError: it does.
    """
    driver, capturing = library(), ctypes.c_int()
    if driver.cuStreamIsCapturing(on, ctypes.byref(capturing)) or capturing.value:
        raise DriverError(
            f"{what} not there yet, and nothing can be loaded while a CUDA graph is captured: run the same call once "
            "before, on the same device"
        )


_loaded: dict[tuple[int, Kernel], ctypes.c_void_p] = {}


def _prepared(index: int, kernel: Kernel, on: int) -> ctypes.c_void_p:
    """Return the kernel as the driver knows it; the first time, compile and load it."""
    if (index, kernel) not in _loaded:
        refuse_capture(on, f"kernel {kernel.name!r} is")
        _loaded[index, kernel] = _load(index, kernel)
    return _loaded[index, kernel]


def compile_ahead(index: int, kernels: Iterable[Kernel]) -> None:
    """Compile side by side those that are not loaded yet: all that a call is about to launch.

    Raises:
        CompileError: NVRTC does not compile one of them.
        DriverError: a CUDA graph is captured.
    """
    missing = [kernel for kernel in kernels if (index, kernel) not in _loaded]
    if not missing:
        return
    refuse_capture(stream(index), f"kernel {missing[0].name!r} is")
    architecture = chip(index).architecture
    with ThreadPoolExecutor(min(len(missing), MOST_COMPILERS)) as pool:
        list(pool.map(lambda kernel: nvrtc.cubin(kernel.text, architecture), missing))


def _load(index: int, kernel: Kernel) -> ctypes.c_void_p:
    driver, module, function = library(), ctypes.c_void_p(), ctypes.c_void_p()
    found = chip(index)
    if kernel.shared > found.shared:
        raise DriverError(
            f"kernel {kernel.name!r} wants {kernel.shared} bytes of shared memory in a block, and GPU {index} has "
            f"{found.shared}"
        )
    image = nvrtc.cubin(kernel.text, found.architecture)
    by = f"compiled by NVRTC {'.'.join(map(str, nvrtc.version()))} for {found.architecture}"
    code = driver.cuModuleLoadData(ctypes.byref(module), image)
    _check(driver, code, f"kernel {kernel.name!r}, {by}, was not loaded by a driver of CUDA {_version()}")
    code = driver.cuModuleGetFunction(ctypes.byref(function), module, FUNCTION)
    _check(driver, code, f"kernel {kernel.name!r} is not in what was {by}")
    code = driver.cuFuncSetAttribute(function, _DYNAMIC_SHARED, kernel.shared)
    _check(driver, code, f"kernel {kernel.name!r} does not get its {kernel.shared} bytes of shared memory")
    if kernel.ranks > PORTABLE:
        code = driver.cuFuncSetAttribute(function, _LARGE_CLUSTERS, 1)
        _check(driver, code, f"kernel {kernel.name!r} does not get clusters of {kernel.ranks} blocks")
    return function


@lru_cache(maxsize=1)
def _version() -> str:
    number = ctypes.c_int()
    library().cuDriverGetVersion(ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
