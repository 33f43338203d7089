"""A run as it is seen: a live table in a terminal, lines where there is none."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from .meter import Gauges, Meter
from .trainer import Epoch, Step, Trainer

if TYPE_CHECKING:
    from typing_extensions import Self

_EPOCHS = 10  # rows of the table, and lines of a run
_REFRESH, _LINE = 0.25, 60.0  # seconds between two looks


class Display:
    """Shows the steps of a run, on the first rank. Use as a context manager."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self._trainer, self._console, self._meter = trainer, console, Meter(trainer)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._bar = Progress(BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn(), expand=True)
        self._task = self._bar.add_task("", total=trainer.config.epochs)
        self._done: list[tuple[Epoch, Gauges]] = []
        self._looked, self._told_peak = monotonic(), False
        self._now: Gauges | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, step: Step) -> None:
        """Count a step, and show it if it is time."""
        self._meter.add(step)
        late = monotonic() - self._looked
        if step.finished:
            self._now = self._meter.read()
            self._done = [*self._done, (step.finished, self._now)][-_EPOCHS:]
        elif late > (_REFRESH if self._live else _LINE):
            self._now = self._meter.read()
        else:
            return
        self._looked = monotonic()
        if self._live:
            self._live.update(self._picture(), refresh=True)
        else:
            self._line(step)

    def _line(self, step: Step) -> None:
        epochs, done = self._trainer.config.epochs, step.epoch + 1
        if self._now is None or (step.finished and done % max(1, epochs // _EPOCHS)):
            return
        if not self._told_peak:
            self._console.print(f"peak: {self._meter.peak.about}", soft_wrap=True, highlight=False)
            self._told_peak = True
        if step.finished:
            words = f"train {step.finished.train.bound:.3f}, valid {step.finished.valid.bound:.3f} nats per step"
        else:
            words = f"step {step.number}, train {self._now.bound:.3f} nats per step"
        gauges = self._now.shown()
        del gauges["nats per step"]
        rest = ", ".join(f"{name} {value}" for name, value in gauges.items() if value)
        self._console.print(f"epoch {done:3d}/{epochs}  {words}, {rest}", soft_wrap=True, highlight=False)

    def _picture(self) -> Group:
        table = Table(box=box.SIMPLE, caption=f"peak: {self._meter.peak.about}", caption_justify="left")
        rows = [(str(epoch.number + 1), f"{epoch.valid.bound:.3f}", gauges) for epoch, gauges in self._done]
        if self._now is not None and not (self._done and self._done[-1][1] is self._now):
            rows.append((str(int(self._trainer.epochs_done) + 1), "", self._now))
        for name in ("epoch", "valid", *(rows[0][2].shown() if rows else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for number, valid, gauges in rows:
            table.add_row(number, valid, *gauges.shown().values())
        self._bar.update(self._task, completed=self._trainer.epochs_done)
        return Group(table, self._bar)
