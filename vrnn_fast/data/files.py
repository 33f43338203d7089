"""A user's own sequences: arrays in ``.npz`` or ``.npy`` files, and sound in a folder of ``.wav`` files."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import PARTS, Contents, DataError, Item, Output, Part, Source, divide

_PART = re.compile(r"train|valid|val(?![a-z])|test", re.IGNORECASE)  # a valse is no validation


def load(source: Source) -> Contents:
    """Read an array file, or a folder of ``.wav`` or of ``.npy`` files.

    Raises:
        DataError: nothing there, or a file that does not fit; the message names it.
    """
    path = Path(source.path)
    if os.path.isdir(path):
        try:
            files = sorted(path.iterdir())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        sounds, arrays = ([f for f in files if f.suffix.lower() == kind] for kind in (".wav", ".npy"))
        if sounds:
            return _load_sound(path, sounds, source)
        if not arrays:
            raise DataError(f"{path} holds no .wav and no .npy file")
        return _load_arrays(path, [pair for file in arrays for pair in _named(file, source)], source)
    if not os.path.isfile(path):
        raise DataError(f"no such data: {path} (give 'chorales', an .npz or .npy file, or a folder)")
    return _load_arrays(path, _named(path, source), source)


def _require_size(path: Path, size: int, source: Source) -> None:
    """Raise DataError if a file would expand beyond what it may, and beyond itself."""
    if size > max(source.max_gigabytes * 1e9, path.stat().st_size):
        raise DataError(
            f"{path} expands to {size / 1e9:.3g} GB, and max_gigabytes is {source.max_gigabytes:g}: raise that "
            "(--max-gigabytes on the command line) if this is meant"
        )


def _named(path: Path, source: Source) -> list[tuple[str, NDArray[Any]]]:
    """Return the sequences of a file and their names: an array (T, X) is one of them, an array (N, T, X) is N."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _require_size(path, sum(entry.file_size for entry in archive.infolist()), source)
        content = np.load(path)
        if isinstance(content, np.ndarray):
            arrays = {path.stem: content}
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    except DataError:
        raise
    except Exception as error:  # of a damaged header NumPy makes code, and raises what that raises
        hint = "; save sequences of unequal length as one array each in an .npz file" if "pickle" in str(error) else ""
        raise DataError(f"{path} is not a readable .npz or .npy file: {_one_line(error)}{hint}") from error
    named: list[tuple[str, NDArray[Any]]] = []
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path} holds {name!r}, which is no array")
        if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: {name!r} must be numbers of shape (T, X) or (N, T, X), all at least 1, "
                f"got {array.dtype} of shape {array.shape}"
            )
        named += [(name, array)] if array.ndim == 2 else [(f"{name}[{i}]", row) for i, row in enumerate(array)]
    return named


def _load_arrays(path: Path, named: list[tuple[str, NDArray[Any]]], source: Source) -> Contents:
    likelihood = source.likelihood or "bernoulli"
    sequences = [(name, _checked(f"{path}: {name!r}", array, likelihood)) for name, array in named]
    sizes = {x.shape[1]: name for name, x in sequences}
    if len(sizes) > 1:
        found = ", ".join(f"{size} in {name!r}" for size, name in sizes.items())
        raise DataError(f"{path}: every sequence must have the same feature size, got {found}")
    return Contents(path.name, likelihood, _parts(path, sequences))


def _parts(path: Path, named: Sequence[tuple[str, Item]]) -> dict[Part, list[Item]]:
    """Divide: what is named train..., valid... (or val) and test... are those parts; if nothing is, hashes decide.

    Raises:
        DataError: some names are of a part, and others are not, or there are too few to divide.
    """
    parts: dict[Part, list[Item]] = {"train": [], "valid": [], "test": []}
    others = []
    for name, item in named:
        found = _PART.match(name)
        if found is None:
            others.append(repr(name))
        else:
            parts[next(part for part in PARTS if part.startswith(found[0].lower()))].append(item)
    if len(others) == len(named):
        try:
            return divide(named)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    if others:
        first = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise DataError(f"{path}: if any name starts with train, valid (or val) or test all must, got {first}")
    return parts


def _checked(name: str, array: NDArray[Any], likelihood: Output) -> Tensor:
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    fits = np.isin(array, (0, 1)) if likelihood == "bernoulli" else np.isfinite(values)
    if not fits.all():
        step, feature = np.argwhere(~fits)[0].tolist()
        expected = "0 or 1 for a bernoulli likelihood" if likelihood == "bernoulli" else "finite in float32"
        raise DataError(f"{name} must be {expected}, got {array[step, feature]} at step {step}, feature {feature}")
    return torch.from_numpy(values)


def _load_sound(folder: Path, files: list[Path], source: Source) -> Contents:
    """Return frames of ``source.frame`` samples; whole files go to one part, where there are at least three."""
    if source.likelihood == "bernoulli":
        raise DataError(f"{folder} holds sound: likelihood must be 'gaussian', got 'bernoulli'")
    if source.frame < 1 or source.max_steps < 1:
        raise DataError(f"frame and max_steps must be at least 1, got {source.frame} and {source.max_steps}")
    rate, pieces = source.rate, []
    for file in files:
        samples, its_rate = _read_sound(file, source)
        rate = rate or its_rate
        if its_rate != rate:
            raise DataError(f"{file} has {its_rate} samples per second, expected {rate}")
        steps = len(samples) // source.frame
        if steps == 0:
            raise DataError(f"{file} has {len(samples)} samples, fewer than one frame of {source.frame}")
        frames = torch.from_numpy(samples[: steps * source.frame]).reshape(steps, source.frame)
        pieces.append((file.name, [frames[i : i + source.max_steps] for i in range(0, steps, source.max_steps)]))
    if len(pieces) < 3:
        pieces = [(f"{name}[{i}]", [cut]) for name, cuts in pieces for i, cut in enumerate(cuts)]
    parts = {part: [x for cuts in found for x in cuts] for part, found in _parts(folder, pieces).items()}
    return Contents(folder.name, "gaussian", parts, rate)


def _read_sound(file: Path, source: Source) -> tuple[NDArray[np.float32], int]:
    """Return the mean of a file's channels, (samples,), and its samples per second."""
    try:
        import soundfile
    except ImportError as error:
        raise DataError("reading sound takes the soundfile package: pip install 'vrnn-fast[train]'") from error
    try:
        with soundfile.SoundFile(file) as sound:
            _require_size(file, 4 * sound.frames * sound.channels, source)
            samples, rate = sound.read(dtype="float32", always_2d=True), sound.samplerate
    except DataError:
        raise
    except Exception as error:  # a damaged header may ask for more memory than there is, and for less than nothing
        raise DataError(f"{file} is not readable sound: {_one_line(error)}") from error
    with np.errstate(over="ignore"):
        mean = samples.mean(axis=1)
    if not np.isfinite(mean).all():
        at = np.flatnonzero(~np.isfinite(mean))[0]
        raise DataError(f"{file} must be finite in float32, got {mean[at]} at sample {at}")
    return mean, int(rate)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def write_sound(file: Path, frames: Tensor, rate: int) -> None:
    """Write frames (T, X) one after the other as one channel of 16-bit sound; what exceeds 1 is clipped."""
    import soundfile

    soundfile.write(file, frames.reshape(-1).clamp(-1, 1).numpy(), rate, subtype="PCM_16")
