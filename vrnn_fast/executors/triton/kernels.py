"""From a plan to a kernel that can be launched: the emitted source in a file, imported, remembered."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

from ...cell.spec import CellSpec
from ...cell.stages import Keep
from ...replacing import replacing
from ..base import Want
from ..cache import cache_directory
from . import emit, pack
from .plan import plan
from .tuning import Config, resident


@lru_cache(maxsize=256)
def forward(spec: CellSpec, config: Config, itemsize: int, stored: tuple[str, ...], mean: bool | None = None) -> Any:
    """The kernel of :func:`forward_source`."""
    return getattr(module(forward_source(spec, config, itemsize, stored, mean)), emit.FORWARD)


@lru_cache(maxsize=256)
def backward(spec: CellSpec, config: Config, itemsize: int, on_z: bool, on_eps: bool) -> Any:
    """The kernel of :func:`backward_source`."""
    return getattr(module(backward_source(spec, config, itemsize, on_z, on_eps)), emit.BACKWARD)


@lru_cache(maxsize=256)
def packing(spec: CellSpec, widest: int, mean: bool | None, reverse: bool) -> Any:
    """The kernel of :func:`packing_source`."""
    return getattr(module(packing_source(spec, widest, mean, reverse)), pack.NAME)


def packing_source(spec: CellSpec, widest: int, mean: bool | None, reverse: bool) -> str:
    """The kernel that lays out the weights of the kernel with this plan."""
    strides = {p.name: p.shape[-1] for p in spec.parameters()}
    return pack.source(plan(spec, widest, mean, reverse=reverse), strides)


def forward_source(
    spec: CellSpec, config: Config, itemsize: int, stored: tuple[str, ...], mean: bool | None = None
) -> str:
    """The forward kernel of a cell whose weights have ``itemsize`` bytes; ``stored`` as in :func:`emit.forward`,
    ``mean`` as in :func:`plan`."""
    cut = plan(spec, config.widest, mean)
    return emit.forward(cut, resident(cut, config, itemsize), stored, ahead=config.ahead, late=config.late)


def backward_source(spec: CellSpec, config: Config, itemsize: int, on_z: bool, on_eps: bool) -> str:
    """The reverse kernel; ``on_z`` and ``on_eps`` as in :func:`emit.backward`."""
    cut = plan(spec, config.widest, reverse=True)
    loaded = resident(cut, config, itemsize)
    return emit.backward(cut, loaded, on_z=on_z, on_eps=on_eps, ahead=config.ahead, late=config.late)


def training_sources(spec: CellSpec, config: Config, itemsize: int) -> tuple[str, str]:
    """Forward and reverse kernel of a training step on the loss alone."""
    there, back = plan(spec, config.widest), plan(spec, config.widest, reverse=True)
    on_z = back.sample is not None and back.sample.z in back.read_after
    forward = forward_source(spec, config, itemsize, there.stored(Keep.STORED, Want()))
    return forward, backward_source(spec, config, itemsize, on_z, on_eps=False)


def generation_source(spec: CellSpec, config: Config, itemsize: int, *, mean: bool) -> str:
    """The kernel of a cell that runs on its own."""
    return forward_source(spec, config, itemsize, ("x",), mean)


@lru_cache(maxsize=512)
def module(source: str) -> ModuleType:
    """The source as an imported module with a file, which the compiler, the interpreter and a debugger read."""
    name = f"vrnn_fast_scan_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    path = cache_directory() / f"{name}.py"
    if not path.exists() or path.read_text() != source:
        with replacing(path) as file:
            file.write(source.encode())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made
