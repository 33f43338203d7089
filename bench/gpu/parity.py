"""The trial of every backend (:mod:`vrnn_fast.executors.trial`), structure by structure."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from vrnn_fast.executors import trial

from .children import Row
from .setting import Setting

_STRUCTURES = {structure.name: structure for structure in trial.STRUCTURES}


def items(setting: Setting) -> list[str]:
    """Name every structure on every backend."""
    return [f"{backend}/{name}" for backend in setting.backends for name in _STRUCTURES]


def run(setting: Setting, item: str) -> Iterator[Row]:
    """Try one structure: its largest error, as a part of what is allowed."""
    backend, _, name = item.partition("/")
    executor: Any = importlib.import_module(f"vrnn_fast.executors.{backend}")
    if (reason := executor.unavailable()) is not None:
        raise RuntimeError(reason)
    found = trial.finding(executor, setting.device, _STRUCTURES[name])
    if found.wrong:
        raise ArithmeticError(found.wrong[0])
    outcome = f"{found.share:.3f}" if found.refused is None else f"refused: {found.refused}"
    yield {"backend": backend, "structure": name, "error, of what is allowed": outcome}
