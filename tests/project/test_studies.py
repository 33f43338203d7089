"""The studies of bench.papers: what they hold our numbers against is right, and a page says all that was found."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.papers import __main__ as papers
from bench.papers import anomalies, exchange, linear_gaussian, narendra_li
from bench.papers.evidence import Study, StudyResult, findings_in, page
from bench.papers.evidence import main as asked
from bench.papers.learning import Signals, TrainingCourse, learn
from vrnn_fast import VRNN, Std
from vrnn_fast.likelihoods import Gaussian


def test_the_kalman_filter_knows_the_likelihood() -> None:
    """That of the Gaussian that all outputs have together."""
    generator, steps = torch.Generator().manual_seed(0), 7
    u = torch.randn(steps, 3, 1, dtype=torch.float64, generator=generator).float()
    signals = linear_gaussian.simulate(u.double(), generator)
    a, b = linear_gaussian.A, linear_gaussian.B
    powers = [torch.linalg.matrix_power(a, k)[0] for k in range(steps)]  # C A^k
    mean = torch.zeros(steps, 3, dtype=torch.float64)
    mixing = torch.zeros(steps, 2 * steps, dtype=torch.float64)
    for k in range(steps):
        for i in range(k):
            mean[k] += (powers[k - 1 - i] @ b) * u[i, :, 0].double()
            mixing[k, 2 * i : 2 * i + 2] = powers[k - 1 - i]
    covariance = linear_gaussian.STATE_VARIANCE * mixing @ mixing.T + torch.eye(steps, dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(mean.T, covariance)
    found = linear_gaussian.kalman(signals).sum(0)
    torch.testing.assert_close(found, joint.log_prob(signals.y[..., 0].T.double()), rtol=1e-9, atol=1e-9)


def test_the_system_is_that_of_the_equations() -> None:
    u = narendra_li.sines()[:40]
    x, found = np.zeros(2), []
    for value in u.numpy():
        found.append(x[0] / (1 + 0.5 * np.sin(x[1])) + x[1] / (1 + 0.5 * np.sin(x[0])))
        into = value**3 / (1 + value**2 + 0.5 * np.cos(x.sum()))
        x = np.array(
            [
                (x[0] / (1 + x[0] ** 2) + 1) * np.sin(x[1]),
                x[1] * np.cos(x[1]) + x[0] * np.exp(-(x @ x) / 8) + into,
            ]
        )
    np.testing.assert_allclose(narendra_li.simulate(u), found, rtol=1e-12)
    assert np.std(found) > 0.5


def test_h_reads_the_input_alone_and_training_leaves_it_so() -> None:
    above_one = Std("log_variance", clamp=(0.0, 10.0))
    size = narendra_li.HIDDEN
    model = VRNN(1, size, 2, cond_size=1, cond_networks=("cell",), std=above_one, likelihood=Gaussian(std=above_one))
    model = narendra_li.without_output_in_the_cell(model)
    y, u = torch.randn(6, 3, 1), torch.randn(6, 3, 1)
    learn(model, lambda _: Signals(y, u), Signals(y, u), TrainingCourse(4, every=2), 0)
    columns = model.get_parameter("rnn.weight_ih_l0")[:, : model.spec.phi_x_size]
    assert not columns.any()
    found = narendra_li.simulated(model, u[:, :1], 5, torch.Generator().manual_seed(0))
    assert found.mean.shape == (6, 5)
    assert (found.std >= 1).all()
    numbers = narendra_li.measured(model, Signals(y[:, :1], u[:, :1]), 0)
    assert numbers["NLL"] >= 0.5 * math.log(2 * math.pi)
    assert set(numbers) == set(narendra_li.STUDY.columns)


def test_what_scores_are_worth() -> None:
    train, test, labels = anomalies.tables(0)
    assert train.shape == test.shape == (4000, 5)
    assert np.count_nonzero(np.diff(labels) == 1) == anomalies.FAULTS
    assert labels.sum() == 8 + 32 * anomalies.LASTS
    assert set(anomalies.measured(labels + 0.0, labels).values()) == {1.0}
    worst = anomalies.measured(-labels + 1e-9 * np.random.default_rng(0).normal(size=4000), labels)
    assert worst["AUC-ROC"] == worst["faults found"] == 0
    assert set(anomalies.STUDY.columns) - worst.keys() == {"VUS-PR", "VUS-ROC", "affiliation F1"}
    smaller = {"updates": 2, "window": 16, "hidden_size": 4, "latent_size": 1}
    assert np.isfinite(anomalies.Detector(**smaller).fit(anomalies.pd.DataFrame(train[:200])).decision_scores_).all()


def test_what_scores_beside_a_fault_are_worth() -> None:
    pytest.importorskip("TSB_AD", reason="TSB-AD is not installed")
    _, _, labels = anomalies.tables(0)
    early = anomalies.measured_around(np.roll(labels, -3) + 0.0, labels)
    late = anomalies.measured_around(np.roll(labels, 60) + 0.0, labels)
    assert early.keys() | anomalies.measured(labels + 0.0, labels).keys() == set(anomalies.STUDY.columns)
    assert all(late[name] < early[name] - 0.1 for name in early)
    assert early["VUS-ROC"] > 0.9


def test_what_forecasts_are_worth() -> None:
    x = 1 + np.abs(np.random.default_rng(0).normal(size=(400, 5)))
    right = [np.stack([x[cut : cut + exchange.HORIZON]] * 3) for cut in exchange.cuts(400)]
    numbers = exchange.measured(x, right)
    assert numbers["CRPS-sum"] == pytest.approx(0, abs=1e-12)
    assert numbers["CRPS"] == pytest.approx(0, abs=1e-12)
    assert numbers["coverage of 0.9"] == 1
    off = exchange.measured(x, [samples + 0.1 for samples in right])
    assert off["CRPS-sum"] == pytest.approx(0.5 / x[400 - 150 :].sum(1).mean())
    walk = exchange.by_random_walk(x, 0)
    assert [each.shape for each in walk] == [(exchange.SAMPLES, exchange.HORIZON, 5)] * exchange.ROLLS


def test_a_study_is_recorded_and_shown(tmp_path: Path) -> None:
    def run(seed: int) -> Iterator[StudyResult]:
        for order, (model, error) in enumerate((("z first", 2.0), ("another", 1.0))):
            yield StudyResult(model, seed, {"error": error + seed}, {"order": order, "h": 3}, 1.0)

    study = Study("own", "A title", "Some words.", {"error": "lower", "nll": "lower"}, run, {"theirs": {"nll": 0.5}})
    asked(study, ["--results", str(tmp_path), "--seed", "0", "--seed", "1", "--seed", "4"])
    found = findings_in(tmp_path / "own")
    assert [(f.model, f.seed) for f in found] == [(m, s) for m in ("z first", "another") for s in (0, 1, 4)]
    text = (tmp_path / "own.md").read_text()
    assert text == page(study, found)
    assert "| theirs |  | 0.500 | published |" in text
    assert "| z first | **3.000** (2.000 to 6.000) |  | 3 |" in text
    assert "| another | 4 | 5.000 |  | 1 |" in text
    assert "| another | h 3 |" in text
    kept = json.loads((tmp_path / "own" / "another-4.json").read_text())
    assert kept["numbers"] == {"error": 5.0}
    assert {"processor", "versions", "commit", "date"} <= kept["machine"].keys()


def test_every_study_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(papers.evidence, "main", lambda study, given: seen.append((study.name, given)))
    for study in papers.STUDIES:
        papers.main([study.name, "--seed", "7"])
        assert seen[-1] == (study.name, ["--seed", "7"])
    assert len(seen) >= 4


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    study = Study(
        "own", "A title", "Some words.", {}, lambda seed: iter(()), packages=("numpy", "--no-deps no-such-package")
    )
    with pytest.raises(SystemExit, match="this study needs no-such-package: pip install --no-deps no-such-package"):
        asked(study, ["--results", str(tmp_path)])
