"""What was found on a GPU, in bench/results: JSON and a page, written anew after every item, so that a cut leaves what
was done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from vrnn_fast.executors import verification
from vrnn_fast.replacing import replacing

from ..record import commit
from .children import Found, Row
from .parts import PARTS
from .setting import Setting


@dataclass(frozen=True)
class GpuRecord:
    """A run: where, with what, when, and what each item gave."""

    where: dict[str, str]
    setting: Setting
    date: str
    commit: str
    found: list[Found] = field(default_factory=list)

    @classmethod
    def begin(cls, setting: Setting) -> GpuRecord:
        """Begin one of this machine and checkout."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(verification.surroundings(setting.device), setting, now, commit())

    @property
    def name(self) -> str:
        """The name of its files."""
        kind = "rehearsal" if self.setting.emulated else "gpu"
        return re.sub(r"[^a-z0-9]+", "-", f"{kind} {self.where['device']}".lower()).strip("-")

    def write(self, folder: Path) -> None:
        """Write both files, over the last ones."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", json.dumps(asdict(self), indent=1) + "\n"), (".md", self.page())):
            with replacing(folder / f"{self.name}{suffix}") as file:
                file.write(text.encode())

    def page(self) -> str:
        """Return the record as a page of Markdown."""
        lines = [f"# {self.where['device']}", ""]
        if self.setting.emulated:
            lines += ["**A rehearsal on a CPU, in the emulator: its times mean nothing.**", ""]
        versions = ", ".join(f"{name} {value}" for name, value in self.where.items() if name != "device")
        lines += [f"{self.date}, commit {self.commit}; {versions}. `python -m bench.gpu` writes this.", ""]
        for name, part in PARTS.items():
            found = [f for f in self.found if f.part == name]
            if found:
                lines += [f"## {part.title}", "", *_table([row for f in found for row in f.rows]), *_problems(found)]
        return "\n".join(lines)

    @property
    def problems(self) -> list[Found]:
        """The items that went wrong."""
        return [found for found in self.found if found.problem is not None]


def _table(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(str(row.get(name, '')) for name in columns)} |"
    yield ""


def _problems(found: list[Found]) -> Iterator[str]:
    wrong = [f for f in found if f.problem is not None]
    yield from (f"- {f.item}: {f.problem}" for f in wrong)
    if wrong:
        yield ""
