"""From the rows of a table to sequences, and back: what is learnt of the table that a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.reading import DataError

Numbers = NDArray[np.float64]
FARTHEST = 1e18  # deviations from the mean: its square is a float32, and so is a Gaussian's density of it


class TableError(DataError):
    """A table is not what it must be; the message names the column and the row."""


@dataclass(frozen=True)
class Columns:
    """Which columns are what; ``features`` None are all others."""

    features: tuple[str, ...] | None = None
    id: str | None = None
    time: str | None = None
    covariates: tuple[str, ...] = ()


@dataclass(frozen=True)
class TimeSeries:
    """The rows of one id, in the order of time.

    Attributes:
        key: the id; None where the table has no such column.
        rows: (T,) where they are in the table.
        times: (T,) time stamps, of UTC where the table names zones, or the numbers of rows.
        values: (T, X) as a model sees them, scaled, NaN where nothing was observed.
        covariates: (T, C) as a model sees them.
    """

    key: Any
    rows: NDArray[np.int64]
    times: NDArray[Any]
    values: Numbers
    covariates: Numbers

    def part(self, at: slice) -> TimeSeries:
        """Return some steps of it."""
        return TimeSeries(self.key, self.rows[at], self.times[at], self.values[at], self.covariates[at])


@dataclass(frozen=True)
class TableReader:
    """How a table is read: learnt from the one that a model is trained on.

    Attributes:
        features: columns of x.
        mean, std: (X,) of what was observed of each in the rows that are trained on, which scale it.
        levels: of each covariate: the categories of one that holds words, or mean and standard deviation.
        step: the median time between two rows; None without a column of times.
        irregular: whether steps differed; the model is then told each, as a covariate.
    """

    columns: Columns
    features: tuple[str, ...]
    mean: Numbers
    std: Numbers
    levels: Mapping[str, tuple[Any, ...]]
    step: Any
    irregular: bool

    @classmethod
    def learn(cls, table: pd.DataFrame, columns: Columns, validation: float = 0.0) -> TableReader:
        """Learn columns, scales, categories and the time step; scales without the share of each series, its end, that
        is held back for ``validation``.

        Raises:
            TableError: a column is missing, holds words or nothing, or times come twice.
        """
        _require_table(table)
        own = [c for c in (columns.id, columns.time, *columns.covariates) if c is not None]
        features = columns.features if columns.features is not None else tuple(c for c in table.columns if c not in own)
        _require_columns(table, (*own, *features))
        twice = [name for i, name in enumerate((*own, *features)) if name in (*own, *features)[:i]]
        if twice:
            raise TableError(f"column {twice[0]!r} is named twice among id, time, covariates and features")
        if not features:
            raise TableError("a table needs a column that is neither id, time nor covariate")
        values, groups = _numbers(table, features), _rows_of(table, columns)
        trained = np.concatenate([rows[: steps_trained(len(rows), validation)] for _, rows, _ in groups])
        scales = [_scale(name, values[:, i], trained) for i, name in enumerate(features)]
        levels = {name: _levels(table[name], trained) for name in columns.covariates}
        steps = [np.diff(times) for _, _, times in groups] if columns.time is not None else []
        every = np.concatenate(steps) if steps else np.empty(0)
        if columns.time is not None and not len(every):
            raise TableError(f"column {columns.time!r} has one row of each id: no step can be learnt from it")
        step = np.sort(every)[len(every) // 2] if len(every) else None
        irregular = bool(len(every)) and not _even(every, step).all()
        mean, std = np.array(scales).T
        return cls(columns, features, mean, std, levels, step, irregular)

    @property
    def cond_size(self) -> int:
        """How many numbers the model is told of each row beside its features."""
        told = [len(known) - 1 if known[0] == _WORDS else 1 for known in self.levels.values()]
        return sum(told) + int(self.irregular)

    def read(self, table: pd.DataFrame) -> list[TimeSeries]:
        """Return the series of a table with the same columns, in the order of their ids.

        Raises:
            TableError: a column is missing or holds what was never seen, a covariate is missing in a row, times come
                twice, or steps differ where they never did.
        """
        _require_table(table)
        _require_columns(table, self.features)
        values = _scaled(_numbers(table, self.features), self.mean, self.std)
        covariates = self._covariates(table)
        found = []
        for key, rows, times in self._rows_of(table):
            told = np.concatenate([covariates[rows], self._elapsed(times)], 1)
            found.append(TimeSeries(key, rows, times, values[rows], told))
        return found

    def read_future(self, table: pd.DataFrame) -> dict[Any, TimeSeries]:
        """Return what a table says of the rows to come, by id: times and covariates, no values.

        Raises:
            TableError: as :meth:`read`.
        """
        _require_table(table)
        covariates, nothing = self._covariates(table), np.empty((len(table), 0))
        return {
            key: TimeSeries(key, rows, times, nothing[rows], covariates[rows])
            for key, rows, times in self._rows_of(table)
        }

    def future(
        self, series: TimeSeries, horizon: int, known: Mapping[Any, TimeSeries] | None
    ) -> tuple[NDArray[Any], Numbers]:
        """Return times (horizon,) and covariates (horizon, C) of what comes after a series: of what is ``known``, as
        :meth:`read_future` gives it, the first rows that are later; otherwise of steps as long as the median one.

        Raises:
            TableError: covariates are known to the model, and no row of them for each step; or steps differ where they
                never did.
        """
        step = 1 if self.step is None else self.step
        if known is None:
            if self.columns.covariates:
                names = ", ".join(map(repr, self.columns.covariates))
                raise TableError(f"future must be given: a table with {names} of the {horizon} steps to come")
            _require_representable(self.columns.time, series.times[-1], step, horizon)
            times = series.times[-1] + step * np.arange(1, horizon + 1)
            return times, np.zeros((horizon, int(self.irregular)))
        later = known.get(series.key)
        if later is not None and self.columns.time is not None:
            later = later.part(slice(int(np.sum(later.times <= series.times[-1])), None))
        if later is None or len(later.rows) < horizon:
            whose = "" if series.key is None else f" of {self.columns.id} {series.key!r}"
            raise TableError(f"future must have {horizon} rows{whose}, one for each step to come")
        later = later.part(slice(horizon))
        if self.columns.time is None:
            return len(series.rows) + later.times, later.covariates
        elapsed = self._elapsed(np.concatenate([series.times[-1:], later.times]))[1:]
        return later.times, np.concatenate([later.covariates, elapsed], 1)

    def has_times(self, series: TimeSeries, times: NDArray[Any]) -> bool:
        """Tell whether the rows of a series are those at these times, to a thousandth of a step."""
        if len(series.rows) != len(times):
            return False
        return self.step is None or bool(_even(series.times - times + self.step, self.step).all())

    def unscaled(self, x: Numbers) -> Numbers:
        """Return (..., X) in the units of the table."""
        return x * self.std + self.mean

    def _rows_of(self, table: pd.DataFrame) -> list[tuple[Any, NDArray[np.int64], NDArray[Any]]]:
        """Return each id with its rows and their times, which are of the kind that the model was fitted on."""
        groups = _rows_of(table, self.columns)
        if self.step is not None:
            kinds = {True: "times", False: "numbers"}
            learnt = isinstance(self.step, np.timedelta64)
            if (groups[0][2].dtype.kind == "M") != learnt:
                raise TableError(
                    f"column {self.columns.time!r} holds {kinds[not learnt]}, and held {kinds[learnt]} in the table "
                    "that the model was fitted on"
                )
        return groups

    def _covariates(self, table: pd.DataFrame) -> Numbers:
        _require_columns(table, self.columns.covariates)
        told = [np.empty((len(table), 0))]
        for name, known in self.levels.items():
            column = table[name]
            if column.isna().any():
                raise TableError(f"column {name!r} is missing in row {_first(column.isna())}: covariates never are")
            if known[0] == _WORDS:
                strange = ~column.isin(known[1:])
                if strange.any():
                    at = _first(strange)
                    raise TableError(f"column {name!r} is {column.iloc[at]!r} in row {at}, which was never seen in fit")
                told.append(np.stack([(column == word).to_numpy(float) for word in known[1:]], 1))
            else:
                told.append(_scaled(_numbers(table, (name,)), *known))
        return np.concatenate(told, 1)

    def _elapsed(self, times: NDArray[Any]) -> Numbers:
        """Return (T, 1) log of the time since the last row, in median steps, 0 for the first row; (T, 0) where steps
        never differed.

        Raises:
            TableError: they do now.
        """
        steps = np.diff(times)
        if self.irregular:
            return np.concatenate([np.zeros(1), np.log(np.asarray(steps / self.step, dtype=float))])[:, None]
        if self.step is not None and not (even := _even(steps, self.step)).all():
            at = int(np.argmin(even))
            raise TableError(
                f"column {self.columns.time!r} goes from {said(times[at])} to {said(times[at + 1])}, where the table "
                f"that the model was fitted on has steps of {said(self.step)} alone: insert the rows in between, with "
                "NaN"
            )
        return np.empty((len(times), 0))


_WORDS = "one of"


def _levels(column: pd.Series, trained: NDArray[np.int64]) -> tuple[Any, ...]:
    """Return (mean, standard deviation) of a covariate of numbers, or the mark of words and the words in order.

    Raises:
        TableError: it holds times, or words that are none: numbers, or words of which most are of a single row.
    """
    numeric = pd.api.types.is_numeric_dtype(column) or _objects_of(column, *_FRACTIONS)
    if numeric and not pd.api.types.is_bool_dtype(column):
        return _scale(column.name, _numbers(column.to_frame(), (column.name,))[:, 0], trained)
    if pd.api.types.is_datetime64_any_dtype(column):
        raise TableError(f"column {column.name!r} holds times, and a covariate must be numbers or words: the hour, say")
    if not isinstance(column.dtype, pd.CategoricalDtype):
        _require_words(column)
    return _WORDS, *pd.factorize(column.dropna(), sort=True)[1]


def _require_words(column: pd.Series) -> None:
    """Raise TableError where words are not such as rows have in common, each of which has a column of its own."""
    read = pd.to_numeric(column.astype(object), errors="coerce") if _is_of_words(column) else pd.Series(dtype=float)
    if (read % 1 > 0).any():
        what, words = "holds numbers as words", column.notna() & read.isna()
        if words.any():
            at = _first(words)
            what = f"is {column.iloc[at]!r} in row {at}, and a number elsewhere"
        raise TableError(f"column {column.name!r} {what}: a covariate is one or the other, see pandas.to_numeric")
    codes, _ = pd.factorize(column)  # of what is missing -1
    alone = int((np.bincount(codes + 1)[1:] == 1).sum())
    if alone > max(len(column) // 2, _FEW):
        raise TableError(
            f"column {column.name!r} holds {alone} words of one row each: nothing is learnt of a covariate whose "
            "words most rows have for themselves"
        )


_FEW = 8  # rows of a table that shows no more than how a table looks


def _is_of_words(column: pd.Series) -> bool:
    """Tell whether a column may hold words."""
    return bool(pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column))


def steps_trained(steps: int, validation: float) -> int:
    """Return how many steps of a series are trained on, where a share of it, its end, is held back."""
    return max(1, steps - round(validation * steps))


def _scale(name: Any, values: Numbers, trained: NDArray[np.int64]) -> tuple[float, float]:
    """Return mean and standard deviation of a column in the rows that are trained on, or in all where nothing was
    observed in those; and 1 for the deviation of a constant, whose own is nothing but rounding.

    Raises:
        TableError: nothing was observed at all, or the variance overflows.
    """
    observed = values[trained] if not np.isnan(values[trained]).all() else values
    if np.isnan(observed).all():
        raise TableError(f"column {name!r} holds no number")
    _, power = np.frexp(np.nanmax(np.abs(observed)))  # of two: what is divided by it keeps all its digits
    observed = np.ldexp(observed, -power)
    mean, std = (float(np.ldexp(found, power)) for found in (np.nanmean(observed), np.nanstd(observed)))
    if std <= 1e-12 * abs(mean):
        return float(np.ldexp(np.nanmedian(observed), power)), 1.0  # its mean is rounded, and may be far from all of it
    if std > np.sqrt(np.finfo(float).max):
        raise TableError(
            f"column {name!r} holds numbers so large that their variance overflows: where they say that nothing was "
            "observed, put NaN, else give it another unit"
        )
    return mean, std


def _scaled(values: Numbers, mean: Any, std: Any) -> Numbers:
    """Return deviations from the mean, none farther than a model bears."""
    with np.errstate(over="ignore"):
        found: Numbers = np.clip((values - mean) / std, -FARTHEST, FARTHEST)
    return found


def _numbers(table: pd.DataFrame, names: Sequence[str]) -> Numbers:
    values = np.stack([numbers_of(table[name]) for name in names], 1)
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise TableError(f"column {names[column]!r} is infinite in row {row}: NaN says that nothing was observed")
    return values


def numbers_of(column: pd.Series) -> Numbers:
    """Return a column of numbers or of truth values, whichever dtype pandas keeps it in; what is missing is NaN.

    Raises:
        TableError: it holds anything else.
    """
    if column.isna().all():  # whatever its dtype: a sensor that was off
        return np.full(len(column), np.nan)
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)
    if not (numeric or pd.api.types.is_bool_dtype(column) or _objects_of(column, *_FRACTIONS, "integer", "boolean")):
        _require_no_word_among_numbers(column)
        raise TableError(
            f"column {column.name!r} holds {column.dtype}, and x must be numbers: name it as id, time or "
            "covariate, or leave it out of the features"
        )
    if pd.api.types.is_object_dtype(column):
        column = column.where(column.notna(), np.nan)
    found: Numbers = column.to_numpy(dtype=float, na_value=np.nan)
    return found


_FRACTIONS = ("floating", "decimal", "mixed-integer-float")


def _objects_of(column: pd.Series, *kinds: str) -> bool:
    """Tell whether a column holds objects of Python's of these kinds alone, as truth values with gaps are read from a
    file, and decimals from a data base."""
    return pd.api.types.is_object_dtype(column) and pd.api.types.infer_dtype(column, skipna=True) in kinds


def _require_no_word_among_numbers(column: pd.Series) -> None:
    """Raise TableError where a column would hold numbers, were it not for some words, and name the first one."""
    if not _is_of_words(column):
        return
    strange = pd.to_numeric(column, errors="coerce").isna() & column.notna()
    if strange.any() and not strange.equals(column.notna()):
        at = _first(strange)
        raise TableError(
            f"column {column.name!r} is {column.iloc[at]!r} in row {at}, and x must be numbers: where nothing was "
            "observed, put NaN, or leave it empty in a file"
        )


def _rows_of(table: pd.DataFrame, columns: Columns) -> list[tuple[Any, NDArray[np.int64], NDArray[Any]]]:
    """Return each id with its rows in the order of time, and their times."""
    _require_columns(table, [c for c in (columns.id, columns.time) if c is not None])
    numbers = np.arange(len(table))
    groups: list[tuple[Any, NDArray[np.int64]]] = [(None, numbers)]
    if columns.id is not None:
        if table[columns.id].isna().any():
            raise TableError(f"column {columns.id!r} is missing in row {_first(table[columns.id].isna())}")
        codes, keys = pd.factorize(table[columns.id], sort=True)
        order = np.argsort(codes, kind="stable")
        groups = list(zip(keys, np.split(order, np.flatnonzero(np.diff(codes[order])) + 1), strict=True))
    if columns.time is None:
        return [(key, rows, np.arange(len(rows))) for key, rows in groups]
    stamps = _without_days(table[columns.time])
    if stamps.isna().any():
        raise TableError(f"column {columns.time!r} is missing in row {_first(stamps.isna())}")
    numeric = pd.api.types.is_numeric_dtype(stamps) and not pd.api.types.is_bool_dtype(stamps)
    if not (pd.api.types.is_datetime64_any_dtype(stamps) or numeric):
        raise TableError(
            f"column {columns.time!r} must hold times or numbers, and holds {stamps.dtype}: {_way_to_times(stamps)}"
        )
    if numeric and np.isinf(stamps.to_numpy(dtype=float)).any():
        raise TableError(f"column {columns.time!r} is infinite in row {_first(np.isinf(stamps.astype(float)))}")
    if pd.api.types.is_unsigned_integer_dtype(stamps) and (beyond := stamps > np.iinfo(np.int64).max).any():
        at = _first(beyond)
        raise TableError(
            f"column {columns.time!r} is {stamps.iloc[at]} in row {at}, and numbers of time must be below 2**63: begin "
            "them elsewhere, or count in a longer unit"
        )
    times, found = clock(stamps), []
    for key, rows in groups:
        rows = rows[np.argsort(times[rows], kind="stable")]
        same = times[rows][1:] == times[rows][:-1]
        if same.any():
            at = rows[int(np.argmax(same)) + 1]
            raise TableError(f"column {columns.time!r} is {stamps.iloc[at]} a second time in row {at}")
        found.append((key, rows, times[rows]))
    return found


def _way_to_times(stamps: pd.Series) -> str:
    """Tell what makes times or numbers of a column that holds neither."""
    if isinstance(stamps.dtype, pd.PeriodDtype):
        return "its .dt.to_timestamp()"
    return "its .dt.total_seconds()" if stamps.dtype.kind == "m" else "pandas.to_datetime"


def clock(stamps: pd.Series) -> NDArray[Any]:
    """Return times or numbers as NumPy has them: of a zone, in UTC."""
    if _zone(stamps) is not None:
        stamps = stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    if pd.api.types.is_integer_dtype(stamps):
        stamps = stamps.astype("int64")  # differences of narrow ones overflow
    found: NDArray[Any] = stamps.to_numpy()
    return found


def said(value: Any) -> Any:
    """Return a time or the length of one as people write it."""
    if isinstance(value, np.datetime64):
        return pd.Timestamp(value)
    return pd.Timedelta(value) if isinstance(value, np.timedelta64) else value


def in_zone_of(stamps: pd.Series, times: NDArray[Any]) -> pd.Series:
    """Return times of UTC as a table with these stamps says them."""
    zone, found = _zone(_without_days(stamps)), pd.Series(times)
    return found if zone is None else found.dt.tz_localize("UTC").dt.tz_convert(zone)


def _zone(stamps: pd.Series) -> Any:
    """Return the zone of a column of times; None where it has none, as numbers have none."""
    return getattr(getattr(stamps, "dt", None), "tz", None)


def _without_days(stamps: pd.Series) -> pd.Series:
    """Return the days of Arrow as times, and all else as it is."""
    return stamps.astype("datetime64[s]") if str(stamps.dtype).startswith("date32") else stamps


def _require_representable(name: Any, last: Any, step: Any, horizon: int) -> None:
    """Raise TableError where times that go on by a step leave what their dtype can say, where they would begin anew."""
    dtype = (last + step).dtype
    if dtype.kind not in "Mi":
        return
    begin, each = (_whole(value, dtype) for value in (last, step))
    if abs(begin + each * horizon) <= np.iinfo(np.int64).max:
        return
    latest = said(np.array(np.iinfo(np.int64).max).astype(dtype)[()])
    raise TableError(
        f"column {name!r} would go on from {said(last)} beyond {latest}, the last that {dtype} can say: take a shorter "
        "horizon, or give the column in a longer unit"
    )


def _whole(value: Any, dtype: np.dtype[Any]) -> int:
    """Return a time, the length of one or an integer in the unit of a dtype, as an integer without bounds."""
    if dtype.kind != "M":
        return int(value)
    own, unit = (np.array(1, f"m8[{np.datetime_data(of)[0]}]") for of in (value.dtype, dtype))
    return int(value.astype(np.int64)) * int(own / unit)


def _even(steps: NDArray[Any], step: Any) -> NDArray[np.bool_]:
    """Tell which steps are as long as ``step``, to a thousandth."""
    even: NDArray[np.bool_] = np.abs(np.asarray(steps / step, dtype=float) - 1) < 1e-3
    return even


def _first(wrong: pd.Series) -> int:
    return int(np.argmax(wrong.to_numpy()))


def _require_table(table: pd.DataFrame) -> None:
    if not len(table):
        raise TableError("the table has no rows")


def _require_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.columns and name in table.index.names:
            raise TableError(f"{name!r} is the index of the table, and no column: table.reset_index()")
        if name not in table.columns:
            raise TableError(f"the table has no column {name!r}, only {', '.join(map(repr, table.columns))}")
        if isinstance(table[name], pd.DataFrame):
            raise TableError(f"the table has several columns {name!r}: rename all but one")
