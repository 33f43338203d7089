"""What the folder of a run says of it: its configuration, its data and its best model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import files
from ..checkpoints.files import BEST, KEY_OF_TABLES, CheckpointError
from ..data import Dataset, Source
from ..model import VRNN
from .config import RunError, TrainConfig, one_line
from .options import build

NO_RESUMING = "--resume takes no run on a table, which is learnt in one go: learn it anew into another --run"


def load_model(path: Path, backend: str = "auto") -> tuple[VRNN, dict[str, Any]]:
    """Return the model of a run's best epoch and the header of its file; ``path`` is the run's folder or that file.

    Raises:
        CheckpointError: it holds no such model.
    """
    path = path / BEST if os.path.isdir(path) else path
    tensors, header = files.load(path)
    try:
        _, arguments, _ = read_configs(path, header)
        about = header["data"]
        model = build(arguments, about["features"], about["likelihood"], backend)
        model.load_state_dict(tensors)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe a run: {error}") from error
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        raise CheckpointError(f"{path} does not hold the parameters it describes: {one_line(error)}") from error
    return model, header


def read_configs(path: Path, header: Mapping[str, Any]) -> tuple[Source, dict[str, Any], TrainConfig]:
    """Return the configuration in the header of the checkpoint ``path``.

    Raises:
        CheckpointError: it is not one that this version knows.
    """
    if KEY_OF_TABLES in header:
        raise CheckpointError(f"{path} was learnt from a table: score, forecast and impute take it")
    try:
        return Source(**header["source"]), dict(header["model"]), TrainConfig(**header["train"])
    except (KeyError, TypeError, ValueError, RunError) as error:
        raise CheckpointError(f"{path} does not describe a run: {error}") from error


def of_table(path: Path) -> bool:
    """Tell whether a run's folder, or a file, holds what was learnt from a table, and nothing that :func:`load_model`
    returns."""
    try:
        return KEY_OF_TABLES in files.load(path / BEST if path.is_dir() else path)[1]
    except CheckpointError:
        return False


def run_data(path: Path, header: Mapping[str, Any], data: Dataset | None = None) -> Dataset:
    """Return what the run with the checkpoint ``path`` was trained on, read again unless given.

    Raises:
        RunError: it has changed since.
        DataError: it is no longer there.
    """
    source = read_configs(path, header)[0]
    if data is None:
        from ..data import load

        data = load(source)
    if data.fingerprint() != header["data"]["fingerprint"]:
        raise RunError(
            f"the data {source.path!r} is not what the run of {path} was trained on (eval --data takes any)",
            everywhere=True,
        )
    return data


def unwritable(folder: Path) -> RunError | None:
    """Make the folder of a run, and return why it cannot be written, if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return RunError(f"the run folder {folder} cannot be written: {error.strerror}")
    return None
