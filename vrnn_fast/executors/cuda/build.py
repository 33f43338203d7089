"""Compile kernels for the CPU: with csrc/cuda/emulator in the place of CUDA. Pure but for the disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..cache import cache_directory
from . import sources
from .sources import SOURCE, CompileError

EMULATOR = "".join(f'#include "emulator/{part.name}"\n' for part in sorted((SOURCE / "emulator").glob("*.cpp")))
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-fno-strict-aliasing", f"-I{SOURCE}")


def unavailable() -> str | None:
    """Return None if kernels can be compiled for the emulator and run in it, else the reason why not."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the emulator switches stacks in x86-64 assembly, and this is {platform.machine()}"
    if not SOURCE.is_dir():
        return f"the sources of its kernels are not in {SOURCE}: install vrnn-fast again"
    if shutil.which(_compiler()[0]) is None:
        return f"the emulator compiles with {_compiler()[0]}, which was not found"
    return None


def library(text: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Build a shared library of this C++ and the emulator, if the cache does not have it.

    Raises:
        CompileError: the compiler refuses it.
    """
    path = _compiled("-shared", text, ".so", flags)
    return ctypes.CDLL(str(path))


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


@cache
def _everything() -> bytes:
    """Digest all of the sources that a kernel may include, and who compiles them."""
    version = subprocess.run([*_compiler(), "--version"], capture_output=True, check=True).stdout
    return version + sources.digest().encode()


def _compiled(kind: str, text: str, suffix: str, flags: Sequence[str]) -> Path:
    options = [*FLAGS, *flags]
    key = hashlib.sha256(_everything() + repr((kind, text, options)).encode()).hexdigest()[:24]
    path = cache_directory() / f"emulated_{key}{suffix}"
    if not path.exists():
        objects = [] if kind == "-c" else [str(_emulator(tuple(flags)))]
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # a rename within a file system is atomic
            source, made = Path(folder, "kernel.cpp"), Path(folder, "made")
            source.write_text(text)
            command = [*_compiler(), *options, kind, str(source), *objects, "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CompileError(f"{shlex.join(command)}\n{done.stderr}")
            made.replace(path)
    return path


def _emulator(flags: tuple[str, ...]) -> Path:
    """Compile the emulator itself, once."""
    return _compiled("-c", EMULATOR, ".o", ("-O2", *flags))
