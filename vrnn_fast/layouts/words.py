"""What messages say of values and of other people's errors: one short line, and never the numbers of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_LONGEST = 160


def in_words(value: Any) -> str:
    """Put a value into words: of tensors dtype and shape, of containers what they hold, of all else its repr."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {shortened(', '.join(map(in_words, value)) or 'nothing')}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{type(value).__name__} of length {len(value)}"
    try:
        return shortened(repr(value))
    except Exception:  # somebody else's
        return type(value).__name__


def reason(error: BaseException) -> str:
    """Return the class of an error and the first line of what it says."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {shortened(first)}" if first else type(error).__name__


def shortened(text: str) -> str:
    """Cut to one line of bounded length: what follows may be a tensor's numbers or a page of somebody else's text."""
    line = " ".join(text.split())
    if "tensor(" in line:
        line = line.partition("tensor(")[0] + "tensor(...)"
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
