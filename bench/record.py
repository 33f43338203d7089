"""What was measured, on what, with what, in bench/results: for each kind of machine one JSON file of what was last
measured, and beside it one of JSON lines, to which every row is appended and in which none is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch

from vrnn_fast.executors.cpu import operators

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
_MEASURING = ["contender", "contest", "measure", "memory", "peak", "shapes"]
SOURCES = (  # what numbers depend on; neither the list of experiments nor how they are shown
    *("setup.py", "csrc/**/*.cpp", "csrc/**/*.h", "vrnn_fast/**/*.py", "bench/peers/*.py"),
    *(f"bench/{name}.py" for name in _MEASURING),
)
ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw", "avx512_bf16")

Key: TypeAlias = tuple[str, str, int, int, tuple[int, ...], str, str]


@dataclass(frozen=True)
class Provenance:
    """The checkout and the packages that something was measured with.

    Attributes:
        uncommitted_changes: whether the checkout's :data:`SOURCES` were others than the commit's.
        date: when the measuring began, UTC.
        source: a fingerprint of :data:`SOURCES`.
    """

    versions: dict[str, str] = field(hash=False)
    commit: str
    uncommitted_changes: bool
    date: str
    source: str = ""

    @classmethod
    def now(cls) -> Provenance:
        """Describe what is here."""
        packages = ["torch", "numpy", "vrnn-fast", *(["jax"] if find_spec("jax") else [])]
        return cls(
            versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
            commit=_git("rev-parse", "HEAD"),
            uncommitted_changes=_changed(),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            source=_fingerprint(),
        )

    def measures_as(self, other: Provenance) -> bool:
        """Tell whether what was measured in one holds in the other."""
        return (self.source, self.versions) == (other.source, other.versions)

    def __str__(self) -> str:
        return f"{self.date[:10]}, commit {self.commit[:10]}{' and changes' if self.uncommitted_changes else ''}"

    def beside(self, other: Provenance) -> str:
        """Say this state in words where it is not the other one, with those versions that are not the same."""
        versions = [f"{name} {v}" for name, v in self.versions.items() if other.versions.get(name) != v]
        return "" if str(self) == str(other) and not versions else ", ".join([str(self), *versions])


@dataclass(frozen=True)
class Measurement:
    """One contender's pass at one shape. Without times where its results disagree, or where it cannot run.

    Attributes:
        run: the pass.
        gflops: of the products alone, 1e9 a second.
        speedup: over the eager loop in the same turns.
        sizes: x, h and z.
        peak: GFLOP/s of multiply-adds of as many cores as the contender could use, measured around its turns.
        activation_bytes: peak of a pass beside parameters, gradients and inputs.
        remark: what a reader must know to compare it.
        state: what it was measured with; None until it is in a record.
    """

    shape: str
    steps: int
    batch: int
    run: str
    contender: str
    threads: int
    problem: str | None = None
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    gflops: float | None = None
    speedup: float | None = None
    experiment: str = "training"
    sizes: tuple[int, int, int] = (0, 0, 0)
    peak: float | None = None
    activation_bytes: int | None = None
    remark: str | None = None
    state: Provenance | None = None

    @classmethod
    def of_json(cls, entries: dict[str, Any], state: Provenance | None = None) -> Measurement:
        """Read a row as JSON gives it back; columns that it did not have yet are empty, and ``state`` is its own if it
        names no other."""
        lists = {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
        own = entries.get("state")
        return cls(**{**entries, **lists, "state": Provenance(**own) if own else state})

    @property
    def line(self) -> str:
        """The row as a line of a history, without its empty columns; :meth:`of_json` reads it."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}) + "\n"

    @property
    def key(self) -> Key:
        """What no two rows of a record share."""
        return (self.experiment, self.shape, self.steps, self.batch, tuple(self.sizes), self.run, self.contender)

    @property
    def share(self) -> float | None:
        """The share of the machine's peak."""
        return self.gflops / self.peak if self.gflops and self.peak else None


def _processor() -> dict[str, str]:
    """Read the first processor's entries of /proc/cpuinfo; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return {"model name": platform.processor(), "flags": ""}
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _name(processor: dict[str, str]) -> str:
    """Name a processor, with its generation where the name of a virtual machine's leaves that out."""
    name = processor.get("model name", platform.machine())
    if name != "AMD EPYC":
        return name
    of_25 = "Zen 4" if "avx512f" in processor.get("flags", "").split() else "Zen 3"
    generation = {"25": of_25, "26": "Zen 5"}.get(processor.get("cpu family", ""))
    return f"{name}, {generation}" if generation else name


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def commit() -> str:
    """Return the commit, "unknown" without one, with a word where files that numbers depend on are others."""
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if _changed() else "")


def _changed() -> bool:
    """Tell whether files that numbers depend on are others than the commit's."""
    return bool(_git("status", "--porcelain", "--", *(f":(glob){path}" for path in SOURCES)))


def _fingerprint() -> str:
    """Digest everything that a measurement depends on in this checkout, committed or not."""
    files = sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)})
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """What was last measured on one kind of machine: rows, each with the state of the sources that it is of.

    Attributes:
        state: the present one, which new rows are of; that of the latest rows, if the record was only read.
    """

    processor: str
    isa: list[str]
    cores: int
    threads: int
    kernel_build: str
    state: Provenance
    rows: list[Measurement] = field(default_factory=list)

    @classmethod
    def begin(cls) -> Record:
        """Describe this machine and this checkout; rows are added as they are measured."""
        processor = _processor()
        return cls(
            processor=_name(processor),
            isa=[flag for flag in ISA_FLAGS if flag in processor.get("flags", "").split()],
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            kernel_build=operators.chosen_isa() if operators.load() is None else "none",
            state=Provenance.now(),
        )

    @classmethod
    def resume(cls, folder: Path) -> Record:
        """Begin as :meth:`begin`, with the rows that ``folder`` holds of this kind of machine."""
        fresh = cls.begin()
        path = folder / fresh.file_name
        return replace(fresh, rows=cls.load(path).rows) if path.exists() else fresh

    @property
    def file_name(self) -> str:
        """The same for every run on one kind of machine."""
        machine = f"{self.processor} {self.kernel_build} {self.threads} threads"
        return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") + ".json"

    @property
    def heading(self) -> dict[str, Any]:
        """All but the rows, as it is written."""
        machine = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("state", "rows")}
        return machine | asdict(self.state)

    def put(self, rows: Iterable[Measurement]) -> None:
        """Add rows of the present state, in place of earlier ones of the same key."""
        held = {row.key: row for row in self.rows} | {row.key: replace(row, state=self.state) for row in rows}
        self.rows[:] = held.values()

    def append(self, rows: Iterable[Measurement], folder: Path) -> Path:
        """Add a line for each row, of the present state, to this machine's history in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / self.file_name).with_suffix(".jsonl")
        with path.open("a") as file:
            file.writelines(replace(row, state=self.state).line for row in rows)
        return path

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all other rows."""
        self.rows[:] = [row for row in self.rows if row.key in keys]

    def find(self, key: Key) -> Measurement | None:
        """Find the row of this key, if it holds in the present state."""
        return next((r for r in self.rows if r.key == key and r.state and r.state.measures_as(self.state)), None)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read what :meth:`save` wrote, now or before rows had all their columns."""
        entries = json.loads(path.read_text())
        state = Provenance(**{f.name: entries.pop(f.name) for f in fields(Provenance) if f.name in entries})
        rows = [Measurement.of_json(row, state) for row in entries.pop("rows")]
        return cls(**entries, state=state, rows=rows)

    def save(self, folder: Path) -> Path:
        """Write the record into ``folder``, over the last one. Only rows older than the latest name their state."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        latest = max((row.state for row in self.rows if row.state), key=lambda state: state.date, default=self.state)
        rows = [asdict(row) for row in self.rows]
        for row, entries in zip(self.rows, rows, strict=True):
            if row.state == latest:
                del entries["state"]
        path.write_text(json.dumps(replace(self, state=latest).heading | {"rows": rows}, indent=1) + "\n")
        return path
