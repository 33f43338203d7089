"""Sequences to learn from: the Bach chorales of music21, arrays, tables, sound and MIDI, and packs of any of them."""

from pathlib import Path

from .batches import Padded, bucketed, pad
from .dataset import Contents, Dataset
from .reading import DataError, Source

__all__ = ["Contents", "DataError", "Dataset", "Padded", "Source", "bucketed", "load", "make_pack", "pad", "read"]


def load(source: Source) -> Dataset:
    """Return all parts of what ``source`` describes, ready to train on.

    Raises:
        DataError: there is nothing to read there, it is not what was described, or a part is empty.
    """
    return read(source).dataset()


def read(source: Source) -> Contents:
    """Return what ``source`` describes, as it is there.

    Raises:
        DataError: there is nothing to read there, or it is not what was described.
    """
    from . import chorales, files

    return chorales.load(source) if source.path == chorales.NAME else files.load(source)


def make_pack(source: Source, folder: Path) -> Contents:
    """Make a pack of what ``source`` describes in a folder, which then is a source itself, and return what is there.

    Raises:
        DataError: there is nothing to read, it is not what was described, or the folder cannot be written.
    """
    from . import chorales, files, pack

    found = chorales.opened(source) if source.path == chorales.NAME else files.opened(source)
    return pack.write(found, folder)
