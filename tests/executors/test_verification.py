"""An executor is trusted on a device after a trial there: faults are planted in executors of the CPU."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vrnn_fast import executors
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cpu, cuda, reference, select, trial, triton, verification
from vrnn_fast.executors.verification import Verdict

CPU = torch.device("cpu")
ON_A_GPU: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
SPEC = CellSpec(3, 4, 2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where outcomes are kept; no test finds another's."""
    monkeypatch.setattr(verification, "cache_directory", lambda: tmp_path)
    monkeypatch.delenv(verification.VARIABLE, raising=False)
    verification._distrusted.cache_clear()
    return tmp_path


def attempt(module: str) -> Verdict:
    silence = 15.0 if module == "hanging" else verification.SILENCE
    return verification.attempt("planted", f"tests.support.planted.{module}", CPU, {}, silence)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("wrong", "gru, ragged, with resets: z is off by .*, plain torch by .*, allowed are"),
        ("drifting", "gru: kl is another number in a second run"),
        ("hanging", "it said nothing for 15 s in 'lstm of two layers', forward, and was ended"),
        ("crashing", "its process ended with status -11"),
        ("raising", "ended with status 1: RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("missing", "ended with status 1: ModuleNotFoundError: No module named 'tests.support.planted.missing'"),
    ],
)
def test_a_planted_fault_is_found(module: str, words: str) -> None:
    outcome = attempt(module)
    assert outcome.reason is not None
    assert re.search(words, outcome.reason), outcome.reason


def test_what_is_right_passes() -> None:
    found = list(trial.findings(reference, CPU))
    assert [f.name for f in found] == [s.name for s in trial.STRUCTURES]
    assert len(found) >= 12
    assert not [f for f in found if f.wrong]
    assert max(f.share for f in found) < 1


def test_a_verdict_is_found_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def attempt(executor: str, module: str, device: torch.device, where: Any) -> Verdict:
        tried.append(module)
        return Verdict(executor, where, None if len(tried) < 2 else "worse", {"gru": 0.1})

    monkeypatch.setattr(verification, "attempt", attempt)
    with caplog.at_level(logging.WARNING, logger="vrnn_fast"):
        first = verification.verified("triton", CPU)
        assert verification.verified("triton", CPU) == first
    assert tried == ["vrnn_fast.executors.triton"]
    assert [r.getMessage().partition(" on ")[0] for r in caplog.records] == ["trying backend 'triton'"]
    assert verification.verified("triton", CPU, again=True).reason == "worse"
    assert verification.verified("triton", CPU).reason == "worse"
    (path,) = (folder / "verified").glob("*.json")
    path.write_text("{damaged")
    verification.verified("triton", CPU)
    assert len(tried) == 3, "what cannot be read is tried again"
    monkeypatch.setattr(verification, "surroundings", lambda device: {"device": "another card"})
    verification.verified("triton", CPU)
    assert len(tried) == 4, "and so is it on another device"


def test_processes_that_start_together_try_once(folder: Path) -> None:
    """As the ranks of a node do."""
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom vrnn_fast.executors import verification as v\n"
        "folder = Path(sys.argv[1]); v.cache_directory = lambda: folder\n"
        "def attempt(executor, module, device, where):\n"
        "    import os, time; time.sleep(1); (folder / str(os.getpid())).touch()\n"
        "    return v.Verdict(executor, where, None)\n"
        "v.attempt = attempt\nprint(v.verified('triton', torch.device('cpu')).reason)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert {rank.communicate()[0] for rank in ranks} == {"None\n"}
    assert len([path for path in folder.iterdir() if path.name.isdigit()]) == 1


def test_auto_takes_what_has_proven_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: dict[str, str | None] = {"triton": None}
    monkeypatch.setattr(executors, "_UNAVAILABLE", {e.name: None for e in executors.executors})
    monkeypatch.setattr(triton, "refuses", lambda *given: None)
    monkeypatch.setattr(reference, "refuses", lambda *given: None)
    for other in (cpu, cuda):
        monkeypatch.setattr(other, "refuses", lambda *given: "it runs on CPU tensors")
    monkeypatch.setattr(verification, "verified", lambda name, device: Verdict(name, {}, reasons[name]))
    assert select("auto", SPEC, ON_A_GPU)[0] is triton
    verification._distrusted.cache_clear()
    reasons["triton"] = "gru: z is off"
    executor, why = select("auto", SPEC, ON_A_GPU)
    assert executor is reference
    assert why["triton"] == "it did not pass its trial on this device: gru: z is off"
    assert select("triton", SPEC, ON_A_GPU)[0] is triton, "who asks for it by name gets it"


def test_without_a_trial_auto_stays_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(verification.VARIABLE, "0")
    monkeypatch.setattr(executors, "_UNAVAILABLE", {e.name: None for e in executors.executors})
    monkeypatch.setattr(triton, "refuses", lambda *given: None)
    monkeypatch.setattr(verification, "verified", lambda *_: pytest.fail("it was tried"))
    executor, why = select("auto", SPEC, ON_A_GPU)
    assert executor is reference
    assert why["triton"] == "VRNN_FAST_VERIFY=0 turned off the trial on this device that it must pass first"


def test_a_cpu_hears_nothing_of_gpus(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_announced", set())
    executors.choose("auto", SPEC, torch.zeros(1, 1, 3, dtype=torch.float16))
    assert [str(w.message) for w in recwarn] == [
        "running on 'reference', not on 'cpu': it takes float32, float64 or bfloat16, and x is torch.float16"
    ]


def test_the_outcome_depends_on_all_that_may_change_it() -> None:
    where = verification.surroundings(CPU)
    assert {"device", "driver", "vrnn_fast", "torch", "triton", "nvrtc", "sources"} <= where.keys()
    assert json.loads(Verdict("cpu", where, None).as_json())["where"] == where


def test_what_is_refused_is_neither_right_nor_wrong() -> None:
    outcome = verification.attempt("cpu", "vrnn_fast.executors.cpu", CPU, {})
    assert outcome.reason is None
    assert (
        outcome.refused == {"gru in float16": "it takes float32, float64 or bfloat16, and x is torch.float16"}
        or cpu.unavailable()
    )
    assert set(outcome.shares) == {s.name for s in trial.STRUCTURES} - {"gru in float16"}
