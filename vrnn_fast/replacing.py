"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of ``path`` in the end: whoever reads that finds the old one or the new
    one.

    Its mode follows the umask, as that of any new file does, and of an error nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("xb") as file:
        try:
            yield file
            file.close()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink()
            raise
