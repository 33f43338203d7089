"""The device layer of the CUDA kernels, primitive by primitive: the tests that the emulator passes too."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from .children import ROOT, Row
from .setting import Setting

TESTS = "tests/executors/cuda/test_device.py"


def items(setting: Setting) -> list[str]:
    """Name all in one, where CUDA is asked for."""
    return [TESTS] if "cuda" in setting.backends else []


def run(setting: Setting, item: str) -> Iterator[Row]:
    """Count the cases of each test that passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", item]
        done = subprocess.run(command, cwd=ROOT, env=setting.environment, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with status {done.returncode}: {done.stdout.strip()[-250:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[case.attrib["name"].partition("[")[0]].append(kinds[0] if kinds else "passed")
    for test, found in outcomes.items():
        counts = ", ".join(f"{found.count(kind)} {kind}" for kind in dict.fromkeys(found))
        yield {"test": test.removeprefix("test_").replace("_", " "), "cases": counts}
    failed = [test for test, found in outcomes.items() if {"failure", "error"} & set(found)]
    if failed or not cases:
        raise ArithmeticError(f"failed: {', '.join(failed)}" if cases else "no test ran")
