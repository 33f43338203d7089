"""Pictures and music."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
import torch

from vrnn_fast.training import report
from vrnn_fast.training.trainer import Epoch, Sums


def _history(epochs: int) -> list[Epoch]:
    return [Epoch(i, Sums(90.0 - i, 10.0, 10), Sums(95.0 - i, 9.0, 10), 1e-3, 1.0) for i in range(epochs)]


def _colors(path: Path) -> set[tuple[int, ...]]:
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    return {tuple(color) for color in pixels.reshape(-1, 3).tolist()}


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("epochs", [1, 30])
@pytest.mark.parametrize("baseline", [None, 11.4])
def test_curves_show_both_parts(tmp_path: Path, epochs: int, baseline: float | None) -> None:
    report.curves(_history(epochs), tmp_path / "curves.png", baseline=baseline, title="A title")
    colors = _colors(tmp_path / "curves.png")
    assert _rgb(report.ORANGE) in colors
    assert (_rgb(report.BLUE) in colors) or epochs == 1
    assert (_rgb(report.GREY) in colors) or baseline is None


def test_rolls_show_every_panel(tmp_path: Path) -> None:
    roll = torch.zeros(16, 88)
    roll[:, 39:60:5] = 1
    panels = [
        report.Panel("one", roll, report.BLUE),
        report.Panel("two", roll, report.GREEN),
        report.Panel("three", roll, report.ORANGE, prefix=4),
    ]
    report.rolls(panels, tmp_path / "rolls.png", lowest=21)
    colors = _colors(tmp_path / "rolls.png")
    assert {_rgb(color) for color in (report.BLUE, report.GREEN, report.ORANGE, report.INK)} <= colors


def test_empty_rolls_are_drawn(tmp_path: Path) -> None:
    report.rolls([report.Panel("nothing", torch.zeros(4, 3))], tmp_path / "rolls.png")
    assert (tmp_path / "rolls.png").stat().st_size > 0


def test_midi_holds_the_notes(tmp_path: Path) -> None:
    from music21 import converter

    roll = torch.zeros(4, 88)
    roll[0, [27, 39]] = 1
    roll[1, 40] = 1
    roll[3, 41] = 1
    report.midi(roll, tmp_path / "sample.mid", lowest=21)
    notes = converter.parse(tmp_path / "sample.mid").flatten().notes
    heard = {(float(note.offset), pitch.midi) for note in notes for pitch in note.pitches}
    assert heard == {(0, 48), (0, 60), (1, 61), (3, 62)}
