"""One safetensors file: tensors, and a JSON header that says what they are. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.replacing import replacing

FORMAT = 1
_KEY = "vrnn_fast"


class CheckpointError(ValueError):
    """The file is missing, damaged, or not one of ours; the message says what was found."""


def save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write all or nothing: whoever reads ``path`` finds the old file or the whole new one."""
    from safetensors.torch import save as serialize

    metadata = {_KEY: json.dumps({"format": FORMAT, **header})}
    content = serialize({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    with replacing(path) as file:
        file.write(content)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header that :func:`save` was given.

    Raises:
        CheckpointError: there is no such file, or it is not one that :func:`save` wrote.
    """
    tensors, header = read(path)
    if header is None:
        first = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            f"{path} was not written by vrnn_fast: found {len(tensors)} tensors ({first}, ...) without its header"
        )
    return tensors, header


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of any safetensors file, and the header if :func:`save` wrote it.

    Raises:
        CheckpointError: there is no such file, it is no safetensors file, or its header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: found {_describe(path)} ({error})") from error
    if _KEY not in metadata:
        return tensors, None
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version = header.pop("format")
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: its header is damaged: found {metadata[_KEY][:60]!r}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version of vrnn_fast reads format {FORMAT}")
    return tensors, header


def _describe(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return "a zip archive, as torch.save writes it"
    if start.startswith(b"\x80"):
        return "a pickle"
    return f"{path.stat().st_size} bytes that begin with {start!r}"
