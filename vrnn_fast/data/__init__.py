"""Sequences to learn from: the Bach chorales of music21, array files, and folders of sound."""

from .batches import Padded, bucketed, pad
from .dataset import Contents, DataError, Dataset, Source

__all__ = ["Contents", "DataError", "Dataset", "Padded", "Source", "bucketed", "load", "pad", "read"]


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
