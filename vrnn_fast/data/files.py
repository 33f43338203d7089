"""A user's own sequences: arrays in ``.npz`` or ``.npy`` files, and sound in a folder of ``.wav`` files."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import PARTS, DataError, Item, Output, Part, Reading, Source, divide

_PART = re.compile(r"train|valid|val(?![a-z])|test", re.IGNORECASE)  # a valse is no validation


def load(source: Source) -> Reading:
    """Read an array file, or a folder of ``.wav`` or of ``.npy`` files.

    Raises:
        DataError: nothing there, or a file that does not fit; the message names it.
    """
    path = Path(source.path)
    if path.is_dir():
        sounds, arrays = (sorted(f for f in path.iterdir() if f.suffix.lower() == kind) for kind in (".wav", ".npy"))
        if sounds:
            return _load_sound(path, sounds, source)
        if not arrays:
            raise DataError(f"{path} holds no .wav and no .npy file")
        return _load_arrays(path, [pair for file in arrays for pair in _named(file)], source)
    if not path.is_file():
        raise DataError(f"no such data: {path} (give 'chorales', an .npz or .npy file, or a folder)")
    return _load_arrays(path, _named(path), source)


def _named(path: Path) -> list[tuple[str, NDArray[Any]]]:
    """The sequences of a file and their names: an array (T, X) is one of them, an array (N, T, X) is N."""
    try:
        content = np.load(path)
        if isinstance(content, np.ndarray):
            arrays = {path.stem: content}
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        hint = "; save sequences of unequal length as one array each in an .npz file" if "pickle" in str(error) else ""
        raise DataError(f"{path} is not a readable .npz or .npy file: {error}{hint}") from error
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


def _load_arrays(path: Path, named: list[tuple[str, NDArray[Any]]], source: Source) -> Reading:
    likelihood = source.likelihood or "bernoulli"
    sequences = [(name, _checked(f"{path}: {name!r}", array, likelihood)) for name, array in named]
    sizes = {x.shape[1]: name for name, x in sequences}
    if len(sizes) > 1:
        found = ", ".join(f"{size} in {name!r}" for size, name in sizes.items())
        raise DataError(f"{path}: every sequence must have the same feature size, got {found}")
    return Reading(path.name, likelihood, _parts(path, sequences))


def _parts(path: Path, named: Sequence[tuple[str, Item]]) -> dict[Part, list[Item]]:
    """What is named train..., valid... (or val) and test... are those parts; if nothing is, the names' hashes decide.

    Raises:
        DataError: some names are of a part, and others are not.
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
        return divide(named)
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


def _load_sound(folder: Path, files: list[Path], source: Source) -> Reading:
    """Frames of ``source.frame`` samples; whole files go to one part, where there are at least three."""
    if source.likelihood == "bernoulli":
        raise DataError(f"{folder} holds sound: likelihood must be 'gaussian', got 'bernoulli'")
    if source.frame < 1 or source.max_steps < 1:
        raise DataError(f"frame and max_steps must be at least 1, got {source.frame} and {source.max_steps}")
    rate, pieces = source.rate, []
    for file in files:
        samples, its_rate = _read_sound(file)
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
    return Reading(folder.name, "gaussian", parts, rate)


def _read_sound(file: Path) -> tuple[NDArray[np.float32], int]:
    """The mean of a file's channels, (samples,), and its samples per second."""
    try:
        import soundfile
    except ImportError as error:
        raise DataError("reading sound takes the soundfile package: pip install 'vrnn-fast[train]'") from error
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{file} is not readable sound: {error}") from error
    with np.errstate(over="ignore"):
        mean = samples.mean(axis=1)
    if not np.isfinite(mean).all():
        at = np.flatnonzero(~np.isfinite(mean))[0]
        raise DataError(f"{file} must be finite in float32, got {mean[at]} at sample {at}")
    return mean, int(rate)


def write_sound(file: Path, frames: Tensor, rate: int) -> None:
    """Write frames (T, X) one after the other as one channel of 16-bit sound; what exceeds 1 is clipped."""
    import soundfile

    soundfile.write(file, frames.reshape(-1).clamp(-1, 1).numpy(), rate, subtype="PCM_16")
