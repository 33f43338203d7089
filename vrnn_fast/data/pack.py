"""A pack: data of any size in a folder, of which only what is trained on is read.

``values.npy`` holds the steps of all sequences one after the other, as anybody may read them; ``index.npz`` their
lengths, their parts, the moments of the training part, and checksums, which every read is held to.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from ..replacing import replacing
from .dataset import Contents, Known, moments
from .reading import (
    PARTS,
    DataError,
    NamedSequence,
    Opened,
    Part,
    Source,
    by_part,
    checked,
    one_line,
    require_one_width,
)
from .stored import AT_ONCE, Stored, StoredRows

INDEX, VALUES = "index.npz", "values.npy"
_FORMAT = 1
_NOTHING = np.zeros((0, 0), np.uint8)
Index = dict[str, NDArray[Any]]


def exists(path: Path) -> bool:
    """Tell whether a folder holds a pack."""
    return os.path.isfile(path / INDEX)


def write(source: Opened, folder: Path) -> Contents:
    """Make a pack in a folder, with no more in memory than one file of the source.

    Raises:
        DataError: the source does not fit, or the folder cannot be written or holds a pack; there is none then.
    """
    if exists(folder):
        raise DataError(f"{folder} is a pack already: remove it, or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / VALUES) as file:
            found = _write_values(source, file)
        rows = StoredRows(folder / VALUES)
        parts = by_part(source.place, [(named, number) for number, (named, _) in enumerate(found)])
        lengths = [steps for _, steps in found]
        index: Index = {"lengths": np.array(lengths), "checksums": rows.checksums}
        index |= {part: np.array(parts[part], dtype=np.int64) for part in PARTS}
        train = _stored(rows, index)["train"]
        mean, std = moments(train) if train else (torch.zeros(0, dtype=torch.float64),) * 2
        about = {"format": _FORMAT, "name": source.name, "likelihood": source.likelihood, "rate": source.rate}
        index |= {"mean": mean.numpy(), "std": std.numpy(), "about": np.array(json.dumps(about))}
        with replacing(folder / INDEX) as file:
            written: Any = {**index, "digest": np.array(_digest(index))}
            np.savez(file, **written)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    return load(folder, Source())


def load(folder: Path, source: Source) -> Contents:
    """Open a pack: nothing but its index is read.

    Raises:
        DataError: a file of it is missing or damaged, or it is not what ``source`` says; the message names it.
    """
    path = folder / INDEX
    try:
        with np.load(path) as file:
            index: Index = {name: file[name] for name in file.files}
        digest = str(index.pop("digest"))
        if _digest(index) != digest:
            raise ValueError("it is not what its digest says that was written")
        about: Mapping[str, Any] = json.loads(str(index["about"]))
        if about["format"] != _FORMAT:
            words = f"{path} has format {about['format']}, this version of vrnn_fast reads {_FORMAT}"
            raise DataError(words)
        rows = StoredRows(folder / VALUES, index["checksums"])
        known = Known(digest, torch.from_numpy(index["mean"]), torch.from_numpy(index["std"]))
        found = Contents(about["name"], about["likelihood"], _stored(rows, index), about["rate"], known)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged archive makes of itself
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
    for name in ("likelihood", "rate"):
        asked, its = getattr(source, name), getattr(found, name)
        if asked not in (None, its):
            raise DataError(f"{folder} was packed with {name} {its!r}, got {asked!r}")
    return found


def _write_values(source: Opened, file: BinaryIO) -> list[tuple[NamedSequence, int]]:
    """Write all sequences, and return their names and lengths."""
    dtype: Any = np.uint8 if source.likelihood == "bernoulli" else np.float32
    found: list[tuple[NamedSequence, int]] = []
    widths: dict[int, str] = {}
    begin = _write_header(file, dtype, 0, 1)
    for named in source.sequences:
        length, width = named.array.shape
        require_one_width(source.place, widths | {width: named.name})
        widths[width] = named.name
        pieces = max(1, AT_ONCE // width)
        for start in range(0, length, pieces):
            values = checked(named, named.array[start : start + pieces], source.likelihood, start)
            file.write(values.astype(dtype).tobytes())
        found.append((named._replace(array=_NOTHING), length))
    if not found:
        raise DataError(f"{source.place} holds no sequence")
    file.seek(0)
    if _write_header(file, dtype, sum(length for _, length in found), *widths) != begin:
        raise AssertionError("the header has grown")
    return found


def _write_header(file: BinaryIO, dtype: Any, steps: int, width: int) -> int:
    """Write that of (steps, width), whose length is the same for any number of steps; return where it ends."""
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (steps, width)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.tell()


def _stored(rows: StoredRows, index: Index) -> dict[Part, list[Stored]]:
    lengths = index["lengths"].tolist()
    ends = list(itertools.accumulate(lengths))
    if ends[-1:] != [rows.count]:
        raise DataError(f"{rows.path} is damaged: it has {rows.count} steps, and the index {sum(lengths)}")
    return {p: [Stored(rows, ends[i] - lengths[i], lengths[i]) for i in index[p].tolist()] for p in PARTS}


def _digest(index: Index) -> str:
    digest = hashlib.sha256()
    for name in sorted(index):
        array = index[name]
        digest.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()[:16]
