"""What this installation and this machine can do: the tool for a broken one, so that it needs no extra."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from ..cell.spec import CellSpec
from ..executors import backends, explain

if TYPE_CHECKING:
    from rich.console import Console

_PEAK_SECONDS = 0.3


def versions() -> dict[str, str]:
    """List the versions of Python, this package, and what it stands on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("vrnn-fast", "torch", "numpy")}


def facts() -> Iterator[tuple[str, str, str]]:
    """Yield title, text and a remark: versions, CPU features with each instruction set's measured peak, backends."""
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions().items()), ""
    yield "threads", str(torch.get_num_threads()), ""
    for title, text in _cpu().items():
        yield title, text, ""
    for name, backend in backends().items():
        reason = backend.reason or _fault(name)
        yield f"backend {name}", f"not available: {reason}" if reason else "available", f"verified: {backend.verified}"


def report_on(console: Console) -> None:
    """Print them as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    for title, text, remark in facts():
        color = {"available": "green", "not available": "yellow"}.get(text.partition(":")[0])
        shown = f"[{color}]{escape(text)}[/]" if color else escape(text)
        table.add_row(f"[bold]{title}[/]", f"{shown}\n[dim]{escape(remark)}[/]" if remark else shown)
    console.print(table)


def report_plainly() -> None:
    """Print them line by line, where there is no rich."""
    for title, text, remark in facts():
        print(f"{title}: {text}" + (f" ({remark})" if remark else ""))


def _fault(name: str) -> str | None:
    """Say why a backend that is there cannot run anything, such as for a variable that names no build."""
    try:
        explain(name, CellSpec(1, 1, 1), torch.zeros(1, 1, 1), source=False)
    except (RuntimeError, ValueError) as error:
        said = str(error)
        return None if "x is on cpu" in said else said.partition("cannot run: ")[2] or said
    return None


def _cpu() -> dict[str, str]:
    try:
        native = importlib.import_module(".._native", __package__)
    except ImportError as error:
        return {"CPU": f"not known: the native module is not built ({error})"}
    features = [name for name, present in native.features().items() if present]
    peaks = [f"{isa} {native.fma_peak(isa, _PEAK_SECONDS):.0f}" for isa in native.usable_isas()]
    return {
        "CPU": f"{platform.machine()} with {', '.join(features) or 'no vector extension'}",
        "FMA peak": f"{', '.join(peaks)} GFLOP/s (float32, one thread, measured now)",
    }
