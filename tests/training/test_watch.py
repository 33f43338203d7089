"""A run as it is seen: the table, lines without a terminal, and loggers, two of which are stand-ins of the same
interface: neither Weights & Biases nor MLflow is asked here."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from setuptools.config.pyprojecttoml import load_file

from vrnn_fast.data import Dataset, Source
from vrnn_fast.training import loggers, meter, peak, table
from vrnn_fast.training.config import RunError, TrainConfig
from vrnn_fast.training.options import LOGGERS
from vrnn_fast.training.peak import Peak, peak_of
from vrnn_fast.training.ranks import Ranks
from vrnn_fast.training.trainer import Trainer
from vrnn_fast.training.watch import watch

MODEL: dict[str, Any] = {"hidden_size": 6, "latent_size": 2}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Three epochs of three steps, on a device of a known peak."""
    monkeypatch.setattr(meter, "peak_of", lambda *_: Peak(1e12, "1,000 GFLOP/s, said the test"))
    generator = torch.Generator().manual_seed(0)
    parts = ((torch.rand(5, 4, generator=generator) < 0.3).float() for _ in range(12))
    x = tuple(parts)
    config = TrainConfig(epochs=3, batch_size=3, patience=0)
    return Trainer(Source(), MODEL, config, Dataset("dots", "bernoulli", x[:8], x[8:10], x[10:]), tmp_path / "run")


def seen(trainer: Trainer, *, terminal: bool) -> str:
    text = io.StringIO()
    assert watch(trainer, Console(file=text, force_terminal=terminal, width=140, legacy_windows=False))
    return text.getvalue()


def test_gauges_are_averages_since_the_last_look(trainer: Trainer) -> None:
    found = meter.Meter(trainer)
    steps = list(trainer.steps())
    weights = sum(p.numel() for p in trainer.model.parameters() if p.dim() == 2)
    for part in (steps[:2], steps[2:7]):
        for step in part:
            found.add(step)
        gauges = found.read()
        frames, seconds = (sum(getattr(step.sums, name) for step in part) for name in ("time_steps", "seconds"))
        assert gauges.bound == pytest.approx(sum(step.sums.nll + step.sums.kl for step in part) / frames)
        assert gauges.kl == pytest.approx(sum(step.sums.kl for step in part) / frames)
        assert gauges.frames == gauges.per_rank == pytest.approx(frames / seconds)
        assert gauges.share == pytest.approx(6 * weights * frames / seconds / 1e12)
        assert gauges.waited == pytest.approx(sum(step.waited for step in part) / seconds)
        assert gauges.gradient_norm == part[-1].gradient_norm
        assert 0.05 < gauges.memory < 100
    trainer.ranks = Ranks(0, 4, torch.device("cpu"))
    shared = meter.Meter(trainer)
    shared.add(steps[0])
    gauges = shared.read()
    assert gauges.per_rank == pytest.approx(gauges.frames / 4)


def test_a_terminal_shows_a_table(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_REFRESH", 0.0)
    text = seen(trainer, terminal=True)
    last = text[text.rindex("epoch") :]
    for name in ("nats per step", "KL", "frames/s", "per rank", "of peak", "input wait", "gradient norm", "memory"):
        assert name in last
    assert "peak: 1,000 GFLOP/s, said the test" in last
    for epoch in trainer.history:
        assert f"{epoch.valid.bound:.3f}" in last
    assert "3/3" in last
    assert text.count("gradient norm") >= 9, "the steps between two epochs are not shown"


def test_lines_without_a_terminal(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *lines = seen(trainer, terminal=False).splitlines()
    assert first == "peak: 1,000 GFLOP/s, said the test"
    assert [line[:11] for line in lines] == [f"epoch   {i}/3" for i in (1, 2, 3)]
    for line, epoch in zip(lines, trainer.history, strict=True):
        assert f"train {epoch.train.bound:.3f}, valid {epoch.valid.bound:.3f} nats per step, KL " in line
        for name in ("frames/s", "per rank", "of peak", "input wait", "gradient norm", "memory"):
            assert f", {name} " in line
    monkeypatch.setattr(table, "_LINE", 0.0)  # seconds after which a long epoch says how it is doing
    trainer.folder = trainer.folder.with_name("again")
    again = Trainer(trainer.source, MODEL, trainer.config, trainer.data, trainer.folder)
    assert sum("step 2, train" in line for line in seen(again, terminal=False).splitlines()) == 1


def test_the_peak_is_known_or_said_not_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(peak, "measured", lambda threads, seconds: 50.0 * threads)
    threads = torch.get_num_threads()
    assert peak_of(cpu, "float32").flops == 5e10 * threads
    assert f"measured on {threads} thread" in peak_of(cpu, "float32").about
    monkeypatch.setattr(peak, "measured", lambda threads, seconds: 0.0)
    assert peak_of(cpu, "float32") == Peak(None, "the peak is not known: the native module is not built")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert peak_of(gpu, "bfloat16") == Peak(9.89e14, "989 TFLOP/s, NVIDIA H200 in bfloat16 as its maker says")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Abacus 3")
    assert peak_of(gpu, "tf32") == Peak(None, "the peak of Abacus 3 is not known here")


class Service:
    """What wandb.init gives and what mlflow offers, as far as a run calls them; it keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **named: Any) -> Service:
            self.calls.append((name, values or named))
            return self

        return call

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    log_metrics = log


@pytest.mark.parametrize(("name", "ends"), [("wandb", "finish"), ("mlflow", "end_run")])
def test_services_are_told(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, name: str, ends: str) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    assert watch(trainer, Console(quiet=True), [name])
    assert [step for step, _ in service.logged] == list(range(1, 10))
    told = {key for _, values in service.logged for key in values}
    assert {"train/bound", "train/kl", "speed/frames_per_second", "speed/input_wait", "valid/bound"} <= told
    assert [values["valid/bound"] for _, values in service.logged if "valid/bound" in values] == [
        epoch.valid.bound for epoch in trainer.history
    ]
    assert service.calls[-1][0] == ends
    settings = next(value for call, value in service.calls if call in ("init", "log_params"))
    settings = settings["config"] if name == "wandb" else settings[0]
    assert (settings["train.batch_size"], settings["model.hidden_size"], settings["data.path"]) == (3, "6", "chorales")
    if name == "wandb":
        (begun,) = (value for call, value in service.calls if call == "init")
        assert (begun["resume"], begun["name"], len(begun["id"])) == ("allow", "run", 16)


def test_a_service_that_is_not_there_is_named(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no\nnetwork")

    for name in ("tensorboard", "wandb", "mlflow"):
        module = "torch.utils.tensorboard" if name == "tensorboard" else name
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(RunError, match=rf"logs take the {name} package: pip install 'vrnn-fast\[{name}\]'"):
            watch(trainer, Console(quiet=True), [name])
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(RunError, match="wandb does not begin: no network"):
        watch(trainer, Console(quiet=True), ["wandb"])
    assert trainer.step == 0


def test_every_logger_is_an_option_and_an_extra() -> None:
    project = load_file(Path(__file__).parents[2] / "pyproject.toml")["project"]
    assert loggers.KNOWN.keys() == LOGGERS.keys() <= project["optional-dependencies"].keys()
