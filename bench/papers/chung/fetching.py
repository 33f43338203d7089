"""What is fetched when it is wanted, and kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrnn_fast.data import DataError


def cache() -> Path:
    """Return the folder of what is fetched, of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vrnn_fast"


@contextmanager
def fetching(package: str, instead: str) -> Iterator[None]:
    """Raise DataError where a package cannot be fetched, or holds something else; ``instead`` is what may be named."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        said = " ".join((getattr(error, "stderr", "") or str(error)).split())
        words = f"{package} cannot be fetched here ({said}): name {instead} with --data, or say --generated"
        raise DataError(words) from error
