"""The command ``vrnn-fast verify``: the trial of each backend on a device, shown and written down."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import checks
from ..executors import backends, executors, verification
from .config import RunError


def verify(backend: str | None, device: str, record: Path, console: Console) -> bool:
    """Try one backend, or all that are made for the device, and write what was found; whether all passed.

    Raises:
        RunError: there is no such device or backend, the backend cannot run here, or the record cannot be written.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"--device {device}: {str(error).splitlines()[0]}") from None
    outcomes = []
    for name in _wanted(backend, where):
        outcome = verification.verified(name, where, again=True)
        outcomes.append(outcome)
        table = Table("structure", "error, of what is allowed", box=None, padding=(0, 2))
        for structure, share in outcome.shares.items():
            table.add_row(escape(structure), f"{share:.3f}")
        for structure, reason in outcome.refused.items():
            table.add_row(escape(structure), f"[dim]refused: {escape(reason)}[/]")
        console.print(f"[bold]{name}[/] on {escape(outcome.where['device'])}, {outcome.seconds:.0f} s")
        console.print(table)
        console.print("[green]passed[/]" if outcome.reason is None else f"[red]failed[/]: {escape(outcome.reason)}")
    try:
        record.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    except OSError as error:
        raise RunError(f"the record {record} cannot be written: {error.strerror}") from error
    console.print(f"written to {escape(str(record))}: a record from your machine is welcome as an issue")
    return all(outcome.reason is None for outcome in outcomes)


def _wanted(backend: str | None, device: torch.device) -> list[str]:
    known = backends()
    if backend is None:
        found = [e.name for e in executors if e.device == device.type and known[e.name].available]
        if not found:
            reasons = "; ".join(f"{e.name}: {known[e.name].reason}" for e in executors if e.device == device.type)
            raise RunError(f"no backend can run on {device}: {reasons or 'none is made for it'}")
        return found
    if backend not in known:
        raise RunError(checks.unknown("--backend", backend, tuple(known)))
    if not known[backend].available:
        raise RunError(f"--backend {backend} cannot run here: {known[backend].reason}")
    return [backend]
