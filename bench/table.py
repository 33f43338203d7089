"""The record as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from .record import Row


def _quartiles(row: Row) -> str:
    return f"{row.quartiles[0]:.2f} to {row.quartiles[1]:.2f}" if row.quartiles else ""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "shape": lambda row: row.shape,
    "T x B": lambda row: f"{row.steps} x {row.batch}",
    "pass": lambda row: row.run,
    "contender": lambda row: row.contender,
    "ms": lambda row: "no result" if row.problem else _number(row.milliseconds, 2),
    "quartiles": _quartiles,
    "GFLOP/s": lambda row: _number(row.gflops, 0),
    "speed-up": lambda row: _number(row.speedup, 2),
}
NUMBERS = ("ms", "quartiles", "GFLOP/s", "speed-up")


def problems(rows: Sequence[Row]) -> list[str]:
    """Why rows have no result, each reason once."""
    return list(
        dict.fromkeys(f"{r.contender} at {r.shape}, {r.steps} x {r.batch}: {r.problem}" for r in rows if r.problem)
    )


def render(rows: Sequence[Row], title: str) -> Table:
    """One line for each row, a rule below each shape's pass."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is None or (following.shape, following.batch, following.run) != (row.shape, row.batch, row.run)
        table.add_row(*(column(row) for column in COLUMNS.values()), end_section=last)
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The same table for a README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "".join("--:|" if n in NUMBERS else "---|" for n in COLUMNS)]
    lines += ["| " + " | ".join(column(row) for column in COLUMNS.values()) + " |" for row in rows]
    return "\n".join(lines)
