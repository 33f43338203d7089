"""From a plan to a kernel that can be launched: the emitted source in a file, imported, remembered."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ...cell.spec import CellSpec
from ...replacing import replacing
from ..cache import cache_directory
from . import accumulate, emit, pack, passes
from .plan import Plan, plan
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
def packing(spec: CellSpec, plans: tuple[Plan, ...]) -> tuple[Any, int, tuple[str, ...]]:
    """The kernel of :func:`packing_source`, how many programs it has, and the parameters that it reads."""
    kernel = getattr(module(packing_source(spec, plans)), pack.NAME)
    return kernel, pack.programs(plans), tuple(pack.parameters(plans))


def packing_source(spec: CellSpec, plans: tuple[Plan, ...]) -> str:
    """The kernel that lays out the weights of the kernels with these plans."""
    return pack.source(plans, _strides(spec))


@lru_cache(maxsize=512)
def rows(name: str, of: passes.Pass, options: passes.RowOptions) -> Any:
    """The kernel of :func:`.passes.source`."""
    return getattr(module(passes.source(name, of, options)), name)


@lru_cache(maxsize=256)
def gradients(spec: CellSpec, scan: Plan, reached: frozenset[str], widest: int) -> tuple[Any, int]:
    """The kernel of :func:`.accumulate.source`, and how many programs it has."""
    source = accumulate.source(scan.program, _strides(spec), reached, widest)
    return getattr(module(source), accumulate.NAME), accumulate.programs(scan.program, widest)


def _strides(spec: CellSpec) -> dict[str, int]:
    return {p.name: p.shape[-1] for p in spec.parameters()}


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


def generation_source(spec: CellSpec, config: Config, itemsize: int, *, mean: bool) -> str:
    """The kernel of a cell that runs on its own."""
    return forward_source(spec, config, itemsize, ("x",), mean)


def source_of(kernel: Any) -> str:
    """The source of a kernel that is here."""
    return Path(sys.modules[kernel.fn.__module__].__file__ or "").read_text()


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
