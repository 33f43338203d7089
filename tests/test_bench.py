"""The benchmark refuses to time what is wrong, counts arithmetic rightly, and reads back what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import __main__ as bench
from bench import readme, record
from bench.contenders import CONTENDERS, TRAINING, Contender, Run, prepare_eager
from bench.measure import Timed, disagreement, take_turns
from bench.record import Record, Row
from bench.shapes import SHAPES, Shape, forward_flops
from bench.table import markdown, problems, render
from vrnn_fast import VRNN

SMALL = replace(SHAPES[0], steps=3, batch=2)


def test_flops_of_the_reference_shape() -> None:
    phi_x, phi_z, encoder, prior, decoder = 28 * 100 + 100 * 100, 16 * 100, 200 * 100 + 100 * 100, 100 * 100, 30_000
    heads, gru = 4 * 100 * 16 + 100 * 28, 300 * 200 + 300 * 100
    weights = phi_x + phi_z + encoder + prior + decoder + heads + gru
    assert forward_flops(VRNN(**SHAPES[0].model), SHAPES[0]) == 2 * 28 * 128 * weights


def test_wrong_results_disagree() -> None:
    exact = {"loss": torch.tensor(1.0, dtype=torch.float64), "gradient of w": torch.ones(3, dtype=torch.float64)}
    eager = {"loss": torch.tensor(1.0), "gradient of w": torch.ones(3) + 1e-5}
    assert disagreement(eager, eager, exact) is None
    assert disagreement({"loss": eager["loss"]}, eager, exact) == "gradient of w is missing"
    for wrong in (1 + 5e-5, float("nan"), float("inf")):
        reason = disagreement({**eager, "gradient of w": torch.tensor([1, wrong, 1])}, eager, exact)
        assert reason is not None
        assert reason.startswith("gradient of w is off by")


def test_no_speed_without_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare_wrong(shape: Shape, parameters: Mapping[str, Tensor]) -> Run:
        run = prepare_eager(shape, parameters)
        return replace(run, results=lambda: {name: t + 1e-3 for name, t in run.results().items()})

    wrong, absent = Contender("wrong", prepare_wrong), Contender("absent", prepare_eager, lambda: "not here")
    monkeypatch.setattr(bench, "CONTENDERS", (CONTENDERS[0], wrong, absent))
    rows = {(row.contender, row.run): row for row in bench.rows(SMALL, seconds=0)}
    assert rows["eager loop", TRAINING].milliseconds
    assert rows["eager loop", TRAINING].speedup == 1
    assert rows["absent", TRAINING].problem == "not here"
    for name in ("wrong", "absent"):
        assert rows[name, TRAINING].milliseconds is rows[name, TRAINING].gflops is rows[name, TRAINING].speedup is None
    assert "wrong at reference, 3 x 2: loss is off by" in problems(list(rows.values()))[0]
    assert "no result" in markdown([rows["wrong", TRAINING]])
    assert render(list(rows.values()), "").row_count == 6


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    threads = torch.get_num_threads()

    def call(name: str) -> Timed:
        return Timed(lambda: calls.append(f"{name}{torch.get_num_threads()}"), 1 if name == "b" else threads)

    times = take_turns({name: call(name) for name in "ab"}, seconds=0, block=0)
    assert calls == 7 * [f"a{threads}", "b1"]
    assert torch.get_num_threads() == threads
    assert all(t.lower <= t.median <= t.upper for t in times.values())


def test_records_come_back_and_reach_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (record, readme):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    begun = Record.begin()
    begun.rows.append(Row("reference", 28, 8, TRAINING, "eager loop", 2, None, 12.5, (12.0, 13.0), 30.0, 1.0))
    saved = Record.load(begun.save())
    assert saved.rows[0].milliseconds == 12.5
    assert saved.commit == begun.commit

    monkeypatch.setattr(readme, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.main()
    assert begun.processor in page.read_text()
    assert "| 12.50 |" in page.read_text()
    assert "old" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
