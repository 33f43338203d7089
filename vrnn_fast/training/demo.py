"""``make demo``: learn the Bach chorales, and leave numbers, pictures and music behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .. import data, executors
from ..data import Dataset, Source, chorales, pad
from ..data.reading import PARTS
from ..model import VRNN
from . import report
from .compare import Comparison, compare
from .config import TrainConfig
from .evaluation import evaluate
from .info import versions
from .options import build
from .trainer import Trainer
from .watch import watch

PHASES = "VRNN_FAST_PHASES"  # seconds of what went before, as "install=12.3,build=41"
MODEL: dict[str, Any] = {}  # the defaults of a run
TRAIN = TrainConfig()
_STEPS, _PREFIX = 48, 16


def run(folder: Path, console: Console, epochs: int | None = None) -> dict[str, Any] | None:
    """Do everything, in order; return what ``summary.json`` holds, or None if it was interrupted."""
    phases = _earlier()
    with _timed(phases, "data"), console.status("reading the chorales"):
        dataset = data.load(Source())
    parts = ", ".join(f"{len(dataset[p])} {p} ({dataset.steps(p):,} steps)" for p in PARTS)
    console.print(f"chorales: {parts}", soft_wrap=True)

    config = replace(TRAIN, epochs=epochs) if epochs else TRAIN
    trainer = Trainer(Source(), MODEL, config, dataset, folder)
    executor, _ = executors.select("auto", trainer.model.spec, pad(dataset.train[:1]).x)
    console.print(f"backend: {executor.name}, {torch.get_num_threads()} threads")
    with _timed(phases, "train"):
        if not watch(trainer, console):
            return None
    model = trainer.load_best()
    with _timed(phases, "test"):
        test = evaluate(model, dataset.test)
    comparison = None
    if executor.name != "reference":
        with _timed(phases, "compare"), console.status("comparing with the reference loop"):
            comparison = _compare(model, dataset)
    with _timed(phases, "report"), console.status("drawing"):
        _draw(folder, trainer, model, dataset)

    steps, seconds = (sum(getattr(e.train, name) for e in trainer.history) for name in ("time_steps", "seconds"))
    summary = {
        "test_nats_per_step": test.bound,
        "baseline_nats_per_step": dataset.baseline(),
        "train_seconds": phases["train"],
        "frames_per_second": steps / seconds,
        "speedup_vs_reference": comparison.speedup if comparison else None,
        "reference_threads": comparison.reference_threads if comparison else None,
        "disagreement": comparison.disagreement if comparison else None,
        "backend": executor.name,
        "threads": torch.get_num_threads(),
        "epochs": len(trainer.history),
        "best_epoch": trainer.best[0] + 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "phases": phases,
        "versions": versions(),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _print(console, folder, summary, comparison)
    return summary


def _earlier() -> dict[str, float]:
    pairs = (pair.partition("=") for pair in os.environ.get(PHASES, "").split(",") if pair)
    return {name: float(seconds) for name, _, seconds in pairs}


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    start = perf_counter()
    yield
    phases[name] = round(perf_counter() - start, 3)


def _compare(model: VRNN, dataset: Dataset) -> Comparison:
    """Compare on batches cut by length as in training, a few of all lengths: the reference takes its time."""
    reference = build(MODEL, chorales.PITCHES, "bernoulli", "reference")
    reference.load_state_dict(model.state_dict())
    by_length = sorted(dataset.train, key=len)
    batches = [pad(by_length[i : i + TRAIN.batch_size]) for i in range(0, len(by_length), TRAIN.batch_size)]
    return compare(model, reference, batches[::3])


def _draw(folder: Path, trainer: Trainer, model: VRNN, dataset: Dataset) -> None:
    report.curves(
        trainer.history, folder / "curves.png", baseline=dataset.baseline(), title="A VRNN learns the Bach chorales"
    )
    noise = torch.Generator().manual_seed(trainer.config.seed)
    long_first = sorted(dataset.test, key=lambda roll: len(roll) < _STEPS)
    x = pad([roll[:_STEPS] for roll in long_first[:2]]).x
    with torch.no_grad():
        reconstruction = model(x, generator=noise, outputs=("prediction",)).prediction
        samples, _ = model.generate(_STEPS, batch_size=2, generator=noise)
        continued, _ = model.generate(_STEPS - _PREFIX, batch_size=2, prefix=x[:_PREFIX], generator=noise)
    rows = (
        ("test piece {}", x, report.INK, 0),
        ("reconstruction of piece {}: p(note) given z", reconstruction, report.BLUE, 0),
        ("sample {}", samples, report.GREEN, 0),
        ("piece {} continued", torch.cat([x[:_PREFIX], continued]), report.ORANGE, _PREFIX),
    )
    panels = [
        report.Panel(title.format(i + 1), values[:, i], color, prefix)
        for title, values, color, prefix in rows
        for i in range(x.shape[1])
    ]
    report.rolls(panels, folder / "samples.png", lowest=chorales.LOWEST)
    report.midi(samples[:, 0], folder / "sample.mid", lowest=chorales.LOWEST)


def _print(console: Console, folder: Path, summary: dict[str, Any], comparison: Comparison | None) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("test bound", f"[bold]{summary['test_nats_per_step']:.3f}[/] nats per step")
    table.add_row("independent notes", f"{summary['baseline_nats_per_step']:.3f} nats per step")
    table.add_row("training", f"{summary['train_seconds']:.1f} s, {summary['frames_per_second']:,.0f} frames/s")
    if comparison is None:
        table.add_row("speed", "this ran on the reference backend: there is nothing faster to compare it with here")
    elif comparison.speedup is None:
        table.add_row("speed", f"[red]not reported: the results disagree[/] ({comparison.disagreement})")
    else:
        table.add_row("speed", f"[bold]{comparison.speedup:.1f} times[/] the reference loop's on the same batches")
    console.print(table, soft_wrap=True)
    console.print(
        f"summary.json, curves.png, samples.png, sample.mid and the checkpoints are in {folder}", soft_wrap=True
    )
