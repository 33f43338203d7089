"""From phases to a kernel that can be launched: the emitted source in a file, imported, remembered."""

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
from . import accumulate, over_rows, pack, passes, scan
from .phases import Phase, source
from .plan import Plan
from .tuning import Config, resident


@lru_cache(maxsize=256)
def forward(spec: CellSpec, config: Config, itemsize: int, stored: tuple[str, ...], mean: bool | None = None) -> Phase:
    """Return the scan of a cell whose weights have ``itemsize`` bytes; ``stored`` as in :func:`.scan.forward`, ``mean``
    as in :func:`plan`."""
    cut = config.plan(spec, mean)
    return scan.forward(cut, resident(cut, config, itemsize), stored, ahead=config.ahead, late=config.late)


@lru_cache(maxsize=256)
def backward(spec: CellSpec, config: Config, itemsize: int, on_z: bool, on_eps: bool) -> Phase:
    """Return the reverse scan; ``on_z`` and ``on_eps`` as in :func:`.scan.backward`."""
    cut = config.plan(spec, reverse=True)
    loaded, ahead = resident(cut, config, itemsize), config.ahead and not config.forward_only
    return scan.backward(cut, loaded, on_z=on_z, on_eps=on_eps, ahead=ahead, late=config.late)


@lru_cache(maxsize=256)
def packing(spec: CellSpec, plans: tuple[Plan, ...]) -> tuple[Phase, int, tuple[str, ...]]:
    """Return the phase of :func:`.pack.phase`, how many programs it has, and the parameters that it reads."""
    return pack.phase(plans, _strides(spec)), pack.programs(plans), tuple(pack.parameters(plans))


@lru_cache(maxsize=512)
def rows(name: str, of: passes.RowPass, options: over_rows.RowOptions) -> Phase:
    """Return the phase of :func:`.over_rows.phase`."""
    return over_rows.phase(name, of, options)


@lru_cache(maxsize=256)
def gradients(spec: CellSpec, plan: Plan, reached: frozenset[str], widest: int) -> tuple[Phase, int]:
    """Return the phase of :func:`.accumulate.phase`, and how many programs it has."""
    found = accumulate.phase(plan.program, _strides(spec), reached, widest)
    return found, accumulate.programs(plan.program, widest)


def _strides(spec: CellSpec) -> dict[str, int]:
    return {p.name: p.shape[-1] for p in spec.parameters()}


@lru_cache(maxsize=512)
def kernel(name: str, phases: tuple[Phase, ...]) -> Any:
    """Return the kernel that has these phases."""
    return getattr(module(source(name, phases)), name)


def source_of(kernel: Any) -> str:
    """Read the source of a kernel that is here."""
    return Path(sys.modules[kernel.fn.__module__].__file__ or "").read_text()


@lru_cache(maxsize=512)
def module(text: str) -> ModuleType:
    """Load a source as a module with a file, which the compiler, the interpreter and a debugger read."""
    name = f"vrnn_fast_scan_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = cache_directory() / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        with replacing(path) as file:
            file.write(text.encode())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made
