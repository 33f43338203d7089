"""A run as it is seen from the terminal: a live progress bar, TensorBoard logs, and a clean stop at Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .train import Epoch, RunError, Step, Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def watch(trainer: Trainer, console: Console, *, tensorboard: bool = False) -> bool:
    """Train to the end, or until Ctrl-C: then the run is saved after the step it is at, and the answer is False."""
    writer = _writer(trainer) if tensorboard else None
    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TextColumn("[bold]{task.fields[bound]}"), TextColumn("[dim]{task.fields[speed]}"), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip
    with _interruptible() as interrupted, bar:
        epochs = trainer.config.epochs
        task = bar.add_task("", total=epochs, completed=len(trainer.history), bound="", speed="")
        for step in trainer.steps():
            if writer:
                _log(writer, step)
            if step.finished:
                epoch = step.finished
                bar.update(task, completed=epoch.number + 1, bound=_bound(epoch), speed=_speed(epoch))
                if not console.is_terminal and (epoch.number + 1) % max(1, epochs // 10) == 0:
                    console.print(f"epoch {epoch.number + 1:3d}/{epochs}  {_bound(epoch)}  {_speed(epoch)}")
            if interrupted():
                break
    if writer:
        writer.close()
    if interrupted() and not trainer.finished:
        trainer.save()
        return False
    return True


def _bound(epoch: Epoch) -> str:
    return f"nats per step: train {epoch.train.bound:.3f}, valid {epoch.valid.bound:.3f}"


def _speed(epoch: Epoch) -> str:
    return f"{epoch.train.time_steps / epoch.train.seconds:,.0f} frames/s"


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into an answer to be asked for; the second one interrupts as ever."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _writer(trainer: Trainer) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("logs take the tensorboard package: pip install 'vrnn-fast[tensorboard]'") from error
    first = trainer.history[-1].number + 1 if trainer.history else 0
    return SummaryWriter(str(trainer.folder / "tensorboard"), purge_step=first * trainer.batches + 1)


def _log(writer: SummaryWriter, step: Step) -> None:
    values = {
        "train/loss": step.loss,
        "train/gradient_norm": step.gradient_norm,
        "schedule/learning_rate": step.learning_rate,
        "schedule/kl_weight": step.kl_weight,
    }
    if step.finished:
        valid = step.finished.valid
        values |= {"valid/bound": valid.bound, "valid/kl": valid.kl / valid.time_steps}
    for name, value in values.items():
        writer.add_scalar(name, value, step.number)
