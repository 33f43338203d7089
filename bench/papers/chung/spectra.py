"""Sound as it is seen: distances of spectra in dB, pictures of them, and .wav files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from vrnn_fast.data import sound

from .models import DATA, RECONSTRUCTION, SAMPLE

_WINDOW, _HOP, _FLOOR = 256, 64, 1e-4


def decibels(frames: Tensor) -> Tensor:
    """Compute the power of frames (T, X) as they follow each other, (129, time)."""
    samples = frames.reshape(-1)
    window = torch.hann_window(_WINDOW)
    found = torch.stft(samples, _WINDOW, _HOP, window=window, center=False, return_complex=True).abs().square()
    return 10 * (found / window.square().sum() + _FLOOR).log10()


def leave(
    name: str, x: Tensor, reconstruction: Tensor, sample: Tensor, scale: float, rate: int, out: Path
) -> dict[str, float]:
    """Write all three as sound, and return how far their spectra are from those of the data.

    That of the reconstruction is in dB, root of the mean square over the spectrum, from one moment to the same moment,
    on average; that of the sample is of the spectra averaged over time.
    """
    out.mkdir(parents=True, exist_ok=True)
    for kind, frames in ((DATA, x), (RECONSTRUCTION, reconstruction), (SAMPLE, sample)):
        sound.write(out / (f"{kind}.wav" if kind == DATA else f"{name}-{kind}.wav"), frames * scale, rate)
    theirs, ours, drawn = (decibels(frames) for frames in (x, reconstruction, sample))
    moments = (theirs - ours).square().mean(0).sqrt().mean()
    on_average = (theirs.mean(1) - drawn.mean(1)).square().mean().sqrt()
    return {f"{RECONSTRUCTION}, dB": round(moments.item(), 2), f"{SAMPLE}, dB": round(on_average.item(), 2)}


def picture(out: Path) -> None:
    """Draw the spectrogram of every .wav there into spectrograms.png, that of the data first."""
    from matplotlib.figure import Figure

    found = sorted(out.glob("*.wav"), key=lambda path: (path.stem != DATA, path.stem))
    figure = Figure(figsize=(11, 1.6 * ((len(found) + 1) // 2)), dpi=110, layout="constrained")
    grid = figure.subplots((len(found) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False)
    for axes, path in zip(grid.flat, found, strict=False):
        samples, rate = soundfile.read(path, dtype="float32")
        power = decibels(torch.from_numpy(np.asarray(samples)) / 0.1)
        extent = (0, len(samples) / rate, 0, rate / 2000)
        axes.imshow(power.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-30, vmax=30)
        axes.set_title(path.stem, loc="left", fontsize=9)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("kHz", fontsize=9)
    figure.savefig(out / "spectrograms.png")
