"""A run as it goes on: shown, logged, and stopped cleanly when asked."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from rich.console import Console

from .loggers import opened
from .table import Display
from .trainer import Step, Trainer


def watch(trainer: Trainer, console: Console, loggers: Sequence[str] = ()) -> bool:
    """Train to the end, or until Ctrl-C, SIGTERM or SIGHUP: then the run is saved after the step it is at, it is said
    where, and the answer is False. The first rank alone shows and logs.

    Raises:
        RunError: as :meth:`Trainer.steps`, or one of ``loggers`` cannot be had.
    """
    with ExitStack() as stack:
        stack.enter_context(_asking(trainer.ask_to_stop))
        display = None
        if trainer.ranks.first:
            display = stack.enter_context(Display(trainer, console))
            logs = stack.enter_context(opened(loggers, trainer))
        saved = None
        for step in trainer.steps():
            if step.stopping:
                saved = trainer.save()  # before anything is drawn: the terminal may be gone
            if display:
                for logger in logs:
                    logger.log(_values(step, trainer.ranks.size), step.number)
                display.show(step)
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


def _values(step: Step, ranks: int) -> dict[str, float]:
    """Return what loggers are told of a step."""
    sums, frames = step.sums, step.sums.time_steps / step.sums.seconds
    values = {
        "train/loss": step.loss,
        "train/bound": sums.bound,
        "train/kl": sums.kl / sums.time_steps,
        "train/gradient_norm": step.gradient_norm,
        "schedule/learning_rate": step.learning_rate,
        "schedule/kl_weight": step.kl_weight,
        "speed/frames_per_second": frames,
        "speed/frames_per_second_and_rank": frames / ranks,
        "speed/input_wait": step.waited / sums.seconds,
    }
    if step.finished:
        valid = step.finished.valid
        values |= {"valid/bound": valid.bound, "valid/kl": valid.kl / valid.time_steps}
    return values
