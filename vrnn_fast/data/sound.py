"""Sound in files of any format that the soundfile package reads, cut into frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .reading import DataError, NamedSequence, Opened, Source, one_line, require_size

SUFFIXES = (".wav", ".flac", ".ogg")


def opened(path: Path, files: Sequence[Path], source: Source) -> Opened:
    """Open frames of ``source.frame`` samples, the files cut into sequences of ``source.max_steps`` frames.

    Raises:
        DataError: what is asked for cannot be of sound, or the first file cannot be read.
    """
    if source.likelihood == "bernoulli":
        raise DataError(f"{path} holds sound: likelihood must be 'gaussian', got 'bernoulli'")
    if source.frame < 1 or source.max_steps < 1:
        raise DataError(f"frame and max_steps must be at least 1, got {source.frame} and {source.max_steps}")
    rate = source.rate or _read(files[0], source)[1]
    return Opened(path.name, str(path), "gaussian", _cut(files, rate, source), rate)


def _cut(files: Sequence[Path], rate: int, source: Source) -> Iterator[NamedSequence]:
    for file in files:
        samples, its_rate = _read(file, source)
        if its_rate != rate:
            raise DataError(f"{file} has {its_rate} samples per second, expected {rate}")
        steps = len(samples) // source.frame
        if steps == 0:
            raise DataError(f"{file} has {len(samples)} samples, fewer than one frame of {source.frame}")
        frames = samples[: steps * source.frame].reshape(steps, source.frame)
        for number, at in enumerate(range(0, steps, source.max_steps)):
            yield NamedSequence(f"{file.name}[{number}]", str(file), frames[at : at + source.max_steps], file.name)


def _read(file: Path, source: Source) -> tuple[NDArray[np.float32], int]:
    """Return the mean of a file's channels, (samples,), and its samples per second."""
    soundfile = _library()
    try:
        with soundfile.SoundFile(file) as sound:
            require_size(file, 4 * sound.frames * sound.channels, source)
            samples, rate = sound.read(dtype="float32", always_2d=True), sound.samplerate
    except DataError:
        raise
    except Exception as error:  # a damaged header may ask for more memory than there is, and for less than nothing
        raise DataError(f"{file} is not readable sound: {one_line(error)}") from error
    with np.errstate(over="ignore"):
        mean = samples.mean(axis=1)
    if not np.isfinite(mean).all():
        at = np.flatnonzero(~np.isfinite(mean))[0]
        raise DataError(f"{file} must be finite in float32, got {mean[at]} at sample {at}")
    return mean, int(rate)


def _library() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise DataError("reading sound takes the soundfile package: pip install 'vrnn-fast[train]'") from error
    return soundfile


def write(file: Path, frames: Tensor, rate: int) -> None:
    """Write frames (T, X) one after the other as one channel of 16-bit sound; what exceeds 1 is clipped."""
    _library().write(file, frames.reshape(-1).clamp(-1, 1).numpy(), rate, subtype="PCM_16")
