"""NVIDIA's compute-sanitizer over a forward and a backward pass of a few steps."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from .children import ROOT, Row
from .setting import Setting

TOOLS = ("memcheck", "racecheck", "synccheck")
_HEADING = re.compile("COMPUTE-SANITIZER|(ERROR|RACECHECK) SUMMARY")
STEPS, FAILED = 4, 86  # of a sequence; the exit status of a finding


def items(setting: Setting) -> list[str]:
    """Name every tool over a few shapes of each backend."""
    short = setting.short(STEPS)
    return [f"{tool}/{backend}/{job}" for tool in TOOLS for backend in short.backends for job in _jobs(short)]


def _jobs(setting: Setting) -> list[str]:
    return [f"{shape}/{setting.dtypes[0]}" for shape in setting.shapes]


def run(setting: Setting, item: str) -> Iterator[Row]:
    """Run one tool over one pass, which is checked as well."""
    tool, _, job = item.partition("/")
    program = shutil.which("compute-sanitizer")
    if program is None:
        yield {"tool": tool, "pass": job, "outcome": "compute-sanitizer is not here"}
        return
    once = [sys.executable, "-m", "bench.gpu.times", setting.as_json(), job]
    command = [program, "--tool", tool, "--error-exitcode", str(FAILED), *once]
    done = subprocess.run(command, cwd=ROOT, env=setting.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {_first(done.stdout + done.stderr)[:250]}")
    yield {"tool": tool, "pass": job, "outcome": "no finding"}


def _first(output: str) -> str:
    """Return the first finding, past the tool's own heading; of a pass that failed by itself, its last word."""
    said = [line.removeprefix("=========").strip() for line in output.splitlines() if line.strip()]
    own = [line for line in output.splitlines() if line.startswith("=========")]
    findings = [line.removeprefix("=========").strip() for line in own if not _HEADING.search(line)]
    return next((line for line in findings if line), said[-1] if said else "nothing was said")
