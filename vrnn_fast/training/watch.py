"""A run as it is seen from the terminal: a live progress bar, TensorBoard logs, and a clean stop when asked."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .config import RunError
from .trainer import Epoch, Step, Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def watch(trainer: Trainer, console: Console, *, tensorboard: bool = False) -> bool:
    """Train to the end, or until Ctrl-C, SIGTERM or SIGHUP: then the run is saved after the step it is at, it is said
    where, and the answer is False.
    """
    logs = _writer(trainer) if tensorboard else nullcontext()
    bar = Progress(
        BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal, expand=True,
    )  # fmt: skip
    with _asking(trainer.ask_to_stop), bar, logs as writer:
        epochs = trainer.config.epochs
        task = bar.add_task("", total=epochs, completed=len(trainer.history))
        saved = None
        for step in trainer.steps():
            if step.stopping:
                saved = trainer.save()  # before anything is drawn: the terminal may be gone
            if writer:
                _log(writer, step)
            bar.update(task, completed=trainer.epochs_done)
            if step.finished:
                done, line = step.finished.number + 1, _line(step.finished)
                bar.update(task, description=line)
                if bar.disable and done % max(1, epochs // 10) == 0:
                    console.print(f"epoch {done:3d}/{epochs}  {line}", soft_wrap=True)
            if saved:
                break
    if not saved or trainer.finished:
        return True
    console.print(
        f"stopped in epoch {len(trainer.history) + 1}; saved to {saved}\n"
        f"go on with: vrnn-fast train --resume {trainer.folder}",
        soft_wrap=True,
    )
    return False


def _line(epoch: Epoch) -> str:
    speed = epoch.train.time_steps / epoch.train.seconds
    return f"train {epoch.train.bound:.3f}, valid {epoch.valid.bound:.3f} nats per step, {speed:,.0f} frames/s"


@contextmanager
def _asking(ask: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a call of ``ask``; the second one acts as ever.

    What the process was told to ignore, as nohup does with SIGHUP, it ignores.
    """

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(number: int, frame: FrameType | None) -> None:
        ask()
        restore()

    ending = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ending)}
    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        restore()


def _writer(trainer: Trainer) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("logs take the tensorboard package: pip install 'vrnn-fast[tensorboard]'") from error
    return SummaryWriter(str(trainer.folder / "tensorboard"), purge_step=trainer.step + 1)


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
