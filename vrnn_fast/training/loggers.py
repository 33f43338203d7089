"""Where a run's numbers may be sent: services that others make, behind two methods."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from .config import RunError, one_line
from .trainer import Trainer


class Logger(Protocol):
    """Takes numbers by name, such as ``train/loss``, as a run goes on."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of an optimiser step."""

    def close(self) -> None:
        """Wait until all of them are there, and leave."""


class TensorBoardLogger:
    """Writes them into the run's folder ``tensorboard``."""

    def __init__(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(trainer.folder / "tensorboard"), purge_step=trainer.step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbLogger:
    """Sends them to Weights & Biases; a run that goes on is the same one there."""

    def __init__(self, trainer: Trainer) -> None:
        import wandb

        folder = trainer.folder.resolve()
        self._run = wandb.init(
            project="vrnn_fast", name=folder.name, id=_name_of(folder), resume="allow", dir=str(folder),
            config=_told(trainer),
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give scalars."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until they are there."""
        self._run.finish()


class MLflowLogger:
    """Sends them to MLflow's tracking server, or its folder; a run that goes on is another one of the same name."""

    def __init__(self, trainer: Trainer) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("vrnn_fast")
        mlflow.start_run(run_name=trainer.folder.resolve().name)
        mlflow.log_params(_told(trainer))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give metrics."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Say that the run has ended."""
        self._mlflow.end_run()


KNOWN: dict[str, Callable[[Trainer], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}


@contextmanager
def opened(names: Sequence[str], trainer: Trainer) -> Iterator[list[Logger]]:
    """Open those loggers for the block.

    Raises:
        RunError: one of them is not installed, or does not begin.
    """
    found: list[Logger] = []
    try:
        for name in names:
            try:
                found.append(KNOWN[name](trainer))
            except ImportError as error:
                packages = f"'vrnn-fast[{name}]'"
                raise RunError(f"logs take the {name} package: pip install {packages}") from error
            except Exception as error:  # whatever a service answers
                raise RunError(f"{name} does not begin: {one_line(error)}") from error
        yield found
    finally:
        for logger in found:
            logger.close()


def _name_of(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def _told(trainer: Trainer) -> dict[str, Any]:
    """Return what the run was told, by name."""
    return {
        **{f"train.{name}": value for name, value in dataclasses.asdict(trainer.config).items()},
        **{f"model.{name}": str(value) for name, value in trainer.arguments.items()},
        **{f"data.{name}": value for name, value in dataclasses.asdict(trainer.source).items()},
    }
