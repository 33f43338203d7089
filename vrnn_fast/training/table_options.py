"""What ``vrnn-fast train`` may be told of a table: read off the signature of the estimators."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser

from .. import checks
from ..tables import Detector
from ..tables.base import Tails
from .config import RunError, one_line
from .runs import NO_RESUMING

_COLUMNS = {"features": "columns of x; all others by default", "covariates": "columns that are known at every time"}


@dataclass(frozen=True)
class TableOptions:
    """A run on a table that was asked for.

    Attributes:
        arguments: of :class:`~vrnn_fast.tables.Detector`.
        text: all of it as a file.
    """

    run: Path
    table: Path
    arguments: dict[str, Any]
    threads: int | None
    text: str


def parse(arguments: Sequence[str]) -> TableOptions:
    """Return what a command line says, a file that it names included.

    Raises:
        RunError: it says what cannot be, and the message names the option; or other processes were started with this
            one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError("a table is learnt by one process: start train without torchrun", everywhere=True)
    if any(word.partition("=")[0] == "--resume" for word in arguments):
        raise RunError(NO_RESUMING)
    parser = _parser()
    try:
        found = parser.parse_args(list(arguments))
        run, threads = Path(found.pop("run")), found.pop("threads")
        found.pop("config")
        source = found.pop("source")
        if source is not None:
            found["table"] = source
        text = parser.dump(found, skip_validation=True)
        made = vars(parser.instantiate(found))
    except ArgumentError as error:
        raise RunError(_said(error)) from None
    table = made.pop("table")
    if table is None:
        raise RunError("name the table to learn from: vrnn-fast train TABLE.csv --id COLUMN --time COLUMN")
    known = inspect.signature(Detector.__init__).parameters
    return TableOptions(run, Path(table), {n: v for n, v in made.items() if n in known}, threads, text)


def _said(error: ArgumentError) -> str:
    """Say what is wrong with an option; of a likelihood, in words instead of types."""
    words = one_line(error)
    if not words.startswith('Parser key "likelihood":'):
        return words
    given = words.rpartition("Given value: ")[2]
    return f"{checks.unknown('likelihood', given, get_args(Tails))}; or name the class of another one of real numbers"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vrnn-fast train",
        description="Learn from a table, a row for each time: score, forecast and impute then ask the run.",
        parser_mode="toml",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("source", nargs="?", default=None, help="a table, .csv or .parquet")
    parser.add_argument("--table", type=str | None, default=None, help="the same, as a file of options says it")
    parser.add_argument("--config", action="config", help="a file of these options; what follows it overrules it")
    parser.add_argument("--run", type=str, default="runs/latest", help="the folder for what was learnt, and a picture")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; all cores by default")
    for name, words in _COLUMNS.items():
        parser.add_argument(f"--{name}", type=str, nargs="+", default=None if name == "features" else [], help=words)
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_class_arguments(Detector, skip={"verbose", "device", *_COLUMNS}, instantiate=False)
    return parser
