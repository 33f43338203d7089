"""Pictures of what a model tells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tables.reader import Numbers
from .report import BLUE, GREEN, GREY, INK, ORANGE, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MOST = 6  # series, or features of series, in one picture
_LEGEND = 8  # features that a legend names
_THIN = 0.22  # opacity of a band
_COLORS = (BLUE, GREEN, "#8a5fb0", "#b05f6d", "#5f9bb0", "#7a7a35", GREY, INK)


class Surprise(NamedTuple):
    """A series and its scores: times (T,), values (T, X) of about one scale, scores (T,) in nats."""

    title: str
    times: NDArray[np.generic]
    values: Numbers
    features: Sequence[str]
    scores: Numbers


class Fan(NamedTuple):
    """A feature of a series, and how it goes on: times (T,), values (T,), later (horizon,), quantiles (Q, horizon) of
    these shares in ascending order, and the mean (horizon,)."""

    title: str
    times: NDArray[np.generic]
    values: Numbers
    later: NDArray[np.generic]
    shares: Sequence[float]
    quantiles: Numbers
    mean: Numbers


class Gaps(NamedTuple):
    """A feature of a series, whose gaps were filled: times, values and filled (T,), NaN in values at a gap."""

    title: str
    times: NDArray[np.generic]
    values: Numbers
    filled: Numbers


def surprises(panels: Sequence[Surprise], threshold: float, path: Path) -> None:
    """Write a PNG of series, the scores of each below it, the threshold across them."""
    drawn = new_figure(11.0, 3.4 * len(panels))
    grid = drawn.subplots(2 * len(panels), 1, squeeze=False, height_ratios=(3, 2) * len(panels))[:, 0]
    for panel, above, below in zip(panels, grid[::2], grid[1::2], strict=True):
        wrong = panel.scores > threshold
        for name, values, color in zip(panel.features, panel.values.T, _cycled(panel.values.shape[1]), strict=True):
            above.plot(panel.times, values, color=color, linewidth=1, label=name)
        marks = {"color": ORANGE, "linewidth": 3, "alpha": 0.25, "zorder": 0}
        above.vlines(panel.times[wrong], 0, 1, transform=above.get_xaxis_transform(), **marks)
        if len(panel.features) <= _LEGEND:
            _legend(above)
        above.set_ylabel("deviations")
        above.tick_params(labelbottom=False)
        below.sharex(above)
        if panel.scores.max() > 10 * (width := max(1.0, abs(threshold))):  # one row may be hundreds above all others
            tens = [0.0, *(10.0**power for power in range(1, 9) if 10**power < 2 * panel.scores.max())]
            below.set_yscale("asinh", linear_width=width)
            below.set_yticks(tens, [f"{tick:,.0f}" for tick in tens])
            below.minorticks_off()
        below.plot(panel.times, panel.scores, color=INK, linewidth=1)
        below.plot(panel.times[wrong], panel.scores[wrong], "o", color=ORANGE, markersize=4)
        below.axhline(threshold, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
        below.margins(y=0.15)
        below.set_ylabel("score, nats")
        _finish(above, panel.title)
        _finish(below, "")
    drawn.savefig(path)


def fans(panels: Sequence[Fan], path: Path) -> None:
    """Write a PNG of series and their forecasts: a band between the lowest and the highest quantile, a darker one
    between the next two, and so on, and the middle one or the mean as a line."""
    from matplotlib.patches import Patch

    drawn = new_figure(11.0, 2.5 * len(panels))
    for panel, axes in zip(panels, drawn.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
        axes.plot(panel.times, panel.values, color=INK, linewidth=1.2)
        count = len(panel.shares)
        bands = []
        for i in range(count // 2):
            ends = panel.quantiles[i], panel.quantiles[-1 - i]
            axes.fill_between(panel.later, *ends, color=BLUE, alpha=_THIN, linewidth=0)
            dark = 1 - (1 - _THIN) ** (i + 1)  # of all the bands that lie upon each other there
            bands.append(Patch(color=BLUE, alpha=dark, label=f"{panel.shares[i]:g} to {panel.shares[-1 - i]:g}"))
        middle, name = panel.mean, "mean"
        if count % 2:
            middle, name = panel.quantiles[count // 2], f"{panel.shares[count // 2]:g}"
        (line,) = axes.plot(panel.later, middle, color=BLUE, linewidth=1.6, label=name)
        axes.axvline(panel.times[-1], color=GREY, linewidth=0.8)
        if panel is panels[0]:
            _legend(axes, [*bands, line])
        _finish(axes, panel.title)
    drawn.savefig(path)


def gaps(panels: Sequence[Gaps], path: Path) -> None:
    """Write a PNG of series, what was filled in another colour."""
    drawn = new_figure(11.0, 2.5 * len(panels))
    for panel, axes in zip(panels, drawn.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
        missing = np.isnan(panel.values)
        beside = missing | np.roll(missing, 1) | np.roll(missing, -1)  # so that lines meet
        axes.plot(panel.times, np.where(beside, panel.filled, np.nan), color=ORANGE, linewidth=1.2)
        axes.plot(panel.times[missing], panel.filled[missing], "o", color=ORANGE, markersize=3, label="filled")
        axes.plot(panel.times, panel.values, color=INK, linewidth=1.2, label="observed")
        if panel is panels[0]:
            _legend(axes)
        _finish(axes, panel.title)
    drawn.savefig(path)


def _legend(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    axes.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def _cycled(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.margins(x=0.01)
    plain_axes(axes)
