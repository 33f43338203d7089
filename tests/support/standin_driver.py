"""A GPU that is not there: NVIDIA's driver as a library of our own, whose launches the emulator runs.

All else is as on a GPU: NVRTC compiles each kernel to machine code, which is kept on disk, loaded, given its shared
memory and launched with one struct. Memory of the device is that of the host.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from vrnn_fast.executors import cuda
from vrnn_fast.executors.cuda import build, chip, driver, nvrtc, steps

STREAM = 0x57
_SOURCE = Path(__file__).parents[1] / "executors" / "cuda" / "standin_driver.cpp"
_LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_int, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_uint),
    *(ctypes.c_void_p, ctypes.c_void_p),
)
_CACHES = driver.chip, driver.clusters, steps.chosen, steps.are_cublas, steps.missing  # of what a chip tells
_LOADED = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class Launched(NamedTuple):
    """What the driver was asked for."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    ranks: int
    shared: int
    stream: int
    architecture: str


@dataclass
class Standin:
    """The driver's other side: what was loaded and launched, and what it shall refuse."""

    driver: ctypes.CDLL
    made: dict[bytes, tuple[str, str]] = field(default_factory=dict)  # source and architecture by machine code
    modules: list[tuple[str, str, int]] = field(default_factory=list)  # and the bytes of the kernel's argument
    launches: list[Launched] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def fail(self, function: str, code: int) -> None:
        """From now on, a function of the driver returns this code."""
        self.driver.standin_fail(function.encode(), code)

    def attribute(self, number: int, value: int) -> None:
        self.driver.standin_attribute(number, value)
        for one in _CACHES:
            one.cache_clear()

    def capture(self, whether: bool) -> None:
        """Begin or end the capture of a CUDA graph."""
        self.driver.standin_capture(int(whether))

    def load(self, image: int) -> int:
        for code, (text, architecture) in self.made.items():
            if ctypes.string_at(image, len(code)) == code:
                self.modules.append((text, architecture, parameter_bytes(code)))
                return len(self.modules) - 1
        return -209

    def launch(
        self, module: int, grid: Any, block: Any, ranks: int, shared: int, stream: int | None, argument: int
    ) -> int:
        text, architecture, _ = self.modules[module]
        compiled = int("".join(re.findall(r"define VRNN_RANKS (\d+)", text)) or 1)
        if ranks != compiled or (ranks > 8 and not self.driver.standin_large_clusters()):
            return 912
        self.launches.append(Launched(tuple(grid[:3]), tuple(block[:3]), ranks, shared, stream or 0, architecture))
        said = _emulated(text)(argument, 0, 0, 1, 1, -1).decode()
        if said:
            self.faults.append(said)
        return 719 if said else 0


@cache
def _emulated(text: str) -> Any:
    function = build.library(text).vrnn_scan
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 2, ctypes.c_uint64, *[ctypes.c_int] * 2]
    return function


@cache
def _library() -> ctypes.CDLL:
    return build.library(_SOURCE.read_text(), ("-Wall", "-Wextra", "-Werror"))


@contextmanager
def installed() -> Iterator[Standin]:
    """Within, CPU tensors are those of a GPU, number 0, whose driver this is."""
    found = Standin(_library())
    cubin = nvrtc.cubin

    def remembered(text: str, architecture: str) -> bytes:
        code = cubin(text, architecture)
        found.made[code] = text, architecture
        return code

    launched, loaded = _LAUNCHED(found.launch), _LOADED(found.load)
    found.driver.standin_begin(launched, loaded)
    open_library = ctypes.CDLL
    patches = [
        mock.patch.object(nvrtc, "cubin", remembered),
        mock.patch.object(chip, "gpu", return_value=0),
        mock.patch.object(driver, "stream", return_value=STREAM),
        mock.patch.object(driver, "_loaded", {}),
        mock.patch.object(cuda, "device", "cpu"),
        mock.patch.object(ctypes, "CDLL", lambda name: found.driver if name == "libcuda.so.1" else open_library(name)),
    ]
    caches = *_CACHES, driver.library, driver._context, driver._version
    for one in patches:
        one.start()
    for one in caches:
        one.cache_clear()
    try:
        yield found
    finally:
        for one in reversed(patches):
            one.stop()
        for one in caches:
            one.cache_clear()
        assert found.driver.standin_contexts() == 0, "a context was left behind"


def parameter_bytes(code: bytes, kernel: str = "vrnn_scan") -> int:
    """The bytes of a kernel's arguments, as its machine code says: an attribute of section .nv.info.<kernel>."""
    (start,) = struct.unpack_from("<Q", code, 40)
    size, count, names = struct.unpack_from("<3H", code, 58)
    headers = [struct.unpack_from("<2I4Q", code, start + i * size) for i in range(count)]
    strings = headers[names][4]

    def name(header: tuple[int, ...]) -> str:
        begin = strings + header[0]
        return code[begin : code.index(b"\0", begin)].decode()

    (section,) = (h for h in headers if name(h) == f".nv.info.{kernel}")
    at, end = section[4], section[4] + section[5]
    while at < end:  # format, attribute, and a value of 16 bits or so many bytes
        kind, attribute, value = struct.unpack_from("<BBH", code, at)
        at += 4
        if kind == 4:
            if attribute == 0x19:  # EIATTR_CBANK_PARAM_SIZE, in case it comes with a size of its own
                return int(struct.unpack_from("<H", code, at)[0])
            at += value
        elif attribute == 0x19:
            return value
    raise LookupError("the machine code does not say how large its arguments are")
