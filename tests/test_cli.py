"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import vrnn_fast
from vrnn_fast import backends, cli
from vrnn_fast.data import chorales
from vrnn_fast.training import demo
from vrnn_fast.training.checkpoint import load
from vrnn_fast.training.trainer import BEST, LAST

SMALL = ("--hidden", "6", "--width", "7", "--latent", "2", "--batch-size", "4", "--threads", "1")


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def _error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["vrnn-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    return capsys.readouterr().err


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "notes.npz"
    np.savez(path, **{f"piece{i}": generator.random((4 + i % 7, 5)) < 0.4 for i in range(40)})
    return path


def test_train_eval_sample(notes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = _run("train", notes, "--run", run, "--epochs", 3, "--tensorboard", *SMALL)
    assert "best validation bound" in output
    assert {BEST, LAST, "curves.png", "tensorboard"} == {p.name for p in run.iterdir()}
    assert list((run / "tensorboard").iterdir())

    output = _run("eval", run)
    assert "nats per step = nll" in output
    assert "independent features" in output
    assert _run("eval", run, "--part", "valid") == _run("eval", run / BEST, "--part", "valid", "--data", notes)

    output = _run("sample", run, "--steps", 9, "--count", 3, "--prefix", 4, "--out", tmp_path / "samples")
    assert "samples.npz, samples.png written" in output
    with np.load(tmp_path / "samples" / "samples.npz") as samples:
        assert {samples[name].shape for name in samples.files} == {(13, 5)}
        assert np.isin(samples["sample_1"], (0, 1)).all()


def test_sound(tmp_path: Path) -> None:
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(i).normal(scale=0.1, size=2000), 8000)
    _run("train", tmp_path, "--frame", 50, "--max-steps", 10, "--epochs", 2, "--run", tmp_path / "run", *SMALL)
    output = _run("sample", tmp_path / "run", "--steps", 20, "--count", 1)
    assert "sample_1.wav" in output
    samples, rate = soundfile.read(tmp_path / "run" / "sample_1.wav")
    assert (len(samples), rate) == (1000, 8000)
    assert 0.02 < samples.std() < 0.5, "the sound that was learnt has a deviation of 0.1"


def test_ctrl_c_saves_and_the_run_goes_on_exactly(notes: Path, tmp_path: Path) -> None:
    """A real signal to a real process; the resumed run ends with the same bits as one that was left alone."""
    command = [sys.executable, "-c", "from vrnn_fast.cli import main; main()", "train"]
    options = [str(notes), "--epochs", "60", *SMALL]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, *options, "--run", str(stopped)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "500"},
    )
    assert process.stdout is not None
    assert "epoch   6/60" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert f"saved to {stopped / LAST}" in output
    assert f"go on with: vrnn-fast train --resume {stopped}" in output
    assert len(load(stopped / LAST)[1]["history"]) < 60

    assert "best validation bound" in _run("train", "--resume", stopped)
    _run("train", *options, "--run", whole)
    tensors = [load(run / LAST)[0] for run in (stopped, whole)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all((tensors[0][name] == tensors[1][name]).all() for name in tensors[0])


def test_a_run_that_diverges_fails(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    error = _error(
        monkeypatch, capsys, "train", notes, "--run", run, "--epochs", 1, "--lr", 1e30, *SMALL, "--tensorboard"
    )
    assert "try a learning rate (--lr) below 1e+30" in error
    assert "no model is kept yet" in error
    assert error.count("\n") == 1
    assert [path.name for path in run.iterdir()] == ["tensorboard"]


def test_a_run_is_not_overwritten(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", notes, "--run", tmp_path / "run", "--epochs", 1, *SMALL)
    _run(*arguments)
    before = (tmp_path / "run" / LAST).read_bytes()
    assert "holds a run already: go on with --resume" in _error(monkeypatch, capsys, *arguments)
    assert (tmp_path / "run" / LAST).read_bytes() == before
    error = _error(monkeypatch, capsys, "train", "--resume", tmp_path / "run", "--epochs", 9, "--lr", 1)
    assert "--resume takes everything from the run: leave out epochs, learning_rate" in error


def test_mistakes_end_in_one_line(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    _run("train", notes, "--run", tmp_path / "run", "--epochs", 1, *SMALL)
    np.save(tmp_path / "wide.npy", np.zeros((10, 4, 7)))
    for message, *arguments in (
        ("holds no .wav and no .npy file", "train", tmp_path / "empty"),
        ("no such data: nowhere", "train", "nowhere"),
        ("cannot be written", "train", notes, "--run", notes / "run"),
        ("epochs must be at least 1, got 0", "train", notes, "--epochs", 0),
        ("no checkpoint at", "train", "--resume", tmp_path / "empty"),
        ("no checkpoint at", "eval", tmp_path / "empty"),
        ("is not a safetensors file: found a zip archive", "sample", notes),
        ("has 7 features per step, the run's model 5", "eval", tmp_path / "run", "--data", tmp_path / "wide.npy"),
        ("--prefix must be at most", "sample", tmp_path / "run", "--prefix", 99),
        ("backend must be one of", "train", notes, "--run", tmp_path / "other", "--backend", "abacus"),
    ):
        error = _error(monkeypatch, capsys, *arguments)
        assert message in error
        assert error.count("\n") == 1


def test_info() -> None:
    output = _run("info")
    assert "torch" in output
    assert "FMA peak" in output or "not built" in output
    for name, backend in backends().items():
        assert f"executor {name}" in output
        assert f"verified: {' '.join(backend.verified.split())}" in output


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("bwv253.mxl", "bwv254.mxl", "bwv255.mxl", "bwv256.mxl", "bwv257.mxl", "bwv258.mxl", "bwv260.mxl")
    few = [score for score in chorales.scores() if score.name in (*names, "bwv1.6.mxl", "bwv10.7.mxl")]
    monkeypatch.setattr(chorales, "scores", lambda: few)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(demo.PHASES, "install=1.5,build=20")
    folder = tmp_path / "run"
    output = _run("demo", "--run", folder, "--epochs", 2)
    assert "test bound" in output
    assert "independent notes" in output

    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["test_nats_per_step"] < 100
    assert summary["baseline_nats_per_step"] > 0
    assert summary["frames_per_second"] > 0
    assert (summary["phases"]["install"], summary["phases"]["build"]) == (1.5, 20)
    assert {"data", "train", "test", "report"} <= summary["phases"].keys()
    assert summary["train_seconds"] == summary["phases"]["train"]
    assert {"python", "vrnn-fast", "torch", "numpy"} == summary["versions"].keys()
    if summary["executor"] == "reference":
        assert summary["speedup_vs_reference"] is None
        assert "ran on the reference executor" in output
    else:
        assert summary["disagreement"] is None
        assert summary["speedup_vs_reference"] > 0
    assert {p.name for p in folder.iterdir()} == {
        "summary.json", "curves.png", "samples.png", "sample.mid", BEST, LAST,
    }  # fmt: skip


def test_importing_the_core_takes_no_extra() -> None:
    """Every module of the package's root but the command line, and the trainer."""
    extras = ("typer", "rich", "matplotlib", "music21", "soundfile", "safetensors", "tensorboard")
    roots = [module.name for module in pkgutil.iter_modules(vrnn_fast.__path__)]
    core = [f"vrnn_fast.{name}" for name in roots if name != "cli" and not name.startswith("_")]
    modules = ", ".join([*core, "vrnn_fast.training.trainer"])
    code = f"import sys, {modules}; print([name for name in {extras} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
