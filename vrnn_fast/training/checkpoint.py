"""The checkpoints of a run: what resuming takes, through torch.distributed.checkpoint, each in a folder of its own.

A checkpoint is written beside training, into a folder that has its name only when all of it is there with the digest of
every file: whoever is killed leaves the last ones whole. Two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from ..checkpoints.files import CheckpointError
from ..replacing import replacing
from .config import RunError
from .ranks import Ranks

FOLDER, HEADER = "checkpoints", "run.json"
_FORMAT, _KEPT = 1, 2
_NAME = re.compile(r"step-(\d+)")
Tensors = dict[str, Any]  # and dictionaries of them


class Checkpoints:
    """Those in the folder of a run.

    Raises:
        RunError: by :meth:`save` and :meth:`wait`, where one could not be written.
    """

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = run / FOLDER, ranks
        self._writing: Future[Any] | None = None
        self._finished: threading.Event = threading.Event()
        self._failure: Exception | None = None

    def save(self, step: int, state: Tensors, header: Mapping[str, Any]) -> Path:
        """Begin to write a checkpoint; the state may change as soon as this returns. Waits for the one before."""
        self.wait()
        path, place = self._folder / f"step-{step:09d}", self._folder / f"step-{step:09d}.part"
        failure = None
        if self._ranks.first:
            try:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
            except OSError as error:
                failure = _unwritten(path, error)
        self._ranks.together(failure)
        self._finished, self._failure = threading.Event(), None
        where: Any = {"no_dist": True} if self._ranks.size == 1 else {"process_group": self._ranks.writing}
        found: Any = state_dict_saver.async_save(state, checkpoint_id=place, **where)
        self._writing = found
        content = {"format": _FORMAT, "step": step, "ranks": self._ranks.size, **header}
        found.add_done_callback(lambda future: self._finish(future, place, path, content))
        return path

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._writing is None:
            return
        self._finished.wait()
        self._writing = None
        self._ranks.together(self._failure)

    def failed(self) -> bool:
        """Tell whether the one that is being written could not be; :meth:`wait` says why."""
        return self._finished.is_set() and self._failure is not None

    def _finish(self, written: Future[Any], place: Path, path: Path, content: Mapping[str, Any]) -> None:
        """Name a checkpoint that is all there, and remove those that are too old; on the first rank alone."""
        try:
            written.result()
            if self._ranks.first:
                files = {file.name: digest(file) for file in sorted(place.iterdir())}
                with replacing(place / HEADER) as file:
                    text = json.dumps({**content, "files": files})
                    file.write(json.dumps({"digest": _digest(text.encode()), "run": text}).encode())
                shutil.rmtree(path, ignore_errors=True)
                place.rename(path)
                for old in sorted(self._folder.glob("step-*[0-9]"))[:-_KEPT]:
                    shutil.rmtree(old, ignore_errors=True)
        except (Exception, CheckpointException) as error:
            shutil.rmtree(place, ignore_errors=True)
            self._failure = _unwritten(path, error)
        finally:
            self._finished.set()


def _unwritten(path: Path, error: BaseException) -> RunError:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else _cause(error)
    whole = [found.name for found in _by_age(path.parent.parent) if found != path]
    kept = f"still whole there: {', '.join(whole)}, as saved before" if whole else "no checkpoint is there yet"
    return RunError(f"{path} cannot be written: {cause}; {kept}", everywhere=True)


def _cause(error: BaseException) -> str:
    """Return the last line of what torch tells of a write that failed on some rank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def latest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the newest whole checkpoint of a run's folder, or the one that ``path`` is, and its header.

    One that is damaged is passed over, with a warning, where an older one is whole.

    Raises:
        CheckpointError: there is none, or none that is whole.
    """
    if os.path.exists(path / HEADER):
        return path, header_of(path)
    found = _by_age(path)
    if not found:
        raise CheckpointError(f"no checkpoint at {path}")
    first: CheckpointError | None = None
    for folder in reversed(found):
        try:
            header = header_of(folder)
        except CheckpointError as error:
            first = first or error
            continue
        if first is not None:
            warnings.warn(f"{first}; the run goes on from {folder}, which is whole", stacklevel=2)
        return folder, header
    assert first is not None
    raise first


def exists(run: Path) -> bool:
    """Tell whether a folder holds a run."""
    return bool(_by_age(run))


def run_of(path: Path) -> Path:
    """Return the folder of the run that ``path`` is, or is a checkpoint of.

    Raises:
        CheckpointError: it is neither.
    """
    folder = path.parent.parent if os.path.exists(path / HEADER) else path
    if not exists(folder):
        raise CheckpointError(f"no checkpoint at {path}")
    return folder


def header_of(folder: Path) -> dict[str, Any]:
    """Return what stands beside the tensors of a checkpoint, all of whose files are as they were written.

    Raises:
        CheckpointError: a file is missing or another one; the message names it.
    """
    path = folder / HEADER
    try:
        outer = json.loads(path.read_text())
        text = outer["run"]
        if _digest(text.encode()) != outer["digest"]:
            raise CheckpointError(f"{path} is damaged: it is not what its digest says that was written")
        header: dict[str, Any] = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path} has format {header.get('format')}, this version of vrnn_fast reads {_FORMAT}")
    for name, written in header["files"].items():
        try:
            found = digest(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != written:
            raise CheckpointError(f"{folder / name} is damaged: it is not what its digest says that was written")
    return header


def load(folder: Path, state: Tensors, ranks: Ranks) -> None:
    """Read the tensors of ``state`` in place, each rank its own part.

    Raises:
        CheckpointError: they are not those of the checkpoint.
    """
    try:
        where: Any = {"no_dist": True} if ranks.size == 1 else {"process_group": ranks.control}
        state_dict_loader.load(state, checkpoint_id=folder, **where)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{folder} does not hold this run: {_cause(error)}") from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            made.update(part)
    return made.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _by_age(run: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, the oldest first."""
    try:
        return sorted(found for found in (run / FOLDER).iterdir() if _NAME.fullmatch(found.name))
    except OSError:
        return []
