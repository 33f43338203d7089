"""Tables of pandas and of polars: what comes back is of the library of what was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import pandas as pd
from numpy.typing import NDArray

Table: TypeAlias = Any
"""A DataFrame of pandas or of polars."""


def as_pandas(table: Table) -> pd.DataFrame:
    """Return a table as one of pandas; what is null becomes NaN.

    Raises:
        TypeError: it is no table.
    """
    if isinstance(table, pd.DataFrame):
        return table
    if _is_polars(table):
        return table.to_pandas()
    lazy = ": collect it first" if hasattr(table, "collect") else ""
    raise TypeError(f"table must be a DataFrame of pandas or polars, got {type(table).__name__}{lazy}")


def like(given: Table, found: pd.DataFrame) -> Table:
    """Return a table of pandas as one of the library of what was ``given``."""
    if not _is_polars(given):
        return found
    import polars

    return polars.from_pandas(found)


def with_columns(table: Table, columns: Mapping[str, NDArray[Any]]) -> Table:
    """Return a copy of a table with other values in some columns, whose floating dtypes stay."""
    if _is_polars(table):
        import polars

        dtypes = {n: table.schema[n] if table.schema[n].is_float() else polars.Float64 for n in columns}
        return table.with_columns(polars.Series(n, values, dtypes[n]) for n, values in columns.items())
    result = table.copy()
    for name, values in columns.items():
        kept = table[name].dtype if pd.api.types.is_float_dtype(table[name]) else float
        result[name] = pd.Series(values, index=table.index).astype(kept)
    return result


def _is_polars(table: Table) -> bool:
    return type(table).__module__.partition(".")[0] == "polars" and hasattr(table, "to_pandas")
