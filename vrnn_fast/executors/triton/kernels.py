"""From a plan to a kernel that can be launched: the emitted source in a file, imported, remembered."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import lru_cache
from types import ModuleType
from typing import Any

from ...spec import CellSpec
from . import emit
from .plan import plan
from .tuning import Config, cache_directory, resident


@lru_cache(maxsize=256)
def forward(spec: CellSpec, config: Config, itemsize: int, stored: tuple[str, ...], mean: bool | None = None) -> Any:
    """The forward kernel of a cell whose weights have ``itemsize`` bytes; ``stored`` as in :func:`emit.forward`,
    ``mean`` as in :func:`plan`."""
    cut = plan(spec, config.widest, mean)
    loaded = resident(cut, config, itemsize)
    source = emit.forward(cut, loaded, stored, ahead=config.ahead, late=config.late)
    return getattr(module(source), emit.FORWARD)


@lru_cache(maxsize=256)
def backward(spec: CellSpec, config: Config, itemsize: int, on_z: bool, on_eps: bool) -> Any:
    """The reverse kernel; ``on_z`` and ``on_eps`` as in :func:`emit.backward`."""
    cut = plan(spec, config.widest, reverse=True)
    loaded = resident(cut, config, itemsize)
    source = emit.backward(cut, loaded, on_z=on_z, on_eps=on_eps, ahead=config.ahead)
    return getattr(module(source), emit.BACKWARD)


@lru_cache(maxsize=512)
def module(source: str) -> ModuleType:
    """The source as an imported module with a file, which the compiler, the interpreter and a debugger read."""
    name = f"vrnn_fast_scan_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    path = cache_directory() / f"{name}.py"
    if not path.exists() or path.read_text() != source:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            file.write(source)
        os.replace(file.name, path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made
