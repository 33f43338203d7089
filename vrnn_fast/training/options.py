"""What a run may be told, on the command line and in a file: read off the signatures of the model, the trainer and the
data, so that nothing can be said in one place and not in another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader

from ..data import Source
from ..model import VRNN
from .config import RunError, TrainConfig, one_line

LOGGERS = {"tensorboard": "into the run", "wandb": "to Weights & Biases", "mlflow": "to MLflow"}
_OF_A_CALL = ("config", "run", "resume", "threads", *LOGGERS)  # not of a run
CONFIG = "config.toml"  # in a run's folder: the file that repeats it
_NOT_HERE = {"input_size", "backend", "batch_first", "device", "dtype"}  # arguments of VRNN that the run decides
DEFAULTS: dict[str, Any] = {"hidden_size": 100, "latent_size": 16, "activation": "leaky_relu", "likelihood": None}


@dataclass(frozen=True)
class Options:
    """A run that was asked for.

    Attributes:
        model: arguments of :class:`VRNN`, as plain data.
        given: the names of what was said, on the command line or in a file.
        text: all of it as a file.
    """

    run: Path
    resume: Path | None
    source: Source
    model: dict[str, Any]
    train: TrainConfig
    loggers: tuple[str, ...]
    threads: int | None
    given: tuple[str, ...]
    text: str


def parse(arguments: Sequence[str]) -> Options:
    """Return what a command line says, a file that it names included.

    Raises:
        RunError: it says what cannot be; the message names the option.
    """
    parser = _parser()
    try:
        _require_file(arguments)
        found = parser.parse_args(list(arguments))
        source = found.pop("source")
        if source is not None:
            found["data.path"] = source
        plain = parser.dump(found, format="json_compact", skip_unset=False, skip_validation=True)
        for name in _OF_A_CALL:
            found.pop(name, None)
        text = parser.dump(found, skip_validation=True)
    except ArgumentError as error:
        raise RunError(one_line(error)) from None
    entries = json.loads(plain)
    given = tuple(a.partition("=")[0].lstrip("-") for a in arguments if a.startswith("--"))
    train = {name: entries[name] for name in TrainConfig.__dataclass_fields__}
    return Options(
        Path(entries["run"]),
        None if entries["resume"] is None else Path(entries["resume"]),
        Source(**entries["data"]),
        entries["model"],
        TrainConfig(**train),
        tuple(name for name in LOGGERS if entries[name]),
        entries["threads"],
        given,
        text,
    )


def on_table(arguments: Sequence[str]) -> bool:
    """Tell whether a command line, or the file that it names, asks for a run on a table: it names columns, or one
    file of a table."""
    names = [argument.partition("=")[0] for argument in arguments]
    if "--config" in names:
        at = names.index("--config")
        path = Path(arguments[at].partition("=")[2] or "".join(arguments[at + 1 : at + 2]))
        try:
            if "table" in get_loader("toml")(path.read_text()):
                return True
        except (OSError, ValueError):
            pass  # whoever parses it says what is wrong
    named = any(f"--{column}" in names for column in ("id", "time", "features", "covariates"))
    return named or any(a.endswith((".csv", ".parquet")) and not Path(a).is_dir() for a in arguments)


def build(
    arguments: Mapping[str, Any],
    input_size: int,
    likelihood: str,
    backend: str = "auto",
    device: torch.device | str | None = None,
) -> VRNN:
    """Return a freshly initialised model.

    Args:
        arguments: of :class:`VRNN`, as plain data; what is not named has the default of a run.
        likelihood: that of the data, where the arguments name none.

    Raises:
        RunError: an argument is out of its domain, or the backend cannot run such a model.
    """
    parser = ArgumentParser(exit_on_error=False)
    _add_model(parser)
    try:
        found = parser.parse_object({"model": dict(arguments)})
        made = dict(parser.instantiate(found).model)
        made = {name: _plain(value) for name, value in made.items()}
        if made["likelihood"] is None:
            made["likelihood"] = likelihood
        model = VRNN(input_size, **made, backend=backend, device=device)
        model.explain()
    except ArgumentError as error:
        raise RunError(one_line(error)) from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise RunError(str(error)) from error
    return model


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Namespace) else value


def _add_model(parser: ArgumentParser) -> None:
    parser.add_class_arguments(VRNN, "model", skip=_NOT_HERE, instantiate=False, sub_configs=False)
    parser.set_defaults({f"model.{name}": value for name, value in DEFAULTS.items()})


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vrnn-fast train",
        description="Learn from sequences: the chorales, arrays (T, X) or (N, T, X), sound cut into frames, or a pack. "
        "One table, .csv or .parquet, has other options: train TABLE.csv --help.",
        parser_mode="toml",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("source", nargs="?", default=None, help="chorales, a file or folder of data, or a pack")
    parser.add_argument("--config", action="config", help="a file of these options; what follows it overrules it")
    where = "the folder for checkpoints and pictures (to torchrun say --run_folder: it takes --run for its own)"
    parser.add_argument("--run", "--run_folder", type=str, default="runs/latest", help=where)
    parser.add_argument("--resume", type=str | None, default=None, metavar="RUN", help="go on with this run")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; all cores by default")
    for name, where in LOGGERS.items():
        parser.add_argument(f"--{name}", type=bool, default=False, nargs="?", const=True, help=f"log {where}")
    parser.add_class_arguments(TrainConfig)
    parser.add_class_arguments(Source, "data", sub_configs=False)
    _add_model(parser)
    return parser


def _require_file(arguments: Sequence[str]) -> None:
    """Refuse what is no file: the parser takes it for the text of one."""
    for at, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        path = value or (arguments[at + 1] if at + 1 < len(arguments) else "")
        if name == "--config" and not Path(path).is_file():
            raise RunError(f"--config {path}: no such file")
