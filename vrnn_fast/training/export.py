"""What ``vrnn-fast export`` does: the best model of a run becomes a package, in the units of the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..export import write_package
from ..model import VRNN
from .config import RunError
from .runs import load_model, of_table


def export(run: Path, to: Path, console: Console, *, batch_size: int, backend: str) -> None:
    """Write a package of the model in a run's folder, or of a checkpoint there.

    Raises:
        RunError: it cannot be exported.
        CheckpointError: there is no such model.
    """
    warnings.filterwarnings("ignore", "`isinstance", FutureWarning)  # torch's, of torch's own code
    model, mean, scale = _of_table(run, backend) if of_table(run) else _of_sequences(run, backend)
    try:
        about = write_package(model, to, batch_size=batch_size, mean=mean, scale=scale)
    except (RuntimeError, ValueError) as error:
        raise RunError(str(error)) from error
    beside = f", and {about['operators']}, which is loaded before it," if about["operators"] else ""
    console.print(f"{to.name}{beside} written to {to.parent}", highlight=False, soft_wrap=True)


def _of_sequences(run: Path, backend: str) -> tuple[VRNN, Sequence[float], Sequence[float]]:
    model, header = load_model(run, backend)
    return model, header["data"]["mean"], header["data"]["scale"]


def _of_table(run: Path, backend: str) -> tuple[VRNN, Sequence[float], Sequence[float]]:
    try:
        from ..tables import saved
    except ImportError as error:
        raise RunError(str(error)) from error
    _, learnt = saved.load(run)
    model, reader = learnt.model, learnt.reader
    if model.spec.cond_size:
        raise RunError(f"{run} was told covariates or uneven time steps, which a package does not know how to read")
    model.backend = backend
    return model, reader.mean.tolist(), reader.std.tolist()
