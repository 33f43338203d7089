"""Where generated kernels, compiled ones and tuned choices lie on disk."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


@cache
def cache_directory() -> Path:
    """Return VRNN_FAST_CACHE, else ~/.cache/vrnn_fast; where neither can be written, a temporary one of this
    process."""
    path = Path(os.environ.get("VRNN_FAST_CACHE") or Path.home() / ".cache" / "vrnn_fast")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="vrnn_fast"))
