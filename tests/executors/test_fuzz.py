"""Cases that chance draws obey the law, and the fuzzer itself: it finds a planted fault and makes it small."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fuzz import Case, Refused, Std, Unlawful, Unrepeatable, case_of, failure, run, shrink
from tests.support.machine import usable_isas
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import SequenceResult, cpu
from vrnn_fast.executors.base import Batch, Want

PART = 25
needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")


@needs_cpu
@pytest.mark.parametrize("first", range(0, 10 * PART, PART))
def test_cases_obey_the_law(first: int) -> None:
    """Some of what ``make fuzz`` runs."""
    for number in range(first, first + PART):
        case = case_of(1, number, "cpu", usable_isas())
        if (error := failure(case)) and not isinstance(error, Refused):
            pytest.fail(f"{error}\n{shrink(case, error)}")


def test_cases_obey_the_law_in_tritons_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "tests.fuzz", "--executor", "triton", "--cases", "6", "--seed", "1"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "6 cases of seed 1 on triton: 0 failed, 0 refused" in done.stdout, done.stdout + done.stderr


def test_a_case_is_a_line_that_makes_it_again() -> None:
    for number in range(200):
        case = case_of(0, number)
        statement, call = str(case).split("; ")
        assert statement == "from tests.fuzz import *"
        assert eval(call.removeprefix("run"), {"Case": Case, "Std": Std, "inf": math.inf}) == case
        assert case_of(0, number, isas=("baseline", "avx2")).seed == case.seed
    assert str(Case()) == "from tests.fuzz import *; run(Case())"


Fault = Callable[[CellSpec, SequenceResult], SequenceResult]


def planted(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fused executor be wrong."""
    right = cpu.run

    def wrong(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> SequenceResult:
        return fault(spec, right(spec, parameters, batch, want))

    monkeypatch.setattr(cpu, "run", wrong)


def a_gradient_of_an_lstm_is_of_the_wrong_sign(spec: CellSpec, result: SequenceResult) -> SequenceResult:
    if spec.cell == "lstm" and spec.latent_size > 2:
        return result._replace(z=2 * result.z.detach() - result.z)
    return result


def a_kl_is_a_little_too_large(spec: CellSpec, result: SequenceResult) -> SequenceResult:
    return result._replace(kl=result.kl * (1 + 2e-6)) if spec.residual else result


def a_repeat_differs_by_a_bit() -> Fault:
    calls = itertools.count()

    def fault(spec: CellSpec, result: SequenceResult) -> SequenceResult:
        if spec.num_layers == 1 or next(calls) % 2 == 0:
            return result
        return result._replace(std=result.std * (1 + torch.finfo(result.std.dtype).eps))

    return fault


@needs_cpu
@pytest.mark.parametrize(
    ("fault", "kind", "plainest"),
    [
        (a_gradient_of_an_lstm_is_of_the_wrong_sign, Unlawful, {"cell": "lstm", "latent_size": 3}),
        (a_kl_is_a_little_too_large, Unlawful, {"residual": True}),
        (a_repeat_differs_by_a_bit(), Unrepeatable, {"num_layers": 2}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found_and_made_small(
    fault: Fault, kind: type[Exception], plainest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(fault, monkeypatch)
    for number in range(300):
        case = case_of(0, number)
        if isinstance(error := failure(case), kind):
            break
    else:
        pytest.fail("not found")
    small = shrink(case, error)
    with pytest.raises(kind):
        run(small)
    for name in ("cell", "latent_size", "residual", "num_layers", "steps", "batch", "phi_x", "head_layers", "lengths"):
        assert getattr(small, name) == plainest.get(name, getattr(Case(), name)), small
    monkeypatch.undo()
    run(small)
