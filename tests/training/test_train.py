"""A run: it learns, it resumes bit for bit, and what stands in its way is named."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import stat
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vrnn_fast import VRNN
from vrnn_fast.checkpoints import files
from vrnn_fast.checkpoints.files import CheckpointError
from vrnn_fast.data import Dataset, Source, pad
from vrnn_fast.training import checkpoint
from vrnn_fast.training.checkpoint import FOLDER
from vrnn_fast.training.compare import compare
from vrnn_fast.training.config import RunError, TrainConfig
from vrnn_fast.training.evaluation import Sums, evaluate
from vrnn_fast.training.options import build
from vrnn_fast.training.trainer import BEST, Trainer, load_model

WIDTHS = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (7,))
MODEL: dict[str, Any] = {"hidden_size": 6, "latent_size": 2, **WIDTHS}
TRAIN = TrainConfig(epochs=4, batch_size=3, warmup=2, anneal=1.5, free_nats=0.01, weight_decay=0.01)


@pytest.fixture
def dataset() -> Dataset:
    """Each feature is on or off for a stretch of time: there is something to learn."""
    generator = torch.Generator().manual_seed(0)

    def sequence(steps: int) -> torch.Tensor:
        changes = torch.rand(steps, 5, generator=generator) < 0.15
        return (changes.cumsum(0) % 2).float()

    train, valid, test = (tuple(sequence(4 + i % 5) for i in range(n)) for n in (10, 4, 4))
    return Dataset("stretches", "bernoulli", train, valid, test)


def _trainer(dataset: Dataset, folder: Path, **changes: Any) -> Trainer:
    return Trainer(Source(), MODEL, replace(TRAIN, **changes), dataset, folder)


def _state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every tensor of a run, by name."""
    trainer.save()
    found = {f"model.{name}": p for name, p in trainer.model.state_dict().items()}
    for name, p in trainer.model.named_parameters():
        found |= {f"optimizer.{name}.{key}": t for key, t in trainer.optimizer.state[p].items()}
    return found


def _curve(trainer: Trainer) -> list[tuple[float, ...]]:
    return [(e.train.nll, e.train.kl, e.valid.nll, e.valid.kl, e.learning_rate, e.kl_weight) for e in trainer.history]


SEGMENTS = {"segment": 3, "accumulate": 2, "epochs": 2}


@pytest.mark.parametrize(
    ("stop", "changes"), [*((stop, {}) for stop in (1, 3, 4, 6, 11)), *((stop, SEGMENTS) for stop in (1, 2, 4, 9, 13))]
)
def test_resuming_is_as_if_never_stopped(dataset: Dataset, tmp_path: Path, stop: int, changes: dict[str, Any]) -> None:
    """In the middle of an epoch, and of a sequence."""
    whole = _trainer(dataset, tmp_path / "whole", **changes)
    losses = [step.loss for step in whole.steps()]
    assert len(losses) >= 4 * 4

    first = _trainer(dataset, tmp_path / "parts", **changes)
    before = [step.loss for step in islice(first.steps(), stop)]
    first.save()
    second = Trainer.resume(tmp_path / "parts", dataset)
    after = [step.loss for step in second.steps()]

    assert before + after == losses
    assert _curve(second) == _curve(whole)
    ours, theirs = _state(second), _state(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    best = [files.load(tmp_path / run / BEST)[0] for run in ("whole", "parts")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_it_learns(dataset: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(dataset, tmp_path, epochs=60, batch_size=10, free_nats=0.0, learning_rate=1e-2)
    list(trainer.steps())
    assert trainer.history[0].train.bound == pytest.approx(5 * math.log(2), abs=0.4)
    assert trainer.history[-1].train.bound < 2.8


def test_real_values_start_at_the_baseline_and_train_without_nan(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    walks = [(torch.randn(6, 3, generator=generator) * torch.tensor([1, 0.1, 3])).cumsum(0) for _ in range(9)]
    dataset = Dataset("walks", "gaussian", tuple(walks[:5]), tuple(walks[5:7]), tuple(walks[7:]))
    trainer = Trainer(Source(), MODEL, TrainConfig(epochs=60, batch_size=3, warmup=0), dataset, tmp_path)
    start = evaluate(trainer.model, dataset.test)
    losses = [step.loss for step in trainer.steps()]
    assert start.nll / start.time_steps == pytest.approx(dataset.baseline(), abs=2)
    assert all(math.isfinite(loss) for loss in losses)
    assert trainer.history[-1].train.bound < trainer.history[0].train.bound - 0.5


def test_one_time_step_is_enough_to_train_on(tmp_path: Path) -> None:
    step = (torch.ones(1, 3),)
    trainer = Trainer(Source(), MODEL, TRAIN, Dataset("one", "gaussian", step, step, step), tmp_path)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert math.isfinite(next(trainer.steps()).loss)


def test_the_best_epoch_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(dataset, tmp_path, epochs=40, learning_rate=0.1, schedule="constant")
    list(trainer.steps())
    bounds = [epoch.valid.bound for epoch in trainer.history]
    assert trainer.best == (bounds.index(min(bounds)), min(bounds))
    assert trainer.best[0] < 39, "the last epoch is the best one: this test shows nothing"
    assert evaluate(trainer.load_best(), dataset.valid).bound == min(bounds)


def test_patience(dataset: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(dataset, tmp_path, epochs=200, learning_rate=0.1, schedule="constant", patience=3)
    list(trainer.steps())
    assert len(trainer.history) == trainer.best[0] + 1 + 3
    assert not list(Trainer.resume(tmp_path, dataset).steps())


def test_the_seed_decides(dataset: Dataset, tmp_path: Path) -> None:
    curves = [
        [step.loss for step in _trainer(dataset, tmp_path / str(i), epochs=1, seed=seed).steps()]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert curves[0] == curves[1] != curves[2]


def test_training_leaves_the_global_generator_alone(dataset: Dataset, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    list(_trainer(dataset, tmp_path, epochs=1).steps())
    assert torch.equal(torch.get_rng_state(), before)


def test_schedules() -> None:
    for schedule, middle, end in (("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)):
        config = TrainConfig(learning_rate=1.0, schedule=schedule, warmup=10)  # type: ignore[arg-type]
        assert config.learning_rate_at(0.0, 0) == pytest.approx(0.1)
        assert config.learning_rate_at(0.5, 100) == pytest.approx(middle)
        assert config.learning_rate_at(1.0, 200) == pytest.approx(end)
    assert [TrainConfig(anneal=4).kl_weight_at(epochs) for epochs in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert TrainConfig(anneal=0).kl_weight_at(0) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive int, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a number > 0, got -1.0"),
        ({"learning_rate": math.inf}, "learning_rate must be a number > 0, got inf"),
        ({"clip": math.nan}, "clip must be a number > 0, or infinity, got nan"),
        ({"free_nats": -0.5}, "free_nats must be a number >= 0, got -0.5"),
        ({"seed": 2**63}, "seed must be an int from 0 to 9223372036854775807, got 9223372036854775808"),
        ({"schedule": "steps"}, "schedule must be one of cosine, linear, constant, got 'steps'"),
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        TrainConfig(**changes)


def test_a_loss_that_is_no_number_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(dataset, tmp_path)
    steps = trainer.steps()
    next(steps)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    advice = "try a learning_rate below 0.004, a clip below 1 or a longer warmup than 2; no model is kept yet"
    where = r"at step 2, in epoch 1 \(batch 2, training sequence [0-9]\)"
    with pytest.raises(RunError, match=f"the loss is nan {where}: {advice}"):
        next(steps)


def test_data_out_of_range_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    walks = tuple(torch.full((4, 5), 1e30) for _ in range(3))
    dataset = Dataset("far", "gaussian", (torch.zeros(4, 5), *walks), walks, walks)
    trainer = Trainer(Source(), MODEL, TRAIN, dataset, tmp_path)
    with pytest.raises(
        RunError, match=r"at step 1, in epoch 1 \(.*\): no step was taken yet, so look at the range of the data"
    ):
        next(trainer.steps())


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _bound_of(valid: float) -> Any:
    return lambda *_: Sums(valid, 0.0, 1)


@pytest.mark.parametrize("found", [math.inf, math.nan])
@pytest.mark.parametrize("spoilt", ["norm of the gradient", "validation bound"])
def test_a_run_that_diverged_keeps_what_was_good(
    dataset: Dataset, tmp_path: Path, spoilt: str, found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(dataset, tmp_path)
    steps = trainer.steps()
    list(islice(steps, 6))  # in the second epoch of four steps
    trainer._checkpoints.wait()
    kept = _contents(tmp_path)
    parameters = [p.clone() for p in trainer.model.parameters()]
    if spoilt == "validation bound":
        monkeypatch.setattr("vrnn_fast.training.trainer.evaluate", _bound_of(found))
        where = "after epoch 2"
        next(steps)
    else:
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(found))
        where = "at step 7, in epoch 2"
    with pytest.raises(RunError, match=f"the {spoilt} is {found} {where}: .*; the best model, of epoch 1, stays in"):
        next(steps)
    assert _contents(tmp_path) == kept
    assert {name.partition("/")[0] for name in kept} == {BEST, FOLDER}
    if spoilt != "validation bound":
        assert all(torch.equal(p, before) for p, before in zip(trainer.model.parameters(), parameters, strict=True))


def test_an_unwritable_run_folder(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"the run folder .*file/run cannot be written: Not a directory"):
        _trainer(dataset, tmp_path / "file" / "run")
    with pytest.raises(RunError, match="the run folder /proc/run cannot be written"):
        _trainer(dataset, Path("/proc/run"))


def test_other_data_is_not_resumed(dataset: Dataset, tmp_path: Path) -> None:
    _trainer(dataset, tmp_path).save()
    other = Dataset("other", "bernoulli", dataset.valid, dataset.valid, dataset.test)
    with pytest.raises(RunError, match=r"is not what the run of .* was trained on"):
        Trainer.resume(tmp_path, other)


@pytest.mark.parametrize("full", ["the tensors", "the header"])
def test_a_full_disk_leaves_the_last_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    trainer = _trainer(dataset, tmp_path)
    next(trainer.steps())
    path = trainer.save()
    before = _contents(tmp_path)
    next(trainer.steps())

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    place = "torch.save" if full == "the tensors" else "os.replace"
    monkeypatch.setattr(place, fails)
    words = f"step-000000002 cannot be written: .*No space left on device; still whole there: {path.name}, as saved"
    with pytest.raises(RunError, match=words):
        trainer.save()
    monkeypatch.undo()
    assert _contents(tmp_path) == before
    trainer.save()
    assert [p.name for p in sorted((tmp_path / FOLDER).iterdir())] == [path.name, "step-000000002"]


def test_a_step_says_that_a_checkpoint_could_not_be_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written while the next steps are taken."""
    trainer = _trainer(dataset, tmp_path, save_every=2)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", fails)
    with pytest.raises(RunError, match=r"cannot be written: .*No space left.*; no checkpoint is there yet"):
        list(trainer.steps())


def test_what_is_saved_is_what_was_there(dataset: Dataset, tmp_path: Path) -> None:
    """Though steps are taken while it is written."""
    trainer = _trainer(dataset, tmp_path)
    steps = trainer.steps()
    next(steps)
    then = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    path = trainer._begin_saving()
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(1)
    trainer._checkpoints.wait()
    found = Trainer.resume(path, dataset).model.state_dict()
    assert all(torch.equal(found[name], then[name]) for name in then)


def test_two_checkpoints_are_kept(dataset: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(dataset, tmp_path, save_every=3, epochs=2)
    list(trainer.steps())
    assert [p.name for p in sorted((tmp_path / FOLDER).iterdir())] == ["step-000000006", "step-000000008"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_checkpoints_are_for_whom_the_umask_says(dataset: Dataset, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        list(_trainer(dataset, tmp_path, epochs=1).steps())
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert modes == {0o666 & ~mask}


def _foreign_archive(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def _foreign_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": 1}))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _other_format(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, {"vrnn_fast": json.dumps({"format": 99})})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "no checkpoint at"),
        (lambda path: path.write_bytes(b""), "is not a safetensors file: found an empty file"),
        (_foreign_archive, "is not a safetensors file: found a zip archive, as torch.save writes it"),
        (_foreign_pickle, "is not a safetensors file: found a pickle"),
        (lambda path: path.write_bytes(b"RIFF____WAVE"), "found 12 bytes that begin with b'RIFF____'"),
        (_truncated, "is damaged: it is not what its digest says that was written"),
        (lambda path: save_file({"weight": torch.zeros(2)}, path), r"found 1 tensors \(weight.*without its header"),
        (lambda path: save_file({}, path, {"vrnn_fast": "["}), "its header is damaged: found '\\['"),
        (_other_format, "has format 99, this version of vrnn_fast reads format 2"),
        (lambda path: files.save(path, {}, {}), "does not describe a run: 'source'"),
    ],
)
def test_models_that_are_none(dataset: Dataset, tmp_path: Path, spoil: Any, message: str) -> None:
    list(_trainer(dataset, tmp_path, epochs=1).steps())
    path = tmp_path / BEST
    spoil(path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def _other_version(path: Path) -> None:
    outer = json.loads(path.read_text())
    text = outer["run"].replace('"format": 1', '"format": 9')
    path.write_text(json.dumps({"run": text, "digest": hashlib.sha256(text.encode()).hexdigest()}))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (
            "run.json",
            lambda path: path.write_text(path.read_text().replace("stretches", "stretched")),
            "run.json is damaged",
        ),
        ("run.json", lambda path: path.write_text("["), "run.json is damaged"),
        ("run.json", lambda path: path.write_text("{}"), "run.json is damaged"),
        ("run.json", _other_version, "has format 9, this version of vrnn_fast reads 1"),
        (".metadata", Path.unlink, ".metadata cannot be read: No such file"),
        ("__0_0.distcp", Path.unlink, "__0_0.distcp cannot be read: No such file"),
        ("__0_0.distcp", _truncated, "__0_0.distcp is damaged: it is not what its digest says"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    dataset: Dataset, tmp_path: Path, name: str, spoil: Any, message: str
) -> None:
    trainer = _trainer(dataset, tmp_path)
    steps = trainer.steps()
    next(steps)
    first = trainer.save()
    next(steps)
    second = trainer.save()
    spoil(second / name)
    with pytest.warns(UserWarning, match=f"{message}.*; the run goes on from {first}, which is whole"):
        assert Trainer.resume(tmp_path, dataset).step == 1
    with pytest.raises(CheckpointError, match=message):
        checkpoint.header_of(second)
    shutil.rmtree(first)
    with pytest.raises(CheckpointError, match=message):
        Trainer.resume(tmp_path, dataset)


def test_no_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}"):
        Trainer.resume(tmp_path, dataset)


def test_a_checkpoint_of_another_model(dataset: Dataset, tmp_path: Path) -> None:
    path = _trainer(dataset, tmp_path / "one").save()
    other = Trainer(Source(), {**MODEL, "hidden_size": 9}, TRAIN, dataset, tmp_path / "other")
    with pytest.raises(CheckpointError, match=f"{path} does not hold this run: .*mismatch"):
        other._restore(path, checkpoint.header_of(path))


def _flipped(content: bytes, bit: int) -> bytes:
    spoilt = bytearray(content)
    spoilt[bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


def test_a_flipped_bit_is_found(dataset: Dataset, tmp_path: Path) -> None:
    """Anywhere: in the length, what the header says of ours, other names and shapes, and numbers."""
    list(_trainer(dataset, tmp_path, epochs=1).steps())
    path = tmp_path / BEST
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    ours = [8 * at + bit for key in (b'"vrnn_fast"', b'"vrnn_fast_digest"') for at in _places(content, key)
            for bit in range(0, 8, 3)]  # fmt: skip
    chance = torch.randint(8 * len(content), (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for bit in (*range(64), *ours, *range(64, 8 * start, 1021), *chance):
        path.write_bytes(_flipped(content, bit))
        with pytest.raises(CheckpointError, match=str(path)):
            files.load(path)
    folder, _ = checkpoint.latest(tmp_path)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for bit in torch.randint(8 * len(content), (20,), generator=torch.Generator().manual_seed(0)).tolist():
            file.write_bytes(_flipped(content, bit))
            with pytest.raises(CheckpointError, match=str(folder)):
                checkpoint.header_of(folder)
        file.write_bytes(content)
    checkpoint.header_of(folder)


def _places(content: bytes, key: bytes) -> range:
    """Where a key and the first characters of its value stand."""
    at = content.index(key)
    return range(at, at + len(key) + 16)


def test_a_model_of_before_the_digest_is_read_with_a_warning(dataset: Dataset, tmp_path: Path) -> None:
    list(_trainer(dataset, tmp_path, epochs=1).steps())
    path = tmp_path / BEST
    tensors, header = files.load(path)
    save_file(tensors, path, {"vrnn_fast": json.dumps({"format": 1, **header})})
    with pytest.warns(UserWarning, match=f"{path} is of an earlier version, without a digest"):
        load_model(tmp_path)
    save_file(tensors, path, {"vrnn_fast": json.dumps({"format": 2, **header})})
    with pytest.raises(CheckpointError, match="it has no digest, and format 2 has one"):
        load_model(tmp_path)


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(CheckpointError, match=r"a{5000} cannot be read: File name too long"):
        load_model(Path("a" * 5000))
    with pytest.raises(CheckpointError, match=r"no checkpoint at a{5000}"):
        Trainer.resume(Path("a" * 5000))


def test_a_model_without_its_tensors(dataset: Dataset, tmp_path: Path) -> None:
    list(_trainer(dataset, tmp_path, epochs=1).steps())
    path = tmp_path / BEST
    tensors, header = files.load(path)
    files.save(path, {name: t for name, t in tensors.items() if "dec.0" not in name}, header)
    with pytest.raises(CheckpointError, match=r"does not hold the parameters it describes: .*dec\.0"):
        load_model(path)


def test_folder_and_file_give_the_model(dataset: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(dataset, tmp_path, epochs=1)
    list(trainer.steps())
    for path in (tmp_path, tmp_path / BEST):
        model, header = load_model(path)
        assert evaluate(model, dataset.test).bound == evaluate(trainer.model, dataset.test).bound
        assert header["data"]["name"] == "stretches"


def _pair(dataset: Dataset) -> tuple[VRNN, VRNN]:
    ours, reference = build(MODEL, 5, "bernoulli"), build(MODEL, 5, "bernoulli", "reference")
    reference.load_state_dict(ours.state_dict())
    return ours, reference


def test_comparing_measures_what_agrees(dataset: Dataset) -> None:
    comparison = compare(*_pair(dataset), [pad(dataset.train), pad(dataset.valid)], rounds=2)
    assert comparison.disagreement is None
    assert comparison.speedup is not None
    assert comparison.speedup > 0


def test_comparing_reports_no_speed_where_results_differ(dataset: Dataset) -> None:
    ours, reference = _pair(dataset)
    with torch.no_grad():
        ours.get_parameter("prior_mean.bias").add_(1e-3)
    comparison = compare(ours, reference, [pad(dataset.train)])
    assert comparison.disagreement is not None
    assert "the loss is off by" in comparison.disagreement
    assert comparison.speedup is None
