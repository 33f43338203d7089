"""``python -m bench.history``: how rows went from commit to commit, as tables and, if asked for, a picture.

Every row that ``python -m bench`` measured is a line of its machine's history, ``bench/results/<machine>.jsonl``. Times
of a shared machine differ from hour to hour: the speed-up, over an eager loop in the same turns, differs less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table

from .contender import TRAINING
from .figures import FAINT, STYLE
from .record import RESULTS, Key, Measurement, Provenance
from .table import COLUMNS, PLACE

Course: TypeAlias = Sequence[Measurement]  # one row's measurements, from the oldest to the latest

SHOWN = ("time", "quartiles", "GFLOP/s", "% of peak", "speed-up")


def read(path: Path) -> list[Measurement]:
    """Read every measurement in a machine's history, from the oldest to the latest."""
    rows = [Measurement.of_json(json.loads(line)) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: _state(row).date)


def courses(rows: Sequence[Measurement], **wanted: str | Sequence[str] | None) -> dict[Key, list[Measurement]]:
    """Find the courses of the rows whose columns have one of the wanted values; None wants any."""
    found: dict[Key, list[Measurement]] = {}
    for row in rows:
        if all(value is None or getattr(row, name) in value for name, value in wanted.items()):
            found.setdefault(row.key, []).append(row)
    return found


def _state(row: Measurement) -> Provenance:
    if row.state is None:
        raise ValueError(f"a row of a history must name its state, and {row.contender} at {row.shape} names none")
    return row.state


def name(row: Measurement) -> str:
    """Say what a course is of, in words."""
    return ", ".join(text for text in (*(column(row) for column in PLACE.values()), row.contender) if text)


def changes(course: Course) -> list[str]:
    """Tell how much more, or less, time each measurement took than the last one that has a time."""
    found = []
    last: float | None = None
    for row in course:
        found.append(f"{100 * (row.milliseconds / last - 1):+.0f} %" if row.milliseconds and last else "")
        last = row.milliseconds or last
    return found


def table(course: Course) -> Table:
    """Write a line for each measurement: with which commit, which versions if they are others than before, and what
    came."""
    rows = Table(title=name(course[-1]), title_justify="left", box=box.SIMPLE)
    for title in ("measured", *SHOWN, "change"):
        rows.add_column(title, justify="left" if title == "measured" else "right", no_wrap=True)
    before = _state(course[0])
    for row, change in zip(course, changes(course), strict=True):
        state = _state(row)
        rows.add_row(state.beside(before) or str(state), *(COLUMNS[title](row) for title in SHOWN), change)
        before = state
    return rows


def _panel(axes: Axes, found: Mapping[Key, Course], column: str, title: str) -> None:
    """Draw one column of the courses over the states that were measured, each state as far from the next."""
    states = sorted({_state(row) for course in found.values() for row in course}, key=lambda state: state.date)
    for course in found.values():
        rows = [row for row in course if getattr(row, column) is not None]
        places, values = [states.index(_state(row)) for row in rows], [getattr(row, column) for row in rows]
        (line,) = axes.plot(places, values, "o-", markersize=4, label=name(course[-1]))
        if column == "milliseconds":
            for place, row in zip(places, rows, strict=True):
                if row.quartiles:
                    axes.plot((place, place), row.quartiles, color=line.get_color(), linewidth=1)
    axes.set_xticks(range(len(states)), [f"{s.date[:10]}\n{s.commit[:10]}" for s in states], rotation=45, fontsize=8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_title(title)


def draw(machines: Mapping[str, Mapping[Key, Course]], path: Path) -> None:
    """Write times, with quartiles, and speed-ups of all courses as a picture; a row of panels for each machine."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.8 * len(machines)), layout="constrained")
        panels = figure.subplots(len(machines), 2, squeeze=False)
        for (machine, found), (times, speed_ups) in zip(machines.items(), panels, strict=True):
            _panel(times, found, "milliseconds", machine)
            _panel(speed_ups, found, "speedup", "times as fast as the eager loop")
            times.set_ylabel("ms")
            speed_ups.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        dateless = {"Date": None} if path.suffix == ".svg" else None  # the same history gives the same file
        figure.savefig(path, facecolor="white", metadata=dateless)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the courses of the rows that were asked for, machine by machine, and draw them."""
    parser = argparse.ArgumentParser(prog="python -m bench.history", description=__doc__)
    parser.add_argument("--experiment", default="training", help="(default: %(default)s)")
    parser.add_argument("--shape", action="append", help="by name; may be repeated (default: every one)")
    parser.add_argument("--pass", dest="run", default=TRAINING, help="(default: %(default)s)")
    parser.add_argument("--contender", action="append", help="by name; may be repeated (default: vrnn_fast)")
    parser.add_argument("--picture", type=Path, help="write one too: a name that ends in .svg, .png or .pdf")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the histories' folder (default: bench/results)")
    options = parser.parse_args(arguments)
    if options.picture and options.picture.suffix not in (".svg", ".png", ".pdf"):
        parser.error(f"--picture must end in .svg, .png or .pdf, got {options.picture}")
    machines: dict[str, dict[Key, list[Measurement]]] = {}
    for path in sorted(options.results.glob("*.jsonl")):
        found = courses(
            read(path),
            experiment=[options.experiment],
            shape=options.shape,
            run=[options.run],
            contender=options.contender or ["vrnn_fast"],
        )
        if found:
            machines[path.stem] = found
    if not machines:
        parser.error(f"no history in {options.results} has such a row; python -m bench measures one")
    console = Console(width=max(130, Console().width), soft_wrap=True)
    for machine, found in machines.items():
        console.print(f"\n{machine}\n")
        for course in found.values():
            console.print(table(course))
    if options.picture:
        draw(machines, options.picture)
        console.print(f"drawn in {options.picture}")


if __name__ == "__main__":
    main()
