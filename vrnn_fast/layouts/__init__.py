"""Foreign layouts: what models that people use are made of, one file for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import deep_features, dynamical_vae, eager_vrnn, speech_benchmark, trajectories
from .base import Layout
from .mapping import mapped
from .structure import LayoutError, Shapes
from .words import in_words

LAYOUTS: tuple[Layout, ...] = (
    eager_vrnn.LAYOUT,
    deep_features.LAYOUT,
    dynamical_vae.LAYOUT,
    trajectories.LAYOUT,
    speech_benchmark.LAYOUT,
)
"""Those of modules; ``vrnn_fast.checkpoints`` has two of arrays alone."""


def chosen(layout: str | Mapping[str, Any], shapes: Shapes, found: str) -> Layout:
    """Choose the layout that was asked for, or for ``"auto"`` the one of these shapes; ``found`` describes them in
    words.

    Raises:
        LayoutError: they are of no known layout. ValueError, TypeError: ``layout`` is none.
    """
    if isinstance(layout, Mapping):
        return mapped(layout, [known.variant(shapes) for known in LAYOUTS])
    names = ", ".join(repr(known.name) for known in LAYOUTS)
    if not isinstance(layout, str):
        raise TypeError(f"layout must be 'auto', {names} or a mapping, got {in_words(layout)}")
    if layout == "auto":
        return _recognised(shapes, found)
    for known in LAYOUTS:
        if known.name == layout:
            return known.variant(shapes)
    raise ValueError(f"layout must be 'auto', {names} or a mapping, got {layout!r}")


def lacking(layout: str | Mapping[str, Any], shapes: Shapes) -> float:
    """Return the share of its paths that the layout asked for, or the closest known one, does not find in
    ``shapes``."""
    every = [known.variant(shapes) for known in LAYOUTS] if layout == "auto" else [chosen(layout, shapes, "")]
    return min(_lacking(known, shapes) for known in every)


_ELSE = (
    "Name the parts of another VRNN by a mapping. A recurrent state-space model, whose cell runs before its posterior, "
    "becomes a VRNN as in examples/rssm.py"
)


def _lacking(known: Layout, shapes: Shapes) -> float:
    return len(known.missing(shapes)) / len(known.roles.paths())


def _recognised(shapes: Shapes, found: str) -> Layout:
    """Find the layout that has all of its names in ``shapes``.

    Raises:
        LayoutError: there is none; the message tells what each one lacks, the closest first, and what was ``found``.
    """
    every = [known.variant(shapes) for known in LAYOUTS]
    ordered = sorted(((_lacking(known, shapes), known) for known in every), key=lambda pair: pair[0])
    if ordered[0][0] == 0:
        return ordered[0][1]
    lines = [
        f"{known}: looked for {', '.join(known.roles.paths())}; "
        + (f"no {', '.join(known.missing(shapes))}" if share < 1 else "none of them is there")
        for share, known in ordered
    ]
    raise LayoutError("\n  ".join(["no known layout.", *lines, f"found: {found}", _ELSE]))
