"""The experiment of the paper, on a few rolls that are not the paper's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from bench.papers import __main__ as papers
from bench.papers.chorales import PITCHES, WIDTH, Chorist, Hyperparameters, Result, Trial, read
from bench.papers.page import page
from vrnn_fast.bounds import BoundKind
from vrnn_fast.data import DataError

FEW = {"epochs": 3, "every": 1, "patience": 1, "learning_rates": (1e-3, 1e-2), "judges": 2, "measures": 3}


@pytest.fixture
def rolls(tmp_path: Path) -> Path:
    """A file like the paper's, of rolls of 2 to 5 steps."""
    draw = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 6), ("valid", 3), ("test", 2)):
        cells = np.empty((1, count), dtype=object)
        for i in range(count):
            cells[0, i] = (draw.random((2 + i % 4, PITCHES)) < 0.05).astype(float)
        parts[f"{part}data"] = cells
    savemat(tmp_path / "rolls.mat", parts)
    return tmp_path / "rolls.mat"


def test_reads_rolls_of_unequal_length(rolls: Path, tmp_path: Path) -> None:
    data = read(rolls)
    assert [[len(roll) for roll in part] for part in (data.train, data.valid, data.test)] == [
        [2, 3, 4, 5, 2, 3],
        [2, 3, 4],
        [2, 3],
    ]
    with pytest.raises(DataError, match=r"absent.mat is not JSB_Chorales.mat"):
        read(tmp_path / "absent.mat")
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(DataError, match=r"other.mat is not JSB_Chorales.mat: 'traindata'"):
        read(tmp_path / "other.mat")


def test_the_network_is_the_papers(rolls: Path) -> None:
    model = Chorist(read(rolls).train)
    spec = model.vrnn.spec
    assert (spec.cell, spec.hidden_size, spec.latent_size, spec.residual, spec.std.offset) == (
        "lstm",
        32,
        32,
        True,
        0.5,
    )
    assert {len(spec.network(name).hidden) for name in ("phi_x", "phi_z", "encoder", "prior", "decoder")} == {1}
    model.vrnn.get_parameter("rnn.weight_ih_l0").data[:, :WIDTH] = 0  # no phi_x: the state is what biases make of zero
    h, c = model.first_state(2)
    lstm = torch.nn.LSTMCell(1, WIDTH)
    for name in ("weight_hh", "bias_ih", "bias_hh"):
        getattr(lstm, name).data = model.vrnn.get_parameter(f"rnn.{name}_l0").data
    for mine, theirs in zip((h, c), lstm(torch.zeros(2, 1)), strict=True):
        torch.testing.assert_close(mine[0], theirs)


def test_runs_are_recorded_and_shown(rolls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "Hyperparameters", lambda kind, seed: Hyperparameters(kind, seed, **FEW))
    monkeypatch.setenv(papers.DATA, str(rolls))
    threads = torch.get_num_threads()
    papers.main(["--results", str(tmp_path), "--seed", "3", "--threads", str(threads)])
    found = papers.results_in(tmp_path / "papers")
    assert [r.name for r in found] == ["elbo-3", "iwae-3", "fivo-3"]
    for r in found:
        assert [t.learning_rate for t in r.trials] == [1e-3, 1e-2]
        assert all(t.history[-1][0] in (t.best[0], t.best[0] + 1) for t in r.trials)
        assert r.kept.best[1] == max(nats for t in r.trials for _, nats in t.history)
        assert all(math.isfinite(v) for part in (r.valid, r.test) for v in part.values())
        assert Result.of_json(json.dumps({**json.loads((tmp_path / "papers" / f"{r.name}.json").read_text())})) == r
    assert (tmp_path / "papers.md").read_text() == page(found)


def test_the_data_has_no_default_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(papers.DATA, raising=False)
    with pytest.raises(SystemExit):
        papers.main([])
    assert "name JSB_Chorales.mat with --data or in VRNN_FAST_JSB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        papers.main(["--data", "absent.mat"])
    assert "absent.mat is not JSB_Chorales.mat" in capsys.readouterr().err


def test_the_page_tells_what_was_missed() -> None:
    def result(kind: BoundKind, seed: int, nats: float) -> Result:
        machine: dict[str, object] = {"processor": "P", "cores": 2, "threads": 1, "kernel_build": "avx2"}
        machine |= {"versions": {"python": "3", "torch": "2"}, "commit": "c", "date": f"day {seed}"}
        bounds: dict[BoundKind, float] = {"elbo": nats - 1, "iwae": nats - 0.5, "fivo": nats}
        trials = [Trial(1e-3, [(5, nats), (6, nats - 1)], 60.0), Trial(2e-3, [(5, nats - 2)], 40.0)]
        return Result(Hyperparameters(kind, seed), machine, trials, bounds, bounds, 2.0)

    text = page(
        [result("elbo", 0, -7.7), *(result("fivo", seed, nats) for seed, nats in enumerate((-7.0, -7.2, -7.3)))]
    )
    assert "| ELBO | -7.75 | **-7.700** | reached | -7.700 |" in text
    assert "| FIVO | -7.10, stretch -6.90 | **-7.200** | missed by 0.100 | -7.000, -7.200, -7.300 |" in text
    assert "| FIVO | 2 | -8.300 | -7.800 | -7.300 | -8.300 | -7.800 | -7.300 |" in text
    assert "| FIVO | 0 | 0.001: -7.000, 0.002: -9.000 | 0.001 | 5 / 6 | 100 | 2 |" in text
    assert text.count("On P, 2 cores") == 1
