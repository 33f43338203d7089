"""The record as pictures: who comes how near to the machine, how much faster, in how much memory, and how it grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from .record import Measurement, Record
from .scaling import Curve, curves
from .table import places

INK, FAINT = "#1f2328", "#d0d7de"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "vrnn_fast",  # the same record gives the same file
}
LOOK: dict[str, tuple[str, str]] = {  # colour and marker; hollow markers compute something else
    "nn.GRU alone": ("#9a6700", "^"),
    "nn.LSTM alone": ("#9a6700", "v"),
    "eager loop": ("#8c959f", "s"),
    "compiled cell": ("#bf8ad6", "D"),
    "compiled scan": ("#8250df", "X"),
    "JAX scan": ("#2da44e", "P"),
    "vrnn_fast, recompute": ("#79b8ff", "o"),
    "vrnn_fast": ("#0550ae", "o"),
}
US, EAGER = "vrnn_fast", "eager loop"

Places = Mapping[tuple[str, ...], Mapping[str, Measurement]]


def _label(place: tuple[str, ...]) -> str:
    name, batch, sizes = place
    return f"{name}\n{batch}, h {sizes.split(', ')[1]}"


def _shapes_on(axes: Axes, shapes: Places, *, labels: bool = True) -> None:
    axes.set_yticks(range(len(shapes)), [_label(place) if labels else "" for place in shapes])
    axes.set_ylim(len(shapes) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def share(shapes: Places) -> Figure:
    """Plot the share of the FMA peak by shape, a marker for each contender."""
    figure = Figure(figsize=(9, 1.3 + 0.55 * len(shapes)), layout="constrained")
    axes = figure.add_subplot()
    for i, rows in enumerate(shapes.values()):
        axes.axhline(i, color=FAINT, linewidth=0.8, zorder=0)
        for name, (colour, marker) in LOOK.items():
            if name in rows and (value := rows[name].share) is not None:
                hollow = rows[name].remark is not None
                axes.plot(
                    *(value, i, marker),
                    color=colour,
                    markerfacecolor="white" if hollow else colour,
                    markersize=10 if name == US else 7,
                    label=name,
                    linestyle="",
                )
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title("Forward and backward: share of what the processor's multiply-add units can do")
    _shapes_on(axes, shapes)
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """Name each contender once, below everything."""
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    names = [name for name in reversed(LOOK) if name in unique]
    figure.legend([unique[name] for name in names], names, loc="outside lower center", ncols=4)


def comparison(shapes: Places) -> Figure:
    """Plot speed-up over the eager loop, and activation memory as a share of its, by shape."""
    names = [name for name in reversed(LOOK) if any(r[name].speedup for r in shapes.values() if name in r)]
    names.remove(EAGER)
    figure = Figure(figsize=(9, 1.3 + (0.22 * len(names) + 0.12) * len(shapes)), layout="constrained")
    speed, memory = figure.subplots(1, 2, width_ratios=(3, 2))

    def bars(axes: Axes, value: Callable[[Measurement], float | None], start: float, digits: int) -> None:
        height = 0.85 / len(names)
        for j, name in enumerate(names):
            for i, rows in enumerate(shapes.values()):
                if name in rows and (width := value(rows[name])) is not None:
                    y = i + (j - (len(names) - 1) / 2) * height
                    axes.barh(y, width - start, 0.9 * height, left=start, color=LOOK[name][0], label=name)
                    side, align = (3, "left") if width >= start else (-3, "right")
                    axes.annotate(
                        f"{width:.{digits}f}",
                        *((width, y), (side, 0)),
                        textcoords="offset points",
                        ha=align,
                        va="center",
                        fontsize=7.5,
                    )
        axes.axvline(1, color=INK, linewidth=0.8, zorder=0)

    bars(speed, lambda row: row.speedup, start=1, digits=1)
    speed.set_xscale("log")
    speed.set_title("Times as fast as the eager loop")
    plain_log(speed.xaxis, (0.2, 0.5, 1, 2, 5, 10, 20, 50))
    speed.margins(x=0.12)
    _shapes_on(speed, shapes)

    of = {row.key: rows[EAGER].activation_bytes for rows in shapes.values() if EAGER in rows for row in rows.values()}

    def relative(row: Measurement) -> float | None:
        theirs = of.get(row.key)
        return None if row.activation_bytes is None or not theirs else row.activation_bytes / theirs

    bars(memory, relative, start=0, digits=2)
    memory.set_title("Activation memory, eager loop = 1")
    memory.set_xlim(0, max(1.25, memory.get_xlim()[1] * 1.1))
    _shapes_on(memory, shapes, labels=False)
    _legend(figure, speed)
    return figure


def plain_log(axis: mpl.axis.Axis, ticks: Sequence[float]) -> None:
    """Make a logarithmic axis with these ticks, written as people write numbers."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def scaling(found: Sequence[Curve]) -> Figure:
    """Plot time against T, B and h, a line for each number of threads; in a dotted line what proportion would be."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    colours = (LOOK["vrnn_fast, recompute"][0], LOOK[US][0])
    for axes, curve in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        for i, (threads, times) in enumerate(curve.milliseconds.items()):
            label = f"{threads} thread{'s' * (threads > 1)}, exponent {curve.exponent(threads):.2f}"
            axes.plot(list(times), list(times.values()), "o-", color=colours[i % 2], markersize=4, label=label)
        times = list(curve.milliseconds.values())[-1]
        last = max(times)
        power = 2 if curve.varied == "h" else 1  # weights are h x h
        line = [times[last] * (size / last) ** power for size in curve.sizes]
        axes.plot(curve.sizes, line, ":", color=INK, linewidth=1, label=f"as {curve.varied}{'²' * (power == 2)}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log(axes.xaxis, curve.sizes)
        low, high = axes.get_ylim()
        plain_log(axes.yaxis, [t for e in range(-2, 5) for m in (1, 2, 5) if low <= (t := m * 10.0**e) <= high])
        axes.tick_params(axis="x", labelsize=8, rotation=45 * (len(curve.sizes) > 7))
        axes.grid(color=FAINT, linewidth=0.5)
        axes.set_title(f"against {curve.varied}")
        axes.set_xlabel(f"{curve.varied}   ({curve.fixed})")
        axes.legend(fontsize=8, loc="upper left")
    figure.axes[0].set_ylabel("forward and backward, ms")
    return figure


def draw(record: Record, folder: Path) -> list[str]:
    """Write what the record's rows are enough for into ``folder`` as SVG; the pictures' names."""
    found = curves(record.rows)
    pictures: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        for experiment in ("training", "real"):
            shapes = {p: rows for p, rows in places(record.rows, experiment).items() if US in rows and rows[US].share}
            if shapes:
                pictures |= {f"{experiment}-share": share(shapes), f"{experiment}-comparison": comparison(shapes)}
        if found:
            pictures["scaling"] = scaling(found)
        for name, figure in pictures.items():
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
    return list(pictures)
