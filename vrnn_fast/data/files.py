"""A user's own sequences: arrays, tables, sound and MIDI, in a file or in a folder of files, and packs of them."""

from __future__ import annotations

import csv
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import midi, pack, sound
from .dataset import Contents, Known, moments
from .reading import (
    DataError,
    NamedSequence,
    Opened,
    Source,
    by_part,
    checked,
    one_line,
    require_one_width,
    require_size,
)
from .stored import Series, Stored, StoredRows, in_pieces


def load(source: Source) -> Contents:
    """Read what is there. A pack stays where it is, and so do large ``.npy`` files; all else is in memory afterwards.

    Raises:
        DataError: nothing there, or a file that does not fit; the message names it.
    """
    path = Path(source.path)
    if pack.exists(path):
        return pack.load(path, source)
    files = _files(path)
    size = sum(file.stat().st_size for file in files)
    if size > source.max_gigabytes * 1e9 and all(file.suffix == ".npy" for file in files):
        return _left_in_place(files, source)
    return collect(opened(source))


def opened(source: Source) -> Opened:
    """Open a file, or a folder of which the first of these kinds counts that it holds: sound, MIDI, arrays, tables.

    Raises:
        DataError: as :func:`load`, here or while it is read.
    """
    files = _files(Path(source.path))
    return _KINDS[_kind(files[0])](Path(source.path), files, source)


def collect(found: Opened) -> Contents:
    """Return all of it, in memory.

    Raises:
        DataError: something does not fit.
    """
    sequences: list[tuple[NamedSequence, Series]] = []
    for named in found.sequences:
        x = torch.from_numpy(checked(named, named.array, found.likelihood))
        sequences.append((named, x))
    require_one_width(found.place, {x.shape[1]: named.name for named, x in sequences})
    return Contents(found.name, found.likelihood, by_part(found.place, sequences), found.rate)


def _files(path: Path) -> list[Path]:
    """Return the files of the first kind that a folder holds, or the file that ``path`` is."""
    if os.path.isdir(path):
        try:
            files = sorted(path.iterdir())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        for kinds in _KINDS:
            if found := [file for file in files if file.suffix.lower() in kinds]:
                return found
        raise DataError(f"{path} holds no file of {', '.join(kind for kinds in _KINDS for kind in kinds)}")
    if not os.path.isfile(path):
        raise DataError(f"no such data: {path} (give 'chorales', an .npz, .npy or .csv file, a folder, or a pack)")
    return [path]


def _kind(file: Path) -> tuple[str, ...]:
    return next((kinds for kinds in _KINDS if file.suffix.lower() in kinds), _ARRAYS)


def _arrays(path: Path, files: Sequence[Path], source: Source) -> Opened:
    found = (named for file in files for named in _arrays_in(file, source, path))
    return Opened(path.name, str(path), source.likelihood or "bernoulli", found)


def _arrays_in(file: Path, source: Source, path: Path) -> Iterator[NamedSequence]:
    """Yield the sequences of a file: an array (T, X) is one of them, an array (N, T, X) is N."""
    for name, array in _arrays_of(file, source):
        if not isinstance(array, np.ndarray):
            raise DataError(f"{file} holds {name!r}, which is no array")
        if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "biuf":
            raise DataError(
                f"{file}: {name!r} must be numbers of shape (T, X) or (N, T, X), all at least 1, "
                f"got {array.dtype} of shape {array.shape}"
            )
        own = name if file == path or file.suffix == ".npy" else f"{file.stem}/{name}"
        for number, row in enumerate(array[None] if array.ndim == 2 else array):
            numbered = own if array.ndim == 2 else f"{own}[{number}]"
            yield NamedSequence(numbered, f"{path}: {numbered!r}", row, numbered)


def _arrays_of(file: Path, source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a file; of an .npy file nothing is in memory yet."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                require_size(file, sum(entry.file_size for entry in archive.infolist()), source)
        content = np.load(file, mmap_mode="r")
        if isinstance(content, np.ndarray):
            yield file.stem, content
            return
        with content:
            for name in content.files:
                yield name, content[name]
    except DataError:
        raise
    except Exception as error:  # of a damaged header NumPy makes code, and raises what that raises
        objects = any(word in str(error) for word in ("pickle", "Python objects"))
        hint = "; save sequences of unequal length as one array each in an .npz file" if objects else ""
        raise DataError(f"{file} is not a readable .npz or .npy file: {one_line(error)}{hint}") from error


def _left_in_place(files: Sequence[Path], source: Source) -> Contents:
    """Read every number once, and leave them where they are."""
    path, likelihood = Path(source.path), source.likelihood or "bernoulli"
    sequences: list[tuple[NamedSequence, Series]] = []
    digest = hashlib.sha256(likelihood.encode())
    for file in files:
        rows = StoredRows(file)
        digest.update(repr((file.name, rows.shape, rows.dtype.str)).encode() + rows.checksums.tobytes())
        steps = rows.shape[-2]
        for number in range(rows.count // steps):
            name = file.stem if len(rows.shape) == 2 else f"{file.stem}[{number}]"
            named = NamedSequence(name, f"{path}: {name!r}", rows.read(0, 0), name)
            x = Stored(rows, number * steps, steps)
            for at, piece in enumerate(in_pieces(x)):
                checked(named, piece.numpy(), likelihood, at)
            sequences.append((named, x))
    require_one_width(str(path), {x.shape[1]: named.name for named, x in sequences})
    parts = by_part(str(path), sequences)
    known = Known(digest.hexdigest()[:16], *moments(parts["train"])) if parts["train"] else None
    return Contents(path.name, likelihood, parts, None, known)


def _tables(path: Path, files: Sequence[Path], source: Source) -> Opened:
    """Read comma-separated files, each a sequence of as many steps as it has lines behind its header, if it has one."""
    found = (NamedSequence(file.stem, str(file), _table(file), file.stem) for file in files)
    return Opened(path.name, str(path), source.likelihood or "bernoulli", found)


def _table(file: Path) -> NDArray[np.float64]:
    try:
        with file.open(newline="") as lines:
            rows = csv.reader(lines)
            first = next(rows, [])
            table = [first] if all(_is_number(cell) for cell in first) else []
            table += [row for row in rows if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file} is not a readable table: {one_line(error)}") from error
    if not table or not first:
        raise DataError(f"{file} holds no line of numbers")
    for number, row in enumerate(table):
        wrong = next((cell for cell in row if not _is_number(cell)), None)
        if wrong is not None or len(row) != len(first):
            got = f"{wrong!r}" if wrong is not None else f"{len(row)} columns"
            raise DataError(f"{file} must hold {len(first)} numbers in every line, got {got} in number {number + 1}")
    return np.array(table, dtype=np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_ARRAYS, _TABLES = (".npy", ".npz"), (".csv",)
_KINDS: dict[tuple[str, ...], Callable[[Path, Sequence[Path], Source], Opened]] = {
    sound.SUFFIXES: sound.opened,
    midi.SUFFIXES: midi.opened,
    _ARRAYS: _arrays,
    _TABLES: _tables,
}
