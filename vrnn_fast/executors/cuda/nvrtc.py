"""Compile kernels for a GPU by NVRTC, which needs neither a GPU nor a header of CUDA's; what it made is kept on disk.

Every CUDA build of torch brings NVRTC; the package nvidia-cuda-nvrtc and CUDA's toolkit have it as well.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from ...replacing import replacing
from ..cache import cache_directory
from . import sources
from .sources import CompileError

OPTIONS = ("-std=c++17", f"-I{sources.SOURCE}")


def unavailable() -> str | None:
    """Return None if NVRTC and the kernels' sources are there, else the reason why not. Loads nothing."""
    if not sources.SOURCE.is_dir():
        return f"the sources of its kernels are not in {sources.SOURCE}: install vrnn-fast again"
    if library() is None:
        return 'NVRTC, which compiles its kernels, was not found (pip install "nvidia-cuda-nvrtc")'
    return None


@cache
def library() -> Path | None:
    """Find NVRTC's shared library: of torch's own CUDA version if there are several, else the newest."""
    found = list(
        dict.fromkeys(path for folder in _folders() for path in sorted(folder.glob("libnvrtc*.so*"), key=_major))
    )
    found = [path for path in found if "builtins" not in path.name and "alt" not in path.name]
    own = (torch.version.cuda or "").partition(".")[0]
    return max(found, key=lambda path: (str(_major(path)) == own, _major(path)), default=None)


def _folders() -> Iterator[Path]:
    nvidia = find_spec("nvidia")
    for wheels in [] if nvidia is None else nvidia.submodule_search_locations or ():
        yield from sorted(Path(wheels).glob("*/lib"))
    yield Path(torch.__file__).parent / "lib"
    toolkits = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    yield from (Path(toolkit, folder) for toolkit in toolkits if toolkit for folder in ("lib64", "lib"))


def _major(path: Path) -> int:
    """Read the major number in a library's name; 0 if that has none."""
    number = path.name.partition(".so.")[2].partition(".")[0]
    return int(number) if number.isdigit() else 0


@cache
def _nvrtc() -> ctypes.CDLL:
    path = library()
    if path is None:
        raise CompileError(str(unavailable()))
    loaded = ctypes.CDLL(str(path))
    loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
    return loaded


@cache
def version() -> tuple[int, int]:
    """Read the version of NVRTC: major and minor."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compiled(text: str, architecture: str, what: Literal["PTX", "CUBIN"] = "CUBIN") -> bytes:
    """Compile a kernel's source for an architecture: ``sm_90a``, of PTX ``compute_90``.

    Raises:
        CompileError: in the compiler's words.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    made = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    if made:
        raise CompileError(f"NVRTC: {nvrtc.nvrtcGetErrorString(made).decode()}")
    try:
        options = [option.encode() for option in (f"-arch={architecture}", *OPTIONS)]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if failed:
            said = nvrtc.nvrtcGetErrorString(failed).decode()
            log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            by = f"NVRTC {'.'.join(map(str, version()))} ({library()})"
            raise CompileError(f"{by} does not compile a kernel for {architecture}: {said}\n{log}")
        return _read(program, what)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, result: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(_nvrtc(), f"nvrtcGet{result}Size")(program, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    getattr(_nvrtc(), f"nvrtcGet{result}")(program, found)
    return found.raw


def cubin(text: str, architecture: str) -> bytes:
    """Return the machine code of a kernel, compiled unless it is on disk; what is damaged there is compiled anew.

    Raises:
        CompileError: in the compiler's words.
    """
    key = hashlib.sha256(repr((sources.digest(), version(), OPTIONS[0], architecture, text)).encode()).hexdigest()[:24]
    path = cache_directory() / f"cuda_{architecture}_{key}.cubin"
    found = _checked(path)
    if found is None:
        found = compiled(text, architecture)
        with suppress(OSError), replacing(path) as file:  # what cannot be kept is compiled again
            file.write(hashlib.sha256(found).digest() + found)
    return found


def _checked(path: Path) -> bytes | None:
    """Read the machine code in a file; None if there is none, or not all of it."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    check, found = whole[:32], whole[32:]
    return found if hashlib.sha256(found).digest() == check else None
