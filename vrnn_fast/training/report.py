"""Pictures and music of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .trainer import Epoch

INK, GREY, BLUE, ORANGE, GREEN = "#22223b", "#9a9aa8", "#2f6db5", "#d9772b", "#3a8f6b"


class Panel(NamedTuple):
    """One picture of features over time: values (T, X) between 0 and 1; the first ``prefix`` steps were given."""

    title: str
    values: Tensor
    color: str = BLUE
    prefix: int = 0


def curves(history: Sequence[Epoch], path: Path, *, baseline: float | None = None, title: str = "") -> None:
    """Write a PNG of the bound and the KL over the epochs. ``baseline`` is in nats per step."""
    figure = new_figure(8.0, 5.6)
    bound, kl = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    epochs = [epoch.number + 1 for epoch in history]
    valid = [epoch.valid.bound for epoch in history]
    best = min(range(len(valid)), key=valid.__getitem__)
    if baseline is not None:
        bound.axhline(baseline, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        label = f"independent features: {baseline:.2f}"
        bound.text(1, baseline, label, transform=bound.get_yaxis_transform(), color=GREY, ha="right", va="bottom")
    for values, color, name in (([e.train.bound for e in history], BLUE, "train"), (valid, ORANGE, "valid")):
        bound.plot(epochs, values, color=color, linewidth=2, label=name)
    bound.plot(epochs[best], valid[best], "o", color=ORANGE, markersize=7, markeredgecolor="white")
    bound.annotate(
        f"{valid[best]:.2f}",
        (epochs[best], valid[best]),
        (0, 10),
        textcoords="offset points",
        color=ORANGE,
        ha="center",
    )
    bound.set_ylabel("bound, nats per step")
    bound.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.92))
    bound.set_title(title, loc="left", color=INK, fontweight="bold")
    for values, color in (
        ([e.train.kl / e.train.time_steps for e in history], BLUE),
        ([e.valid.kl / e.valid.time_steps for e in history], ORANGE),
    ):
        kl.plot(epochs, values, color=color, linewidth=2)
    kl.set_ylabel("of which KL")
    kl.set_ylim(bottom=0)
    kl.set_xlabel("epoch")
    for axes in (bound, kl):
        plain_axes(axes)
        axes.grid(axis="y", color="#e8e8ee")
    figure.savefig(path)


def validations(history: Sequence[float], path: Path, *, title: str = "") -> None:
    """Write a PNG of nats per step over the validations of a fit."""
    figure = new_figure(8.0, 3.6)
    axes, best = figure.subplots(), min(range(len(history)), key=history.__getitem__)
    axes.plot(range(1, len(history) + 1), history, color=ORANGE, linewidth=2)
    axes.plot(best + 1, history[best], "o", color=ORANGE, markersize=7, markeredgecolor="white")
    axes.set_ylabel("bound, nats per step")
    axes.set_xlabel("validation")
    axes.locator_params(axis="x", integer=True)
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.grid(axis="y", color="#e8e8ee")
    plain_axes(axes)
    figure.savefig(path)


def rolls(panels: Sequence[Panel], path: Path, *, lowest: int | None = None) -> None:
    """Write a PNG of the panels, two in a row. ``lowest`` is the MIDI pitch of feature 0, if features are pitches."""
    figure = new_figure(11.0, 2.3 * ((len(panels) + 1) // 2))
    grid = figure.subplots((len(panels) + 1) // 2, 2, sharey=True, squeeze=False)
    low, high = _span(panels)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)
        axes.set_ylim(low - 0.5, high + 0.5)
        if lowest is not None:
            octaves = [feature for feature in range(low, high + 1) if (feature + lowest) % 12 == 0]
            axes.set_yticks(octaves, [f"C{(feature + lowest) // 12 - 1}" for feature in octaves])
            axes.grid(axis="y", color="#e8e8ee")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("quarter notes" if lowest is not None else "time steps")
    figure.savefig(path)


def midi(roll: Tensor, path: Path, *, lowest: int, tempo: int = 88) -> None:
    """Write a MIDI file of a roll (T, pitches): what is 1 sounds for that quarter note, at ``tempo`` a minute."""
    from music21 import chord, instrument, note, stream
    from music21 import tempo as tempi

    part = stream.Part([instrument.Organ(), tempi.MetronomeMark(number=tempo)])
    for step in roll.round().bool():
        pitches = [lowest + feature for feature in step.nonzero().flatten().tolist()]
        part.append(chord.Chord(pitches, quarterLength=1.0) if pitches else note.Rest(quarterLength=1.0))
    part.write("midi", fp=path)


def new_figure(width: float, height: float) -> Figure:
    """Return a figure that belongs to no window, and leaves the user's matplotlib settings alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def plain_axes(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK)
    axes.set_axisbelow(True)


def _span(panels: Sequence[Panel]) -> tuple[int, int]:
    """Return the first and the last feature that any panel shows, with a little room."""
    used = sum((panel.values > 0.05).any(0).int() for panel in panels)
    assert isinstance(used, Tensor)
    shown = used.nonzero().flatten().tolist() or [0]
    return max(0, shown[0] - 2), min(len(used) - 1, shown[-1] + 2)


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    for start, stop, color in ((0, panel.prefix, INK), (panel.prefix, len(panel.values), panel.color)):
        if start < stop:
            ramp = LinearSegmentedColormap.from_list("ramp", [(1, 1, 1, 0), color])
            extent = (start, stop, -0.5, panel.values.shape[1] - 0.5)
            image = panel.values[start:stop].T.numpy()
            axes.imshow(image, cmap=ramp, vmin=0, vmax=1, aspect="auto", origin="lower", extent=extent, zorder=2,
                        interpolation="nearest")  # fmt: skip
    if panel.prefix:
        axes.axvline(panel.prefix, color=INK, linewidth=1)
    axes.set_xlim(0, len(panel.values))
    axes.set_title(panel.title, loc="left", color=INK, fontsize=10)
    plain_axes(axes)
