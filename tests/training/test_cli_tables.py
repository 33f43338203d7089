"""Tables on the command line: train, score, forecast, impute, from file to file, and what a person does wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from vrnn_fast import cli

pytest.importorskip("pandas", reason="the extra `tables` is not installed")
pytest.importorskip("sklearn", reason="the extra `tables` is not installed")

import pandas as pd

from vrnn_fast.tables import Detector, Forecaster, Imputer
from vrnn_fast.tables import files as table_files
from vrnn_fast.training import charts, table_options
from vrnn_fast.training.report import new_figure

SMALL = ("--updates", 40, "--window", 24, "--hidden_size", 12, "--latent_size", 2, "--num_particles", 8)
OWN = ("--id", "unit", "--time", "stamp", "--covariates", "day", "--threads", 1)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def sensors(rows: int = 120) -> Any:
    """Two pumps, a row an hour, with gaps."""
    chance, hours = np.random.default_rng(0), pd.date_range("2026-01-01", periods=rows, freq="h")
    wave = np.sin(2 * np.pi * np.arange(rows) / 24)
    parts = [
        pd.DataFrame(
            {
                "unit": unit,
                "stamp": hours,
                "day": np.where(hours.day_of_week < 5, "work", "rest"),
                "heat": 20 + 3 * wave + 0.1 * chance.normal(size=rows),
                "flow": 5 - wave + 0.1 * chance.normal(size=rows),
            }
        )
        for unit in ("p 1", "p 2")
    ]
    table = pd.concat(parts, ignore_index=True)
    table.loc[10:14, "flow"] = np.nan
    return table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sensors.csv, and a run that learnt it."""
    folder = tmp_path_factory.mktemp("tables")
    sensors().to_csv(folder / "sensors.csv", index=False)
    said = run("train", folder / "sensors.csv", "--run", folder / "run", *OWN, *SMALL)
    assert "update 40 of 40" in said
    assert "240 rows, 2 features: best validation" in said
    assert {p.name for p in (folder / "run").iterdir()} == {"best.safetensors", "config.toml", "curves.png"}
    return folder


@pytest.fixture
def fitted(place: Path) -> dict[str, Any]:
    """Arguments of an estimator in Python that learns the same."""
    return {
        "id": "unit", "time": "stamp", "covariates": ["day"], "updates": 40, "window": 24, "hidden_size": 12,
        "latent_size": 2, "num_particles": 8,
    }  # fmt: skip


def test_scores_are_those_of_python(place: Path, fitted: dict[str, Any]) -> None:
    table = table_files.read(place / "sensors.csv", "stamp")
    assert "5 of 240 rows above" in run(
        "score", place / "run", place / "sensors.csv", "--contamination", 0.02, "--threads", 1
    )
    found, detector = pd.read_csv(place / "run" / "scores.csv"), Detector(**fitted).fit(table)
    assert list(found.columns) == ["unit", "stamp", "score", "anomaly", "score of heat", "score of flow"]
    np.testing.assert_allclose(found["score"], detector.decision_scores_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["score of heat"], detector.explain(table)["heat"], rtol=1e-5, atol=1e-5)
    assert found["score of flow"].isna().sum() == 5
    again = Detector.load(place / "run", contamination=0.02)
    np.testing.assert_array_equal(again.labels_, found["anomaly"])
    np.testing.assert_array_equal(again.decision_function(table), again.decision_scores_)
    assert imread(place / "run" / "scores.png").std() > 0.01


def test_forecasts_are_those_of_python(place: Path, fitted: dict[str, Any], tmp_path: Path) -> None:
    later = sensors(144).query("stamp >= '2026-01-06'")[["unit", "stamp", "day"]]
    later.to_parquet(tmp_path / "later.parquet")
    asked = ("--future", tmp_path / "later.parquet", "--horizon", 6, "--out", tmp_path / "new" / "f.parquet")
    quantiles = ("--quantile", 0.9, "--quantile", 0.1, "--samples", 50, "--threads", 1)
    assert "6 steps of 2 series; f.parquet and f.png" in run(
        "forecast", place / "run", place / "sensors.csv", *asked, *quantiles
    )
    found = pd.read_parquet(tmp_path / "new" / "f.parquet")
    assert list(found.columns) == ["unit", "stamp", "feature", "mean", "q0.1", "q0.9"]
    table = table_files.read(place / "sensors.csv", "stamp")
    forecaster = Forecaster(horizon=6, quantiles=(0.1, 0.9), num_samples=50, **fitted).fit(table)
    expected = forecaster.predict(table, later)
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-5)
    assert imread(tmp_path / "new" / "f.png").std() > 0.01


def test_what_is_filled_is_that_of_python(place: Path, fitted: dict[str, Any]) -> None:
    asked = ("--smoothed", "--out", place / "whole.csv", "--threads", 1)
    assert "5 gaps filled" in run("impute", place / "run", place / "sensors.csv", *asked)
    table = table_files.read(place / "sensors.csv", "stamp")
    expected = Imputer(smoothed=True, **fitted).fit(table).transform(table)
    pd.testing.assert_frame_equal(table_files.read(place / "whole.csv", "stamp"), expected, rtol=1e-5)
    assert imread(place / "whole.png").std() > 0.01


def test_a_run_keeps_the_file_that_repeats_it(place: Path) -> None:
    said = run("train", "--config", place / "run" / "config.toml", "--run", place / "again", "--updates", 2)
    assert "update 2 of 2" in said
    assert Detector.load(place / "again").covariates == ["day"]


@pytest.mark.parametrize(
    ("shares", "named"), [((0.05, 0.25, 0.5, 0.75, 0.95), ["0.05 to 0.95", "0.25 to 0.75", "0.5"]), ((), ["mean"])]
)
def test_a_fan_names_its_bands(shares: Any, named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(charts, "new_figure", lambda *size: drawn.append(new_figure(*size)) or drawn[0])
    past, later, ends = np.arange(9), np.arange(9, 12), np.ones((len(shares), 3))
    fan = charts.Fan("heat", past, past * 1.0, later, shares, ends, np.ones(3))
    charts.fans([fan, fan._replace(title="flow")], tmp_path / "fan.png")
    legend, *others = (axes.get_legend() for axes in drawn[0].axes)
    assert [text.get_text() for text in legend.get_texts()] == named
    assert others == [None]


def test_help_says_what_each_option_is() -> None:
    for action in table_options._parser()._actions:
        assert action.help, f"--{action.dest} has no words"


def test_any_estimator_is_saved_and_asked_again(tmp_path: Path, fitted: dict[str, Any]) -> None:
    table = sensors(48)
    Imputer(**{**fitted, "updates": 2, "likelihood": "student"}).fit(table).save(tmp_path / "run")
    again = Imputer.load(tmp_path / "run")
    assert again.likelihood == "student"
    assert again.get_params()["updates"] == 2
    other = Forecaster.load(tmp_path / "run", horizon=3)
    assert (other.horizon, other.num_samples, other.updates) == (3, 200, 2)
    with pytest.raises(ValueError, match=r"id must be that of the model in .*run, which has learnt: leave it out"):
        Forecaster.load(tmp_path / "run", id="unit")
    with pytest.raises(ValueError, match="keeps no scores: fit and save a Detector"):
        Detector.load(tmp_path / "run")
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        Imputer.load(tmp_path / "run", depth=3)
    for kind, wrong in (("backend", "none"), ("device", "mars")):
        with pytest.raises(ValueError, match=f"{kind} must be one"):
            Imputer.load(tmp_path / "run", **{kind: wrong})


def error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["vrnn-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_is_wrong_is_said_in_one_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(change: Any, name: str = "wrong.csv") -> Path:
        change(sensors(48)).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    sensors(48).rename(columns={"unit": "score"}).to_csv(place / "named.csv", index=False)
    named = ("--id", "score", *OWN[2:], "--updates", 1, "--window", 16)
    run("train", place / "named.csv", "--run", place / "named", *named)
    sensors(48).rename(columns={"unit": "q0.5"}).to_csv(place / "quantile.csv", index=False)
    named = ("--id", "q0.5", *OWN[2:], "--updates", 1, "--window", 16)
    run("train", place / "quantile.csv", "--run", place / "quantile", *named)
    learnt, table, new = place / "run", place / "sensors.csv", ("--run", tmp_path / "new")
    (tmp_path / "nothing.csv").write_text("")
    sensors(48).to_csv(tmp_path / "index.csv")
    (tmp_path / "file").write_text("")
    for said, arguments in {
        "the table has no column 'flow'": ("score", learnt, wrong(lambda t: t.drop(columns="flow"))),
        "the table has no column 'unit'": ("impute", learnt, wrong(lambda t: t.drop(columns="unit"), "b.csv")),
        "a second time in row 48": ("score", learnt, wrong(lambda t: t.assign(unit="p 1"), "c.csv")),
        "from 2026-01-01 00:00:00 to 2026-01-01 03:00:00, where the table that the model was fitted on has steps of "
        "0 days 01:00:00": ("score", learnt, wrong(lambda t: t[::3], "d.csv")),
        "column 'flow' holds ": ("score", learnt, wrong(lambda t: t.assign(flow="much"), "e.csv")),
        "column 'day' is 'feast' in row 0": ("score", learnt, wrong(lambda t: t.assign(day="feast"), "f.csv")),
        "column 'stamp' is 'noon' in row": ("score", learnt, wrong(lambda t: t.assign(stamp="noon"), "g.csv")),
        "future must be given": ("forecast", learnt, table),
        "no table at": ("score", learnt, tmp_path / "none.csv"),
        "nothing.csv is not a readable table": ("score", learnt, tmp_path / "nothing.csv"),
        "a table is a file whose name ends in .csv or .parquet": ("score", learnt, tmp_path / "file"),
        "or .parquet, got scores.txt": ("score", learnt, table, "--out", "scores.txt"),
        "no checkpoint at": ("score", tmp_path / "norun", table),
        "contamination must be a number from 0 to 1": ("score", learnt, table, "--contamination", 2),
        "threshold must be one of quantile, peaks": ("score", learnt, table, "--threshold", "no"),
        "quantiles must be a number from 0 to 1": ("forecast", learnt, table, "--quantile", 2),
        "device must be one that torch has here": ("impute", learnt, table, "--device", "mars"),
        "was learnt from a table: score, forecast and impute take it": ("eval", learnt),
        "holds a run already": ("train", table, "--run", learnt),
        "run holds a run already: name another": ("train", "chorales", "--run", learnt),
        "--resume takes no run on a table, which is learnt in one go": ("train", "--resume", learnt),
        "one go: learn it anew into another --run": ("train", table, f"--resume={learnt}"),
        "the table has no column 'nope'": ("train", table, "--id", "nope", *new),
        "and x must be numbers: name it as id, time or covariate, or leave it out": ("train", table, *new),
        "unrecognized arguments: --epochs": ("train", table, "--epochs", 3, *new),
        "a table of scores has another column 'score'": ("score", place / "named", place / "named.csv"),
        "name the table to learn from": ("train", "--id", "unit", *new),
        "or .parquet, got chorales": ("train", "chorales", "--id", "unit", *new),
        "learning_rate must be a number > 0": ("train", table, *OWN, "--learning_rate", 0, *new),
        "contamination must be at most 0.02": (
            "train", table, *OWN, *SMALL, "--threshold", "peaks", "--contamination", 0.05, *new
        ),
        "likelihood must be one of gaussian, student, got 'poisson'; or name the class of another one": (
            "train", table, *OWN, "--likelihood", "poisson", *new
        ),
        "column 'stamp' is '13.01.2026 05:00' in row 0, which is no time as ISO 8601 writes it, such as 2026-01-31": (
            "score", learnt, wrong(lambda t: t.assign(stamp="13.01.2026 05:00"), "h.csv")
        ),
        "column 'stamp' is '01.02.2026 05:00' in row 0, which is no time": (
            "score", learnt, wrong(lambda t: t.assign(stamp="01.02.2026 05:00"), "i.csv")
        ),
        "column 'heat' is 'n/a?' in row 3, and x must be numbers": (
            "score", learnt, wrong(lambda t: t.assign(heat=t["heat"].astype(str).mask(t.index == 3, "n/a?")), "j.csv")
        ),
        "index.csv has a column without a name, as pandas writes the numbers of rows": (
            "train", tmp_path / "index.csv", *OWN, *new
        ),
        "a forecast has another column 'q0.5': rename": ("forecast", place / "quantile", place / "quantile.csv"),
    }.items():  # fmt: skip
        assert said in error(monkeypatch, capsys, *arguments)
    assert not (tmp_path / "new").exists()


def test_one_process_learns_a_table_and_the_first_says_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else is wrong, for every process would say it."""
    asked = ("train", place / "sensors.csv", "--resume", "--run", tmp_path / "new")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "a table is learnt by one process: start train without torchrun" in error(monkeypatch, capsys, *asked)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "new").exists()


def test_a_run_on_sequences_is_no_run_on_a_table(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = {f"piece{i}": np.random.default_rng(i).random((5, 3)) < 0.4 for i in range(20)}
    np.savez(tmp_path / "notes.npz", **notes)
    small = ("--model.hidden_size", 4, "--model.latent_size", 2, "--epochs", 1, "--threads", 1)
    run("train", tmp_path / "notes.npz", "--run", tmp_path / "run", *small)
    said = error(monkeypatch, capsys, "score", tmp_path / "run", place / "sensors.csv")
    assert "was not learnt from a table: eval and sample take it" in said
    said = error(monkeypatch, capsys, "train", place / "sensors.csv", *OWN, "--run", tmp_path / "run")
    assert "holds a run already: name another --run" in said


def test_times_of_other_zones_are_those_of_utc(tmp_path: Path) -> None:
    """As a clock writes them that goes from summer to winter time."""
    stamps = [f"2026-10-25T0{h}:00:00+0{z}:00" for h, z in ((1, 2), (2, 2), (2, 1), (3, 1))]
    pd.DataFrame({"stamp": stamps, "a": range(4)}).to_csv(tmp_path / "t.csv", index=False)
    read = table_files.read(tmp_path / "t.csv", "stamp")
    assert (read["stamp"].diff().dropna() == pd.Timedelta(hours=1)).all()


def test_a_table_without_ids_and_times_will_do(tmp_path: Path) -> None:
    given = sensors(48)[["heat", "flow"]].assign(on=np.resize(np.array([True, False, None], dtype=object), 96))
    given.to_csv(tmp_path / "t.csv", index=False)
    run("train", tmp_path / "t.csv", "--run", tmp_path / "run", *SMALL, "--threads", 1)
    for command in ("score", "forecast", "impute"):
        run(command, tmp_path / "run", tmp_path / "t.csv", "--threads", 1)
    assert list(pd.read_csv(tmp_path / "run" / "scores.csv").columns[:2]) == ["score", "anomaly"]
    assert pd.read_csv(tmp_path / "run" / "forecast.csv")["time"].min() == 96
    assert pd.read_csv(tmp_path / "run" / "imputed.csv").notna().all().all()
