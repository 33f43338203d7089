"""The trial of every backend (:mod:`vrnn_fast.executors.trial`), structure by structure; and of kernels written by hand
one structure by two blocks to a tile of rows, for each way in which they exchange operands, and with passes that take
32 rows at a time: what a trial's small cells never have."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

from vrnn_fast.executors import trial
from vrnn_fast.executors.cuda import chip, launch
from vrnn_fast.executors.cuda.cluster import Cluster
from vrnn_fast.executors.cuda.steps import all_by

from .children import Row
from .setting import Setting

_STRUCTURES = {structure.name: structure for structure in trial.STRUCTURES}
_SHARED = "gru in bfloat16"
WAYS = {
    "by a cluster": all_by(Cluster(2, alike=False)),
    "by blocks that meet in memory": all_by(Cluster(2, alike=False, through="memory")),
    "32 rows at a time": all_by(None, stacked=2),
}


def items(setting: Setting) -> list[str]:
    """Name every structure on every backend, and one for each of WAYS."""
    shared = [f"cuda/{_SHARED}, {way}" for way in WAYS if "cuda" in setting.backends]
    return [f"{backend}/{name}" for backend in setting.backends for name in _STRUCTURES] + shared


def run(setting: Setting, item: str) -> Iterator[Row]:
    """Try one structure: its largest error, as a part of what is allowed."""
    backend, _, name = item.partition("/")
    executor: Any = importlib.import_module(f"vrnn_fast.executors.{backend}")
    if (reason := executor.unavailable()) is not None:
        raise RuntimeError(reason)
    own = WAYS.get(name.removeprefix(f"{_SHARED}, "))
    row: Row = {"backend": backend, "structure": name}
    cluster = None if own is None else own.forward.cluster
    if cluster is not None and cluster.through not in chip.room(setting.device).through:
        yield {**row, "error, of what is allowed": "refused: this chip knows no such blocks"}
        return
    scans = nullcontext() if own is None else mock.patch.object(launch, "chosen", return_value=own)
    with scans:
        found = trial.finding(executor, setting.device, _STRUCTURES[_SHARED if own else name])
    if found.wrong:
        raise ArithmeticError(found.wrong[0])
    outcome = f"{found.share:.3f}" if found.refused is None else f"refused: {found.refused}"
    yield {**row, "error, of what is allowed": outcome}
