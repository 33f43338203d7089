"""What the command line does with tables: the estimators of :mod:`vrnn_fast.tables`, from file to file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from ..checkpoints.files import CheckpointError
from ..data import DataError
from ..tables import Detector, Forecaster, Imputer, files
from ..tables.base import Estimator
from ..tables.forecaster import quantile_column
from ..tables.reader import TimeSeries, clock, numbers_of
from . import charts, checkpoint
from .config import RunError
from .lock import alone
from .options import CONFIG
from .report import validations
from .runs import of_table
from .table_options import TableOptions

_SCORES, _OF = ("score", "anomaly"), "score of "
_PAST = 4  # horizons of the past in a picture of a forecast


def train(options: TableOptions, console: Console) -> None:
    """Learn a table by a :class:`~vrnn_fast.tables.Detector`, and leave what all commands need in the run's folder.

    Raises:
        RunError, DataError: the table cannot be learnt from, or the folder holds another run.
    """
    run = options.run
    with alone(run):
        if of_table(run) or checkpoint.exists(run):
            raise RunError(f"{run} holds a run already: name another --run")
        table = files.read(options.table, options.arguments["time"])
        if options.arguments["features"] is None and any(str(name).startswith("Unnamed: ") for name in table.columns):
            raise RunError(
                f"{options.table} has a column without a name, as pandas writes the numbers of rows: name --features"
            )
        with _told():
            detector = Detector(**options.arguments, verbose=True).fit(table)
            detector.set_params(verbose=False).save(run)
        (run / CONFIG).write_text(options.text)
        validations(detector.history_, run / "curves.png", title=options.table.name)
    features = len(detector.reader_.features)
    words = f"{len(table):,} rows, {features} features: best validation {min(detector.history_):.3f} nats per step"
    console.print(f"{words}; saved in {run}", highlight=False, soft_wrap=True)


def score(run: Path, given: Path, out: Path, console: Console, **arguments: Any) -> None:
    """Write a row for each one of a table: its id and time, score, 0 or 1, and the score of each feature; and a
    picture."""
    detector, table = _asked(Detector, run, given, out, arguments)
    for name in _named(detector):
        if name in (*_SCORES, *(_OF + feature for feature in detector.reader_.features)):
            raise RunError(f"a table of scores has another column {name!r}: rename the one of the table")
    with _told():
        scores, each = detector.decision_function(table), detector.explain(table)
        series = detector.reader_.read(table)
    found = table[_named(detector)].assign(score=scores, anomaly=(scores > detector.threshold_).astype(int))
    _write(found.join(each.add_prefix(_OF)), out)
    worst = sorted(series, key=lambda s: -scores[s.rows].max())[: charts.MOST // 2]
    features = detector.reader_.features
    panels = [charts.Surprise(_title(s), s.times, s.values, features, scores[s.rows]) for s in worst]
    charts.surprises(panels, detector.threshold_, _picture(out))
    count = int(found["anomaly"].sum())
    _say(console, out, f"{count:,} of {len(table):,} rows above {detector.threshold_:.3f} nats")


def forecast(run: Path, given: Path, out: Path, future: Path | None, console: Console, **arguments: Any) -> None:
    """Write a row for each id, time and feature of what comes after a table, with its mean and quantiles; and a
    picture."""
    forecaster, table = _asked(Forecaster, run, given, out, arguments)
    later = None if future is None else files.read(future, forecaster.time)
    with _told():
        found = forecaster.predict(table, later)
        series = forecaster.reader_.read(table)
    _write(found, out)
    panels = [fan for s in series[: charts.MOST] for fan in _fans(forecaster, s, found)][: charts.MOST]
    charts.fans(panels, _picture(out))
    _say(console, out, f"{forecaster.horizon} steps of {len(series):,} series")


def impute(run: Path, given: Path, out: Path, console: Console, **arguments: Any) -> None:
    """Write a table with its gaps filled, and a picture of some."""
    imputer, table = _asked(Imputer, run, given, out, arguments)
    with _told():
        found = imputer.transform(table)
        series = imputer.reader_.read(table)
    _write(found, out)
    features = list(imputer.reader_.features)
    counts = {(i, x): int(np.isnan(s.values[:, x]).sum()) for i, s in enumerate(series) for x in range(len(features))}
    some = [pair for pair, count in counts.items() if count] or list(counts)
    most = sorted(some, key=lambda pair: -counts[pair])[: charts.MOST]
    panels = []
    for i, x in sorted(most):
        rows, name = series[i].rows, features[x]
        before, after = (numbers_of(t[name])[rows] for t in (table, found))
        panels.append(charts.Gaps(_title(series[i], name), series[i].times, before, after))
    charts.gaps(panels, _picture(out))
    _say(console, out, f"{sum(counts.values()):,} gaps filled")


Answer = Literal["scores", "forecast", "imputed"]


def out_of(run: Path, kind: Answer, out: Path | None) -> Path:
    """Return the file that was named, or the one of this kind in the folder of the run."""
    return out or (run if run.is_dir() else run.parent) / f"{kind}.csv"


@contextmanager
def _told() -> Iterator[None]:
    """Let what an estimator refuses end in one line."""
    try:
        yield
    except (CheckpointError, DataError, RunError):
        raise
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(str(error)) from error


def _asked(kind: type[Any], run: Path, given: Path, out: Path, arguments: dict[str, Any]) -> tuple[Any, pd.DataFrame]:
    """Return the estimator of a run and a table, before whose answer it is known that there is a place for it."""
    with _told():
        estimator = kind.load(run, **{name: value for name, value in arguments.items() if value is not None})
    files.require_suffix(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return estimator, files.read(given, estimator.time)


def _write(table: pd.DataFrame, out: Path) -> None:
    try:
        files.write(table, out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror}") from error


def _named(estimator: Estimator) -> list[str]:
    return [name for name in (estimator.id, estimator.time) if name is not None]


def _title(series: TimeSeries, feature: str | None = None) -> str:
    return " ".join(str(word) for word in (series.key, feature) if word is not None)


def _fans(forecaster: Forecaster, series: TimeSeries, found: pd.DataFrame) -> Iterator[charts.Fan]:
    own = found if forecaster.id is None else found[found[forecaster.id] == series.key]
    reader, past = forecaster.reader_, slice(-_PAST * forecaster.horizon, None)
    values = reader.unscaled(series.values)[past]
    shares = sorted(forecaster.quantiles)
    time = forecaster.time or "time"
    for x, feature in enumerate(reader.features):
        rows = own[own["feature"] == feature]
        ends: NDArray[np.float64] = rows[list(map(quantile_column, shares))].to_numpy().T
        mean, later = rows["mean"].to_numpy(), clock(rows[time])
        yield charts.Fan(_title(series, feature), series.times[past], values[:, x], later, shares, ends, mean)


def _picture(out: Path) -> Path:
    return out.with_suffix(".png")


def _say(console: Console, out: Path, words: str) -> None:
    console.print(
        f"{words}; {out.name} and {_picture(out).name} written to {out.parent}", highlight=False, soft_wrap=True
    )
