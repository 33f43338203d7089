"""Rows as tables, for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from .contender import TRAINING
from .record import Measurement, Provenance
from .scaling import Curve

MICROSECONDS_BELOW = 0.5  # milliseconds


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds:.2f} ms" if milliseconds >= MICROSECONDS_BELOW else f"{1e3 * milliseconds:.1f} µs"


def _quartiles(row: Measurement) -> str:
    """Write quartiles in the unit of the median."""
    if row.quartiles is None or row.milliseconds is None:
        return ""
    scale, digits = (1, 2) if row.milliseconds >= MICROSECONDS_BELOW else (1e3, 1)
    return " to ".join(f"{scale * q:.{digits}f}" for q in row.quartiles)


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _mebibytes(row: Measurement) -> str:
    return "" if row.activation_bytes is None else f"{row.activation_bytes / 2**20:.1f}"


PLACE: dict[str, Callable[[Measurement], str]] = {
    "shape": lambda row: row.shape,
    "T x B": lambda row: f"{row.steps} x {row.batch}",
    "x, h, z": lambda row: ", ".join(map(str, row.sizes)) if any(row.sizes) else "",
    "pass": lambda row: row.run,
}
COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "contender": lambda row: row.contender,
    "threads": lambda row: str(row.threads),
    "time": lambda row: "no result" if row.problem else _time(row.milliseconds),
    "quartiles": _quartiles,
    "GFLOP/s": lambda row: _number(row.gflops),
    "% of peak": lambda row: _number(row.share and 100 * row.share),
    "activations, MiB": _mebibytes,
    "speed-up": lambda row: _number(row.speedup, 2),
}
OLDER = "measured"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
WORDS = {*PLACE, "contender", "function", OLDER}


def older(rows: Collection[Measurement], latest: Provenance) -> str:
    """Tell with which states other than the latest these rows were measured, and who was, if not all."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.state and (state := row.state.beside(latest)):
            found.setdefault(state, []).append(row.contender)
    return "; ".join(s if len(who) == len(rows) else f"{s}: {', '.join(who)}" for s, who in found.items())


def problems(rows: Iterable[Measurement]) -> list[str]:
    """Tell why rows have no result, each reason once."""
    return list(
        dict.fromkeys(f"{r.contender} at {r.shape}, {r.steps} x {r.batch}: {r.problem}" for r in rows if r.problem)
    )


def remarks(rows: Iterable[Measurement]) -> list[str]:
    """Tell what must be known of contenders, each once."""
    return list(dict.fromkeys(f"{r.contender} {r.remark}" for r in rows if r.remark))


def render(rows: Sequence[Measurement]) -> Table:
    """Write one pass at one shape, a line for each contender."""
    title = ", ".join(text for column in PLACE.values() if (text := column(rows[0])))
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(column(row) for column in COLUMNS.values()))
    return table


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table without the columns that are empty."""
    lines = list(lines)
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    rules = ("---" if header[i] in WORDS else "--:" for i in kept)
    body = [[header[i] for i in kept], list(rules), *([line[i] for i in kept] for line in lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)


def in_full(rows: Iterable[Measurement], latest: Provenance) -> str:
    """Write every row, with where it was measured, and with what if that was not the latest state."""
    columns = PLACE | COLUMNS | {OLDER: lambda row: older([row], latest)}
    return markdown(list(columns), ([column(row) for column in columns.values()] for row in rows))


def of_curve(curve: Curve, latest: Provenance) -> str:
    """Write times by size, the faster number of threads, and the exponents below."""
    counts = list(curve.rows)
    header = [curve.varied, *(f"{n} thread{'s' * (n > 1)}" for n in counts), "faster", OLDER]
    times = curve.milliseconds

    def line(size: int) -> list[str]:
        rows = [curve.rows[n][size] for n in counts if size in curve.rows[n]]
        return [
            str(size),
            *(_time(times[n].get(size)) for n in counts),
            str(curve.fastest(size)),
            older(rows, latest),
        ]

    exponents = ["exponent", *(_number(curve.exponent(n), 2) for n in counts), "", ""]
    return markdown(header, [*map(line, curve.sizes), exponents])


def places(rows: Iterable[Measurement], experiment: str = "training") -> dict[tuple[str, ...], dict[str, Measurement]]:
    """Find an experiment's forward and backward passes by shape, then by contender."""
    found: dict[tuple[str, ...], dict[str, Measurement]] = {}
    for row in rows:
        if row.experiment == experiment and row.run == TRAINING:
            place = tuple(PLACE[name](row) for name in ("shape", "T x B", "x, h, z"))
            found.setdefault(place, {})[row.contender] = row
    return found


def summary(rows: Iterable[Measurement], latest: Provenance, us: str = "vrnn_fast", eager: str = "eager loop") -> str:
    """Write one line for each shape: milliseconds of forward and backward of everybody, and what ours is worth."""
    shapes = places(rows)
    names = list(dict.fromkeys(name for row in shapes.values() for name in row))

    def line(place: tuple[str, ...], row: dict[str, Measurement]) -> list[str]:
        own = row.get(us)
        ours, theirs = (row[name].activation_bytes if name in row else None for name in (us, eager))
        return [
            *place,
            *(_number(row[name].milliseconds, 2) or "no result" if name in row else "" for name in names),
            *(COLUMNS[name](own) if own else "" for name in ("GFLOP/s", "% of peak", "speed-up")),
            _number(ours / theirs, 2) if ours is not None and theirs else "",
            older(row.values(), latest),
        ]

    header = ["shape", "T x B", "x, h, z", *names, "GFLOP/s", "% of peak", "speed-up", "memory", OLDER]
    return markdown(header, (line(place, row) for place, row in shapes.items()))


def put(page: Path, parts: Iterable[str], begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between a page's two markers."""
    text = "\n\n".join([begin, *parts, end])
    page.write_text(re.sub(f"{begin}.*{end}", lambda _: text, page.read_text(), flags=re.DOTALL))
