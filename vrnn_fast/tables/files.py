"""Tables in files, comma-separated or Parquet: the name says which."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd

from ..replacing import replacing
from .reader import TableError

_FORMAT = "ISO8601"  # others do not say whether a day or a month comes first
SUFFIXES = (".csv", ".parquet")


def require_suffix(path: Path) -> None:
    """Raise TableError unless a file is named as one of a table."""
    if path.suffix.lower() not in SUFFIXES:
        raise TableError(f"a table is a file whose name ends in {' or '.join(SUFFIXES)}, got {path}")


def read(path: Path, time: str | None = None) -> pd.DataFrame:
    """Read a table; in the column ``time`` words become times.

    Raises:
        TableError: there is none, it cannot be read, or a word is no time.
    """
    require_suffix(path)
    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except FileNotFoundError as error:
        raise TableError(f"no table at {path}") from error
    except ImportError as error:
        raise TableError(_WITHOUT_PARQUET) from error
    except (OSError, ValueError) as error:
        raise TableError(f"{path} is not a readable table: {' '.join(str(error).split())}") from error
    if time in table.columns and not pd.api.types.is_numeric_dtype(table[time]):
        table[time] = _times(table[time])
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table, all of it or nothing.

    Raises:
        TableError: the name is of no kind of table, or Parquet cannot be written here.
    """
    require_suffix(path)
    try:
        with replacing(path) as file:
            if path.suffix.lower() == ".csv":
                table.to_csv(file, index=False)
            else:
                table.to_parquet(file, index=False)
    except ImportError as error:
        raise TableError(_WITHOUT_PARQUET) from error


_WITHOUT_PARQUET = "Parquet needs pyarrow, which is not installed: pip install vrnn-fast[tables]"


def _times(column: pd.Series) -> pd.Series:
    for utc in (False, True):  # where offsets differ, as around a change of summer time, those of one zone
        try:
            return pd.to_datetime(column, format=_FORMAT, utc=utc)
        except (ValueError, TypeError):
            continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = pd.to_datetime(column, format=_FORMAT, errors="coerce", utc=True).isna() & column.notna()
    at = int(bad.to_numpy().argmax())
    raise TableError(
        f"column {column.name!r} is {column.iloc[at]!r} in row {at}, which is no time as ISO 8601 writes it, such as "
        "2026-01-31 05:00"
    )
