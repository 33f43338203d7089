"""What was measured, on what, with what: one JSON file per kind of machine in bench/results."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from vrnn_fast import ops

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw", "avx512_bf16")


@dataclass(frozen=True)
class Row:
    """One contender's pass at one shape. Without times where its results disagree, or where it cannot run."""

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
    speedup: float | None = None  # over the faster eager loop


def _processor() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return {"model name": platform.processor(), "flags": ""}
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip()


@dataclass(frozen=True)
class Record:
    """The rows of one run of the benchmark, and everything needed to judge them."""

    processor: str
    isa: list[str]
    cores: int
    threads: int
    kernel_build: str
    versions: dict[str, str]
    commit: str
    uncommitted_changes: bool
    date: str
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def begin(cls) -> Record:
        """Describe this machine and this checkout; rows are added as they are measured."""
        processor = _processor()
        return cls(
            processor=processor.get("model name", platform.machine()),
            isa=[flag for flag in ISA_FLAGS if flag in processor.get("flags", "").split()],
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            kernel_build=ops.chosen_isa() if ops.load() is None else "none",
            versions={"python": platform.python_version(), **{n: version(n) for n in ("torch", "numpy", "vrnn-fast")}},
            commit=_git("rev-parse", "HEAD"),
            uncommitted_changes=bool(_git("status", "--porcelain", "--untracked-files=no")),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def path(self) -> Path:
        """The same for every run on one kind of machine."""
        machine = f"{self.processor} {self.kernel_build} {self.threads} threads"
        return RESULTS / (re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") + ".json")

    @classmethod
    def load(cls, path: Path) -> Record:
        """What :meth:`save` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})

    def save(self) -> Path:
        """Write the record to :attr:`path`, over the last one of this kind of machine."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return self.path
