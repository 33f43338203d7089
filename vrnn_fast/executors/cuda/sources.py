"""The sources of the kernels, which are compiled at first use."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_INSTALLED, _CHECKOUT = Path(__file__).parent / "csrc", Path(__file__).parents[3] / "csrc" / "cuda"
SOURCE = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
"""The folder that kernels include from: setup.py puts one into a wheel, and a checkout has its own."""


class CompileError(RuntimeError):
    """What a compiler said of a kernel, or that there is no compiler."""


@cache
def digest() -> str:
    """Digest all that a kernel may include."""
    whole = hashlib.sha256()
    for path in sorted(p for p in SOURCE.rglob("*") if p.suffix in (".h", ".cpp")):
        whole.update(str(path.relative_to(SOURCE)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
