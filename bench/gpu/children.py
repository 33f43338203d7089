"""A part is run item by item in a process of its own. Whoever crashes or hangs costs one item: the next process goes on
behind it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
START = 60.0  # seconds until a process has imported all it needs and found its device


@dataclass(frozen=True)
class Found:
    """The result of one item: its rows, what went wrong if anything did, and the seconds that it took."""

    part: str
    item: str
    rows: tuple[Row, ...] = ()
    problem: str | None = None
    seconds: float = 0.0


@dataclass
class Clock:
    """Seconds that may still be spent."""

    seconds: float
    _begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self._begun)


def run(
    part: str,
    items: Sequence[str],
    command: Sequence[str],
    environment: Mapping[str, str],
    clock: Clock,
    silence: float,
) -> Iterator[Found]:
    """Yield what each item gives, in order. ``command`` takes the items, and answers as :func:`answer` does.

    Args:
        clock: what the part may take; items that it does not suffice for are told.
        silence: seconds that one item may take.
    """
    left = list(items)
    while left and clock.left > 0:
        why = ""
        for found in _heard([*command, *left], environment, part, clock, silence):
            if isinstance(found, str):
                why = found
                break
            yield found
            left.remove(found.item)
        if why:
            yield Found(part, left.pop(0), problem=why)
    for item in left:
        yield Found(part, item, problem=f"not begun: the {clock.seconds:.0f} s of this part were over")


def _heard(
    command: Sequence[str], environment: Mapping[str, str], part: str, clock: Clock, silence: float
) -> Iterator[Found | str]:
    """Yield what one process answers; at last, where it did not come to its end, why."""
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, *command], env=environment, **pipes) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        readers = [
            threading.Thread(target=_read, args=(child.stdout, lines), daemon=True),
            threading.Thread(target=errors.extend, args=(child.stderr,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            yield from _answers(lines, part, clock, silence)
        finally:
            child.kill()
        status = child.wait()
        readers[1].join(timeout=5)
    if status:
        last = next((line.strip() for line in reversed(errors) if line.strip()), "")
        yield f"its process ended with status {status}" + (f": {last[:300]}" if last else "")


def _read(stream: IO[str], into: queue.Queue[str | None]) -> None:
    for line in stream:
        into.put(line)
    into.put(None)


def _answers(lines: queue.Queue[str | None], part: str, clock: Clock, silence: float) -> Iterator[Found | str]:
    begun = time.monotonic()
    patience = START + silence
    while True:
        try:
            line = lines.get(timeout=max(0.0, min(patience, clock.left)))
        except queue.Empty:
            over = clock.left <= 0
            yield f"cut: the {clock.seconds:.0f} s of this part were over" if over else f"cut after {patience:.0f} s"
            return
        if line is None:
            return
        if not line.startswith('{"item"'):
            continue
        entries = json.loads(line)
        seconds, begun, patience = time.monotonic() - begun, time.monotonic(), silence
        yield Found(part, entries["item"], tuple(entries["rows"]), entries["problem"], round(seconds, 1))


def answer(item: str, rows: Sequence[Row], problem: str | None) -> None:
    """Tell what an item gave."""
    print(json.dumps({"item": item, "rows": list(rows), "problem": problem}), flush=True)
