"""``make gpu``: its parts are cut, and go on behind what crashed; and all of it, rehearsed in the emulator."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bench.gpu import __main__ as command
from bench.gpu import children, parity
from bench.gpu.children import Clock, Found
from bench.gpu.parts import PARTS
from bench.gpu.setting import Setting, shape_of
from vrnn_fast.executors import trial
from vrnn_fast.executors.cuda import build

TOOL = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
[ "$2" = racecheck ] && echo "========= Error: Race reported between two warps" && exit $4
shift 4
exec "$@"
"""
CHILD = """
import json, os, sys, time
for item in sys.argv[1:]:
    if item == "crash":
        os.kill(os.getpid(), 11)
    if item == "raise":
        raise ValueError("an illegal memory access")
    if item == "hang":
        time.sleep(60)
    print("noise")
    problem = "wrong" if item == "wrong" else None
    print(json.dumps({"item": item, "rows": [{"name": item}], "problem": problem}), flush=True)
    if problem:
        break
"""


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START", 10.0)


def run(items: list[str], seconds: float = 60.0, silence: float = 10.0) -> dict[str, str | None]:
    found = list(children.run("part", items, ["-c", CHILD], os.environ, Clock(seconds), silence))
    assert [f.item for f in found] == items
    assert all(f.rows == ({"name": f.item},) for f in found if f.problem in (None, "wrong"))
    return {f.item: f.problem for f in found}


def test_what_fails_costs_one_item() -> None:
    found = run(["a", "crash", "b", "raise", "c", "wrong", "d"])
    assert [found[item] for item in ("a", "b", "c", "d")] == [None] * 4
    assert found["crash"] == "its process ended with status -11"
    assert found["raise"] == "its process ended with status 1: ValueError: an illegal memory access"
    assert found["wrong"] == "wrong"


def test_what_hangs_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START", 2.0)
    assert run(["hang", "b"], silence=1.0) == {"hang": "cut after 3 s", "b": None}


def test_a_part_has_a_limit() -> None:
    assert run(["a", "hang", "b"], seconds=4.0) == {
        "a": None,
        "hang": "cut: the 4 s of this part were over",
        "b": "not begun: the 4 s of this part were over",
    }


def test_all_parts_fit_into_ten_minutes() -> None:
    """What one command may take on a machine that is lent, its start not counted."""
    assert sum(part.seconds for part in PARTS.values()) <= 630
    assert command._parser().parse_args([]).minutes <= 9.5
    assert list(PARTS)[:3] == ["primitives", "parity", "sanitizer"]


def test_a_setting_travels() -> None:
    setting = Setting(True, shapes=("tiny",), compiled=("default",))
    assert Setting.of_json(setting.as_json()) == setting
    assert shape_of("narrow:4").steps == 4
    assert len(PARTS["parity"].items(setting)) == 2 * len(trial.STRUCTURES) + len(parity.WAYS)
    assert PARTS["sanitizer"].items(setting)[0] == "memcheck/cuda/tiny:4/bfloat16"


@pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")
def test_it_is_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a stand-in for NVIDIA's tool: one that runs the pass, and one that finds something."""
    monkeypatch.setattr(children, "START", 60.0)
    tool, results = tmp_path / "bin" / "compute-sanitizer", tmp_path / "results"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    shared = [f"cuda/gru in bfloat16, {way}" for way in parity.WAYS]
    wanted = [*shared, "memcheck/cuda/tiny:4/bfloat16", "racecheck/cuda/tiny:4/bfloat16", "tiny/bfloat16"]
    asked = ["--emulate", "--results", str(results), "--seconds", "0", "--patience", "4"]
    asked += ["--shape", "tiny", "--dtype", "bfloat16", "--backend", "cuda", *(f"--item={item}" for item in wanted)]
    assert command.main(asked) == 1, "the race is a problem"
    (data,), (page,) = (list(results.glob(f"rehearsal-*.{kind}")) for kind in ("json", "md"))
    found = {f["item"]: Found(**f) for f in json.loads(data.read_text())["found"]}
    assert list(found) == wanted
    assert {f.item: f.problem for f in found.values() if f.problem} == {
        "racecheck/cuda/tiny:4/bfloat16": "RuntimeError: status 86: Error: Race reported between two warps"
    }
    assert all(0 < float(found[name].rows[0]["error, of what is allowed"]) < 1 for name in shared)
    assert found["memcheck/cuda/tiny:4/bfloat16"].rows[0]["outcome"] == "no finding"
    times = {row["what"]: row for row in found["tiny/bfloat16"].rows}
    assert float(times["vrnn_fast, cuda"]["forward+backward"]) > 0
    assert "its times mean nothing" in page.read_text()
    assert "racecheck/cuda/tiny:4/bfloat16, " in capsys.readouterr().out


def test_a_rehearsal_is_no_record() -> None:
    with pytest.raises(SystemExit, match="--emulate needs --results FOLDER"):
        command.main(["--emulate"])
    assert sys.modules["torch"].cuda.is_available() or _refused([]) == (
        "there is no GPU; --emulate --results FOLDER rehearses on a CPU"
    )


def _refused(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    return str(error.value)
