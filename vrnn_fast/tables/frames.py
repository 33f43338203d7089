"""Tables of pandas and of polars: what comes back is of the library of what was given."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
        return _of_polars(table)
    lazy = ": collect it first" if hasattr(table, "collect") else ""
    raise TypeError(f"table must be a DataFrame of pandas or polars, got {type(table).__name__}{lazy}")


def like(given: Table, found: pd.DataFrame, same: Sequence[str] = ()) -> Table:
    """Return a table of pandas as one of the library of what was ``given``, the columns ``same`` of the dtypes that
    they have there."""
    if not _is_polars(given):
        return found.astype({name: given[name].dtype for name in same})
    import polars

    return polars.from_pandas(found).cast({name: given.schema[name] for name in same})


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


def _of_polars(table: Table) -> pd.DataFrame:
    """Return a table of polars as one of pandas: no decimals, which may be times as well."""
    import polars.selectors

    found: pd.DataFrame = table.with_columns(polars.selectors.decimal().cast(polars.Float64)).to_pandas()
    return found


def _is_polars(table: Table) -> bool:
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(table, polars.DataFrame)
