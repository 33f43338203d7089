"""What this installation and this machine can do."""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table

from ..executors import backends

_PEAK_SECONDS = 0.3


def versions() -> dict[str, str]:
    """Of Python, this package, and what it stands on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("vrnn-fast", "torch", "numpy")}


def report_on(console: Console) -> None:
    """Print versions, CPU features with the measured peak of each instruction set, and the backends."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("[bold]versions[/]", ", ".join(f"{name} {number}" for name, number in versions().items()))
    table.add_row("[bold]threads[/]", str(torch.get_num_threads()))
    for title, text in _cpu().items():
        table.add_row(f"[bold]{title}[/]", text)
    for name, backend in backends().items():
        state = "[green]available[/]" if backend.available else f"[yellow]not available[/]: {backend.reason}"
        table.add_row(f"[bold]backend[/] {name}", f"{state}\n[dim]verified: {backend.verified}[/]")
    console.print(table)


def _cpu() -> dict[str, str]:
    try:
        native = importlib.import_module("vrnn_fast._native")
    except ImportError as error:
        return {"CPU": f"not known: the native module is not built ({error})"}
    features = [name for name, present in native.features().items() if present]
    peaks = [f"{isa} {native.fma_peak(isa, _PEAK_SECONDS):.0f}" for isa in native.usable_isas()]
    return {
        "CPU": f"{platform.machine()} with {', '.join(features) or 'no vector extension'}",
        "FMA peak": f"{', '.join(peaks)} GFLOP/s (float32, one thread, measured now)",
    }
