"""What an estimator learnt, in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import files
from ..checkpoints.convert import made
from ..checkpoints.files import BEST, KEY_OF_TABLES, CheckpointError
from ..description import described
from ..layouts.structure import LayoutError
from ..model import VRNN
from .reader import Columns, TableError, TableReader

_KEPT = "kept."  # begins the names of what a kind of estimator keeps, beside the parameters


class Learnt(NamedTuple):
    """What a file holds: the kind of estimator, the model, how tables are read, nats of each validation, the columns of
    the table, and what such a kind keeps beside them."""

    kind: str
    model: VRNN
    reader: TableReader
    history: Sequence[float]
    columns: Sequence[Any]
    kept: Mapping[str, Tensor]


def save(folder: Path, given: Mapping[str, Any], learnt: Learnt) -> None:
    """Write all that :func:`load` returns; see :meth:`.base.Estimator.save`."""
    model, reader = learnt.model, learnt.reader
    about = described(model)
    if about["likelihood"][1] is None:
        raise TableError(f"the likelihood {about['likelihood'][0]} is a class of your own: pickle the estimator")
    likelihood = given["likelihood"] if isinstance(given["likelihood"], str) else None  # else the model has it
    words = {
        "kind": learnt.kind,
        "given": {**{name: _own(value) for name, value in given.items()}, "likelihood": likelihood},
        "tuples": [name for name, value in given.items() if isinstance(value, tuple)],
        "model": about,
        "reader": _reader_in_words(reader),
        "history": learnt.history,
        "columns": [_plain(name, "the name of a column") for name in learnt.columns],
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept = {_KEPT + name: tensor for name, tensor in learnt.kept.items()}
    files.save(folder / BEST, {**model.state_dict(), **kept}, {KEY_OF_TABLES: words})


def load(folder: Path) -> tuple[dict[str, Any], Learnt]:
    """Read the arguments of the estimator that was saved, and what it learnt.

    Raises:
        CheckpointError: there is none, or the file is damaged or of something else.
    """
    path = folder / BEST if folder.is_dir() else folder
    tensors, header = files.load(path)
    if KEY_OF_TABLES not in header:
        raise CheckpointError(f"{path} was not learnt from a table: eval and sample take it, if it is a run")
    try:
        about = header[KEY_OF_TABLES]
        kept = {name.removeprefix(_KEPT): tensors.pop(name) for name in list(tensors) if name.startswith(_KEPT)}
        model = made(about["model"], tensors, {}, VRNN)
        reader = _reader_of(about["reader"])
        given = {**about["given"], "likelihood": about["given"]["likelihood"] or model.likelihood}
        given |= {name: tuple(given[name]) for name in about.get("tuples", ())}  # those of JSON are lists
        return given, Learnt(about["kind"], model, reader, about["history"], about["columns"], kept)
    except (KeyError, TypeError, ValueError, LayoutError) as error:
        raise CheckpointError(f"{path} does not hold what was learnt from a table: {error}") from error


def _reader_in_words(reader: TableReader) -> dict[str, Any]:
    step, levels = reader.step, {}
    for name, known in reader.levels.items():
        levels[name] = [_plain(level, f"a category of column {name!r}") for level in known]
    if isinstance(step, np.timedelta64):
        step = {"nanoseconds": int(step / np.timedelta64(1, "ns")), "unit": np.datetime_data(step.dtype)[0]}
    elif step is not None:
        step = _plain(step, "a time step")
    lists = {"mean": reader.mean.tolist(), "std": reader.std.tolist(), "levels": levels, "step": step}
    return {"columns": asdict(reader.columns), "features": reader.features, "irregular": reader.irregular, **lists}


def _reader_of(words: Mapping[str, Any]) -> TableReader:
    columns: dict[str, Any] = words["columns"]
    columns = {name: tuple(value) if isinstance(value, list) else value for name, value in columns.items()}
    step = words["step"]
    if isinstance(step, dict):
        step = np.timedelta64(step["nanoseconds"], "ns").astype(f"timedelta64[{step.get('unit', 'ns')}]")
    return TableReader(
        Columns(**columns),
        tuple(words["features"]),
        np.array(words["mean"]),
        np.array(words["std"]),
        {name: tuple(known) for name, known in words["levels"].items()},
        step,
        words["irregular"],
    )


def _own(value: Any) -> Any:
    """Return what NumPy holds as Python's own, and a device as its name."""
    if isinstance(value, torch.device):
        return str(value)
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _plain(value: Any, what: str) -> str | int | float:
    """Return a word or a number as Python's own.

    Raises:
        TableError: it is neither.
    """
    plain = _own(value)
    if not isinstance(plain, str | int | float):
        raise TableError(f"{what} must be a word or a number to be saved, got {value!r}: pickle the estimator")
    return plain
