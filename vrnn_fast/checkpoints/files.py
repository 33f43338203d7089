"""One safetensors file: tensors, and a JSON header that says what they are. Nothing is ever unpickled.

The file holds a digest of itself, taken with zeros in the digest's place: one flipped bit, and it is refused.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..replacing import replacing

BEST = "best.safetensors"  # in the folder of a run
KEY_OF_TABLES = "table"  # in a header: what was learnt from a table
FORMAT = 2
_WITHOUT_DIGEST = 1  # the format before
_KEY, _DIGEST = "vrnn_fast", "vrnn_fast_digest"  # two keys: no single damage hides both


class CheckpointError(ValueError):
    """The file is missing, damaged, or not one of ours; the message says what was found."""


def save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write all or nothing: whoever reads ``path`` finds the old file or the whole new one."""
    from safetensors.torch import save as serialize

    place = secrets.token_hex(hashlib.sha256().digest_size)
    metadata = {_KEY: json.dumps({"format": FORMAT, **header}), _DIGEST: place}
    content = serialize({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    with replacing(path) as file:
        file.write(content.replace(place.encode(), _digest(content, place).encode(), 1))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the header that :func:`save` was given.

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
    """Read the tensors of any safetensors file, and the header if :func:`save` wrote it.

    Raises:
        CheckpointError: there is no such file, it is no safetensors file, or it is not as :func:`save` left it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialize

    content = _content(path)
    metadata = _metadata(content)
    if _DIGEST in metadata and _digest(content, metadata[_DIGEST]) != metadata[_DIGEST]:
        raise CheckpointError(f"{path} is damaged: it is not what its digest says that was written")
    try:
        tensors = deserialize(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: found {_describe(content)} ({error})") from error
    if _KEY not in metadata:
        return tensors, None
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version = header.pop("format")
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: its header is damaged: found {metadata[_KEY][:60]!r}") from error
    if version not in (_WITHOUT_DIGEST, FORMAT):
        raise CheckpointError(f"{path} has format {version}, this version of vrnn_fast reads format {FORMAT}")
    if version == FORMAT and _DIGEST not in metadata:
        raise CheckpointError(f"{path} is damaged: it has no digest, and format {FORMAT} has one")
    if version == _WITHOUT_DIGEST:
        warnings.warn(f"{path} is of an earlier version, without a digest: damage would not be seen", stacklevel=3)
    return tensors, header


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _metadata(content: bytes) -> dict[str, str]:
    """Read what a safetensors file says beside its tensors; nothing of what is none."""
    try:
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    entries = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value for key, value in entries if isinstance(value, str)}


def _digest(content: bytes, place: str) -> str:
    """Compute the SHA-256 of a file with zeros where ``place`` stands."""
    found = place.encode(errors="surrogatepass")
    return hashlib.sha256(content.replace(found, b"0" * len(found), 1)).hexdigest()


def _describe(content: bytes) -> str:
    if not content:
        return "an empty file"
    if content.startswith(b"PK"):
        return "a zip archive, as torch.save writes it"
    if content.startswith(b"\x80"):
        return "a pickle"
    return f"{len(content)} bytes that begin with {content[:8]!r}"
