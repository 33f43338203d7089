"""Sequences to learn from: the Bach chorales of music21, array files, and folders of sound."""

from .batches import Batch, bucketed, pad
from .dataset import DataError, Dataset, Source

__all__ = ["Batch", "DataError", "Dataset", "Source", "bucketed", "load", "pad"]


def load(source: Source) -> Dataset:
    """Read what ``source`` describes.

    Raises:
        DataError: there is nothing to read there, or it is not what was described.
    """
    from . import chorales, files

    return chorales.load(source) if source.path == chorales.NAME else files.load(source)
