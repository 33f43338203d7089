"""``python -m bench.papers speech``: section 4.1 of Chung et al. 2015, raw audio in frames of 200 samples."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vrnn_fast import VRNN
from vrnn_fast.data import Dataset, Source, load

from . import recordings, spectra
from .models import PaperTask
from .run import PaperStudy, command, reconstructed

FRAME = 200


def _likelihood(components: int) -> Any:
    if components == 1:
        return "gaussian"
    mixture = {"components": components, "floor": 1e-3}
    return {"class_path": "vrnn_fast.likelihoods.GaussianMixture", "init_args": mixture}


SPEECH = PaperTask(
    name="speech",
    title="Five models of raw speech",
    published={
        "RNN-Gauss": "3,539",
        "RNN-GMM": "7,413",
        "VRNN-I-Gauss": "≥ 8,933, ≈ 9,188",
        "VRNN-Gauss": "≥ 9,223, ≈ 9,516",
        "VRNN-GMM": "≥ 9,107, ≈ 9,392",
    },
    about=(
        "Section 4.1 and table 1 of Chung et al. 2015, at a small size. Frames of 200 samples, standardised by one "
        "deviation of the training part. Recordings that were fetched have noise of "
        f"{recordings.DITHER:.0%} of their deviation added: one frame in ten is all but digital silence, whose density "
        "has no bound: all nats depend on it."
    ),
    published_on="Blizzard",
    sequence="recording",
    step="frame",
    unit="second",
    features=FRAME,
    likelihood=_likelihood,
    likeness=(
        "Of the longest held-out recording: the distance of the spectra in dB at each moment between it and the mean "
        "that the model gives each frame (an RNN, which has not seen the frame, predicts it; a VRNN's z has), and "
        "between the spectra averaged over time of the recording and of a sample of the same length. The sound and a "
        "page of spectrograms are left in `--out`."
    ),
)


def main(given: Sequence[str]) -> None:
    """Train the models that were asked for on recordings."""
    command(
        SPEECH,
        given,
        _study,
        spectra.picture,
        (
            "a folder of sound (default: fetch a package of Debian's through apt)",
            "a few voices that are computed, for want of data",
        ),
    )


def _study(options: Namespace, place: Path) -> PaperStudy:
    folder = options.data
    if folder is None:
        folder = recordings.generated(place / "voices") if options.generated else recordings.fetched()
    source = Source(str(folder), frame=FRAME, max_steps=1 << 30)
    data = load(source)
    seconds = data.steps("test") * FRAME / (data.rate or 1)
    return PaperStudy(SPEECH, source, data, seconds, partial(_show, data))


def _show(data: Dataset, name: str, model: VRNN, seed: int, out: Path) -> dict[str, float]:
    x = max(data.test, key=len)[:400]
    noise = torch.Generator().manual_seed(seed)
    mean = reconstructed(model, x, noise)
    with torch.no_grad():
        samples, _ = model.generate(len(x), generator=noise)
    return spectra.leave(name, x, mean, samples[:, 0], data.scale[0], data.rate or 1, out)
