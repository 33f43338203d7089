"""Sequences that stay in a file: what is asked for is read from there, and nothing else takes memory.

They are read by pread, not mapped: what the system keeps of a file for the next time then counts for no process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .reading import DataError, one_line

BLOCK = 1 << 16  # bytes with a checksum of their own
AT_ONCE = 1 << 22  # numbers in memory where all are looked at


class StoredRows:
    """The time steps of an ``.npy`` file of shape (T, X) or (N, T, X), one after the other.

    Args:
        checksums: CRC-32 of each :data:`BLOCK` bytes behind the header, as they were when somebody last looked; by
            default as they are now. Whatever is read is held to them.

    Raises:
        DataError: it is no such file, or is not as long as its header or the checksums say.
    """

    def __init__(self, path: Path, checksums: NDArray[np.uint32] | None = None) -> None:
        self.path = path
        self._file: Any = None
        shape, self.dtype, self._offset = _header(path)
        self.count, self.features = shape[0] * (shape[1] if len(shape) == 3 else 1), shape[-1]
        self.shape, self._width = shape, self.features * self.dtype.itemsize
        self._size = self.count * self._width
        size = path.stat().st_size
        blocks = -(-self._size // BLOCK)
        if size != self._offset + self._size or (checksums is not None and len(checksums) != blocks):
            raise DataError(
                f"{path} is damaged: it has {size:,} bytes, where {self._offset + self._size:,} were written"
            )
        self.checksums = self._scan(blocks) if checksums is None else checksums

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind: each process opens its own."""
        return {**self.__dict__, "_file": None}

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows, (stop - start, X).

        Raises:
            DataError: they are not there, or not what they were.
        """
        first, last = start * self._width // BLOCK, -(-stop * self._width // BLOCK)
        content = memoryview(self._blocks(first, last))
        for number in range(first, last):
            at = (number - first) * BLOCK
            if zlib.crc32(content[at : at + BLOCK]) != self.checksums[number]:
                rows = f"rows {number * BLOCK // self._width} to {min(self._size, (number + 1) * BLOCK) // self._width}"
                raise DataError(f"{self.path} is damaged or was changed: {rows} are not what they were")
        skipped = start * self._width - first * BLOCK
        own = content[skipped : skipped + (stop - start) * self._width]
        return np.frombuffer(own, self.dtype).reshape(stop - start, self.features)

    def _scan(self, blocks: int) -> NDArray[np.uint32]:
        found = (zlib.crc32(self._blocks(number, number + 1)) for number in range(blocks))
        return np.fromiter(found, np.uint32, blocks)

    def _blocks(self, first: int, last: int) -> bytes:
        wanted = min(last * BLOCK, self._size) - first * BLOCK
        try:
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
            content = os.pread(self._file.fileno(), wanted, self._offset + first * BLOCK)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(content) != wanted:
            raise DataError(f"{self.path} is damaged or was changed: it has become shorter")
        return content


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and the place of the first number of an ``.npy`` file."""
    formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with path.open("rb") as file:
            shape, by_columns, dtype = formats[np.lib.format.read_magic(file)](file)
            offset = file.tell()
    except Exception as error:  # of a damaged header NumPy makes code, and raises what that raises
        raise DataError(f"{path} is not a readable .npy file: {one_line(error)}") from error
    if len(shape) not in (2, 3) or 0 in shape or dtype.kind not in "biuf":
        words = f"must be numbers of shape (T, X) or (N, T, X), all at least 1, got {dtype} of shape {shape}"
        raise DataError(f"{path} {words}")
    if by_columns:
        raise DataError(f"{path} is stored by columns and cannot be read step by step: save np.ascontiguousarray of it")
    return shape, dtype, offset


@dataclass(frozen=True, slots=True)
class Stored:
    """A sequence (T, X) in a file. ``x[start:stop]`` reads those steps as a float32 tensor, standardised.

    Attributes:
        first: the row of the file that it begins at.
        mean, scale: what is read is ``(row - mean) / scale``; (X,) or (1,) each, float64.
    """

    rows: StoredRows
    first: int
    steps: int
    mean: Tensor | None = None
    scale: Tensor | None = None

    def __len__(self) -> int:
        return self.steps

    @property
    def shape(self) -> tuple[int, int]:
        """T and X."""
        return self.steps, self.rows.features

    def __getitem__(self, at: slice) -> Tensor:
        start, stop, stride = at.indices(self.steps)
        if stride != 1:
            raise ValueError(f"a stored sequence is read step by step, got a stride of {stride}")
        stop = max(start, stop)
        x = torch.from_numpy(self.rows.read(self.first + start, self.first + stop).astype(np.float32))
        if self.mean is None or self.scale is None:
            return x
        found = standardised(x, self.mean, self.scale)
        if not found.isfinite().all():
            step, feature = found.isfinite().logical_not().nonzero()[0].tolist()
            row, value = self.first + start + step, x[step, feature].item()
            words = f"standardised by the training part, {value:.3g} is not finite in float32, at row {row}"
            raise DataError(f"{self.rows.path}: {words}, feature {feature}")
        return found


Series: TypeAlias = Tensor | Stored  # a sequence (T, X), wherever it is


def standardised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Compute ``(x - mean) / scale`` in float64, rounded to float32."""
    return ((x.double() - mean) / scale).float()


def in_pieces(x: Series) -> Iterator[Tensor]:
    """Yield a sequence in pieces that memory has room for."""
    steps = max(1, AT_ONCE // x.shape[1])
    for start in range(0, len(x), steps):
        yield x[start : start + steps]
