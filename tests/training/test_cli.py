"""The command line, run as a user runs it."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import vrnn_fast
from vrnn_fast import VRNN, backends, cli
from vrnn_fast.data import chorales
from vrnn_fast.executors import verification
from vrnn_fast.executors.verification import Verdict
from vrnn_fast.training import demo
from vrnn_fast.training.checkpoint import FOLDER, latest
from vrnn_fast.training.lock import LOCK
from vrnn_fast.training.options import CONFIG, build, parse
from vrnn_fast.training.trainer import BEST, Step, Trainer

SMALL = ("--model.hidden_size", "6", "--model.latent_size", "2", "--batch_size", "4", "--threads", "1")


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
    assert {BEST, CONFIG, FOLDER, "curves.png", "tensorboard"} == {p.name for p in run.iterdir()}
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


@pytest.fixture
def walks(tmp_path: Path) -> Path:
    """Real features far from mean 0 and deviation 1, in named parts."""
    generator = np.random.default_rng(0)
    path = tmp_path / "walks.npz"
    parts = {"train": 20, "val": 5, "test": 5}
    np.savez(path, **{f"{p}{i}": generator.normal(3, 50, (5 + i % 7, 5)) for p, n in parts.items() for i in range(n)})
    return path


def test_other_data_is_evaluated_in_the_units_of_the_run(walks: Path, tmp_path: Path) -> None:
    """Its own training part would standardise it to something else; the part that is evaluated is all it takes."""
    run = tmp_path / "run"
    _run("train", walks, "--run", run, "--data.likelihood", "gaussian", "--epochs", 1, *SMALL)
    own = _run("eval", run)
    with np.load(walks) as arrays:
        test = {name: arrays[name] for name in arrays.files if name.startswith("test")}
        louder = {name: arrays[name] * (2 if name.startswith("train") else 1) for name in arrays.files}
    np.savez(tmp_path / "test.npz", **test)
    np.savez(tmp_path / "louder.npz", **louder)
    for other in (walks, tmp_path / "test.npz", tmp_path / "louder.npz"):
        found = _run("eval", run, "--data", other)
        assert "independent features" not in found
        assert own.startswith(f"{found} ")


def test_other_sound_is_of_the_same_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, rate in (("learnt", 8000), ("other", 16000)):
        (tmp_path / folder).mkdir()
        for i in range(4):
            sound = np.random.default_rng(i).normal(scale=0.1, size=500)
            soundfile.write(tmp_path / folder / f"{i}.wav", sound, rate)
    _run("train", tmp_path / "learnt", "--data.frame", 50, "--epochs", 1, "--run", tmp_path / "run", *SMALL)
    error = _error(monkeypatch, capsys, "eval", tmp_path / "run", "--data", tmp_path / "other")
    assert "has 16000 samples per second, expected 8000" in error


def test_a_pack_trains_as_what_it_was_made_of(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that another took the place of is not gone on with."""
    pack, run = tmp_path / "pack", tmp_path / "run"
    assert "5 features, bernoulli" in _run("pack", notes, pack)
    options = ("--epochs", 2, *SMALL, "--segment", 3, "--workers", 1)
    ours = _run("train", pack, "--run", run, *options)
    theirs = _run("train", notes, "--run", tmp_path / "other", *options)
    assert (
        ours.partition(" best validation")[2].partition(";")[0]
        == theirs.partition(" best validation")[2].partition(";")[0]
    )
    assert _run("eval", run) == _run("eval", tmp_path / "other")
    assert "4 sequences" not in _run("sample", run, "--steps", 3, "--prefix", 2)
    np.savez(notes, **{f"piece{i}": np.eye(5) for i in range(10)})
    for file in pack.iterdir():
        file.unlink()
    _run("pack", notes, pack)
    error = _error(monkeypatch, capsys, "train", "--resume", run)
    assert f"the data '{pack}' is not what the run of" in error
    (pack / "values.npy").unlink()
    assert f"{pack / 'values.npy'} is not a readable .npy file" in _error(monkeypatch, capsys, "train", "--resume", run)


@pytest.mark.parametrize("command", [("eval",), ("sample", "--prefix", 2), ("train", "--resume")])
def test_data_that_has_changed(
    notes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[object, ...],
) -> None:
    _run("train", notes, "--run", tmp_path / "run", "--epochs", 1, *SMALL)
    np.savez(notes, **{f"piece{i}": np.zeros((5, 5)) for i in range(10)})
    error = _error(monkeypatch, capsys, *command, tmp_path / "run")
    assert "notes.npz' is not what the run of" in error
    assert error.count("\n") == 1


def test_a_run_goes_on_from_its_checkpoint(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    _run("train", notes, "--run", run, "--epochs", 1, *SMALL)
    assert "saved in" in _run("train", "--resume", latest(run)[0])
    error = _error(monkeypatch, capsys, "train", "--resume", run / BEST)
    assert f"no checkpoint at {run / BEST}" in error


def test_a_seed_has_63_bits(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    _run("train", notes, "--run", run, "--epochs", 1, "--seed", 2**63 - 1, *SMALL)
    _run("sample", run, "--seed", 2**63 - 1)
    result = CliRunner().invoke(cli.app, ["sample", str(run), "--seed", str(2**64)])
    assert result.exit_code == 2
    assert "--seed" in result.output
    error = _error(monkeypatch, capsys, "train", notes, "--run", tmp_path / "other", "--seed", 2**64)
    assert "seed must be an int from 0 to 9223372036854775807" in error


def test_a_run_repeats_another(notes: Path, tmp_path: Path) -> None:
    """By the file that is kept in it, and what is said beside that goes before."""
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    model = ("--model.phi_x", "[7, 5]", "--model.activation", '{"phi_x": "tanh"}', "--model.num_layers", "2")
    _run("train", notes, "--run", first, "--epochs", 2, "--segment", 3, *model, *SMALL)
    _run("train", "--config", first / CONFIG, "--run", second)
    _run("train", "--config", first / CONFIG, "--run", other, "--seed", 1)
    curves = [[e.valid.nll for e in Trainer.resume(run).history] for run in (first, second, other)]
    assert curves[0] == curves[1] != curves[2]
    assert (first / CONFIG).read_text() == (second / CONFIG).read_text()
    assert Trainer.resume(second).model.spec.activations == (("phi_x", "tanh"),)
    assert [layer.outputs for layer in Trainer.resume(second).model.spec.network("phi_x").hidden] == [7, 5]


def test_every_argument_of_the_model_may_be_told() -> None:
    """But those that the data and the machine decide."""
    decided = {"self", "input_size", "backend", "batch_first", "device", "dtype"}
    assert set(parse([]).model) == set(inspect.signature(VRNN.__init__).parameters) - decided
    mixture = ["--model.likelihood", "GaussianMixture", "--model.likelihood.components", "3"]
    built = build(parse(mixture).model, 5, "gaussian")
    assert str(built.likelihood).startswith("GaussianMixture(components=3")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--nothing", "1"], "--nothing"),
        (["--model.cell", "lstn"], "model.cell"),
        (["--batch_size", "many"], "batch_size"),
        (["--precision", "float8"], "precision"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_options_that_make_no_sense(
    notes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    words: str,
) -> None:
    error = _error(monkeypatch, capsys, "train", notes, "--run", tmp_path / "run", *given)
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_lists_what_a_run_may_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(cli.app, ["train", "--help"])
    assert result.exit_code == 0
    for option in ("--model.hidden_size", "--segment", "--data.frame", "--config", "width of the recurrent state"):
        assert option in result.output


def test_sound(tmp_path: Path) -> None:
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(i).normal(scale=0.1, size=2000), 8000)
    _run(
        "train", tmp_path, "--data.frame", 50, "--data.max_steps", 10, "--epochs", 2, "--run", tmp_path / "run", *SMALL
    )
    output = _run("sample", tmp_path / "run", "--steps", 20, "--count", 1)
    assert "sample_1.wav" in output
    samples, rate = soundfile.read(tmp_path / "run" / "sample_1.wav")
    assert (len(samples), rate) == (1000, 8000)
    assert 0.02 < samples.std() < 0.5, "the sound that was learnt has a deviation of 0.1"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _training(*options: object) -> subprocess.Popen[str]:
    """A real process that has trained a few epochs of sixty."""
    command = [sys.executable, "-c", "from vrnn_fast.cli import main; main()", "train", *map(str, options)]
    environment = os.environ | {"COLUMNS": "500"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("peak: ")
    assert "epoch   6/60" in process.stdout.readline()
    return process


def test_ctrl_c_saves_and_the_run_goes_on_exactly(notes: Path, tmp_path: Path) -> None:
    """A real signal to a real process; the resumed run ends with the same bits as one that was left alone."""
    options = [str(notes), "--epochs", "60", *SMALL]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = _training(*options, "--run", stopped)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert f"saved to {latest(stopped)[0]}" in output
    assert f"go on with: vrnn-fast train --resume {stopped}" in output
    assert len(latest(stopped)[1]["history"]) < 60

    assert "best validation bound" in _run("train", "--resume", stopped)
    _run("train", *options, "--run", whole)
    resumed, other = (Trainer.resume(run) for run in (stopped, whole))
    assert [e.valid.nll for e in resumed.history] == [e.valid.nll for e in other.history]
    for ours, theirs in zip(resumed.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        moments, others = (t.optimizer.state[p] for t, p in ((resumed, ours), (other, theirs)))
        assert all(torch.equal(moments[key], others[key]) for key in ("exp_avg", "exp_avg_sq", "step"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_save_as_ctrl_c_does(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    _send_at_step_5(monkeypatch, sent)
    with _answered(sent, signal.SIG_DFL):  # tests may run under nohup
        result = CliRunner().invoke(cli.app, ["train", str(notes), "--run", str(tmp_path / "run"), *SMALL])
        assert signal.getsignal(sent) is signal.SIG_DFL
    assert result.exit_code == cli.INTERRUPTED, result.output
    assert "go on with: vrnn-fast train --resume" in result.output
    assert latest(tmp_path / "run")[1]["step"] == 6


def test_nohup_keeps_its_promise(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _send_at_step_5(monkeypatch, signal.SIGHUP)
    with _answered(signal.SIGHUP, signal.SIG_IGN):
        assert "best validation bound" in _run("train", notes, "--run", tmp_path / "run", "--epochs", 2, *SMALL)


def _send_at_step_5(monkeypatch: pytest.MonkeyPatch, sent: signal.Signals) -> None:
    step = Trainer._step

    def interrupted(self: Trainer, *arguments: Any) -> Step:
        if self.step == 5:
            os.kill(os.getpid(), sent)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", interrupted)


@contextmanager
def _answered(sent: signal.Signals, handler: signal.Handlers) -> Iterator[None]:
    before = signal.signal(sent, handler)
    try:
        yield
    finally:
        signal.signal(sent, before)


def test_one_process_at_a_time(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one is told of the first; what a killed one leaves behind is in nobody's way."""
    run = tmp_path / "run"
    _run("train", notes, "--run", run, "--epochs", 1, *SMALL)
    code = (
        "import sys, time; from pathlib import Path; from vrnn_fast.training.lock import alone\n"
        "with alone(Path(sys.argv[1])): print(1); time.sleep(60)"
    )
    before = _contents(run)
    with subprocess.Popen([sys.executable, "-u", "-c", code, str(run)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        owner = f"process {process.pid} on {socket.gethostname()}"
        commands = (("--resume", run), ("--resume", latest(run)[0]), (notes, "--run", run))
        errors = [_error(monkeypatch, capsys, "train", *command) for command in commands]
        process.kill()
    assert errors == [f"error: {run} is being trained by {owner}: stop that first, or wait\n"] * 3
    assert _contents(run) == before | {LOCK: owner.encode()}
    assert "best validation bound" in _run("train", "--resume", run)
    assert {path.name for path in run.iterdir()} == {BEST, CONFIG, FOLDER, "curves.png"}


def test_a_run_that_diverges_fails(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    error = _error(
        monkeypatch,
        capsys,
        "train",
        notes,
        "--run",
        run,
        "--epochs",
        1,
        "--learning_rate",
        1e30,
        *SMALL,
        "--tensorboard",
    )
    assert "try a learning_rate below 1e+30" in error
    assert "no model is kept yet" in error
    assert error.count("\n") == 1
    assert {path.name for path in run.iterdir()} == {CONFIG, "tensorboard"}


def test_a_run_is_not_overwritten(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", notes, "--run", tmp_path / "run", "--epochs", 1, *SMALL)
    _run(*arguments)
    before = _contents(tmp_path / "run")
    assert "holds a run already: go on with --resume" in _error(monkeypatch, capsys, *arguments)
    assert _contents(tmp_path / "run") == before
    error = _error(monkeypatch, capsys, "train", "--resume", tmp_path / "run", "--epochs", 9, "--learning_rate", 1)
    assert "--resume takes everything from the run: leave out epochs, learning_rate" in error


def test_mistakes_end_in_one_line(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    _run("train", notes, "--run", tmp_path / "run", "--epochs", 1, *SMALL)
    np.save(tmp_path / "wide.npy", np.zeros((10, 4, 7)))
    np.savez_compressed(tmp_path / "tiny.npz", test=np.zeros((10, 40, 50)))
    soundfile.write(tmp_path / "a.wav", np.zeros(500), 8000)
    for message, *arguments in (
        ("holds no file of .wav, ", "train", tmp_path / "empty"),
        ("holds no file of .wav, ", "pack", tmp_path / "empty", tmp_path / "pack"),
        ("no such data: nowhere", "train", "nowhere"),
        ("cannot be written", "train", notes, "--run", notes / "run"),
        ("tiny.npz expands to", "train", tmp_path / "tiny.npz", "--data.max_gigabytes", 1e-9),
        ("tiny.npz expands to", "eval", tmp_path / "run", "--data", tmp_path / "tiny.npz", "--max-gigabytes", 1e-9),
        ("epochs must be a positive int, got 0", "train", notes, "--epochs", 0),
        ("no checkpoint at", "train", "--resume", tmp_path / "empty"),
        ("no checkpoint at", "eval", tmp_path / "empty"),
        ("is not a safetensors file: found a zip archive", "sample", notes),
        ("has 7 features per step, the run's model 5", "eval", tmp_path / "run", "--data", tmp_path / "wide.npy"),
        ("holds sound: likelihood must be 'gaussian', got 'bernoulli'", "eval", tmp_path / "run", "--data", tmp_path),
        ("--temperature must be finite, got inf", "sample", tmp_path / "run", "--temperature", "inf"),
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
        assert f"backend {name}" in output
        assert f"verified: {' '.join(backend.verified.split())}" in output


def test_info_of_a_build_that_this_processor_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    if not backends()["cpu"].available:
        pytest.skip("the extension is not built")
    monkeypatch.setenv("VRNN_FAST_ISA", "avx9")
    assert "backend cpu not available: VRNN_FAST_ISA" in _run("info")


def test_info_needs_no_extra() -> None:
    """It is the tool for a broken installation."""
    code = (
        "import importlib.util as u, sys; there = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name in ('typer', 'rich', 'safetensors') else there(name)\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('typer', 'rich', 'safetensors'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent()); sys.argv = ['vrnn-fast', *sys.argv[1:]]\n"
        "from vrnn_fast.cli import main; main()"
    )
    info, train = (
        subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=False)
        for word in ("info", "train")
    )
    assert info.returncode == 0, info.stderr
    assert "backend reference: available" in info.stdout
    assert train.returncode == 1
    assert "pip install 'vrnn-fast[train]'" in train.stderr


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
    if summary["backend"] == "reference":
        assert summary["speedup_vs_reference"] is None
        assert "ran on the reference backend" in output
    else:
        assert summary["disagreement"] is None
        assert summary["speedup_vs_reference"] > 0
    assert {p.name for p in folder.iterdir()} == {
        "summary.json", "curves.png", "samples.png", "sample.mid", BEST, FOLDER,
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


def test_verify_shows_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons: list[str | None] = [None, "gru: z is off"]

    def verified(name: str, device: torch.device, *, again: bool) -> Verdict:
        assert again
        return Verdict(name, {"device": str(device)}, reasons.pop(0), {"gru": 0.25}, {"lstm": "too wide"})

    monkeypatch.setattr(verification, "verified", verified)
    record = tmp_path / "record.json"
    said = _run("verify", "--device", "cpu", "--record", record)
    assert "cpu on cpu" in said
    assert "0.250" in said
    assert "refused: too wide" in said
    assert "passed" in said
    assert json.loads(record.read_text())[0]["shares"] == {"gru": 0.25}
    failed = CliRunner().invoke(cli.app, ["verify", "--device", "cpu", "--record", str(record)])
    assert failed.exit_code == 1
    assert "failed: gru: z is off" in failed.output
    for wrong, words in (
        (("--device", "gpu"), "--device gpu: "),
        (("--backend", "foo"), "--backend must be one of cpu, "),
        (("--device", "meta"), "no backend can run on meta: none is made for it"),
    ):
        assert words in _error(monkeypatch, capsys, "verify", *wrong)
