"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that replaces ``path`` when it is complete: readers find the old file or the new one.

    Its mode follows the umask, as that of any new file does. An error leaves no file behind.
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
