"""Training, one batch at a time: everything a run is, from its configuration to a checkpoint that resumes exactly.

A :class:`Trainer` owns the model, the optimiser and two random generators. ``steps()`` trains and reports; whoever
consumes it draws progress bars, writes logs, or stops between two steps and saves.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints import files
from ..checkpoints.files import CheckpointError
from ..data import Dataset, Padded, Source, bucketed, pad
from ..model import VRNN
from .config import ModelConfig, RunError, TrainConfig
from .threads import using

BEST, LAST = "best.safetensors", "last.safetensors"
_EVALUATION_SEED = 1


@dataclass(frozen=True)
class Sums:
    """Nats over a number of real time steps, and the seconds that they took."""

    nll: float = 0.0
    kl: float = 0.0
    time_steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def bound(self) -> float:
        """The negative evidence lower bound in nats per time step."""
        return (self.nll + self.kl) / self.time_steps


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training part came to, and the validation after it."""

    number: int
    train: Sums
    valid: Sums
    learning_rate: float
    kl_weight: float


class Step(NamedTuple):
    """One optimiser step, counted from 1; ``finished`` is the epoch that ended with it, if one did."""

    number: int
    epoch: int
    loss: float
    sums: Sums
    learning_rate: float
    kl_weight: float
    gradient_norm: float
    finished: Epoch | None


@dataclass
class _Progress:
    """Where a run stands between two steps: batch ``batch`` of epoch ``epoch`` is next."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    best: float = math.inf
    best_epoch: int = -1


class Trainer:
    """A run in the folder ``folder``: the best parameters so far, and all that resuming takes, are kept there.

    Raises:
        RunError: the folder cannot be written.
    """

    def __init__(self, source: Source, model: ModelConfig, train: TrainConfig, data: Dataset, folder: Path) -> None:
        self.source, self.model_config, self.config, self.data, self.folder = source, model, train, data, folder
        _require_writable(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.model = model.build(train.backend)
        _start_at_baseline(self.model, data)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        self.history: list[Epoch] = []
        self._progress = _Progress()
        self._order = torch.Generator().manual_seed(train.seed)
        self._noise = torch.Generator().manual_seed(train.seed + 1)
        self._epoch_order = self._order.get_state()
        self._header: dict[str, Any] = {
            "source": dataclasses.asdict(source),
            "model": dataclasses.asdict(model),
            "train": dataclasses.asdict(train),
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint(),
                "mean": data.mean,
                "scale": data.scale,
                "rate": data.rate,
            },
        }

    @classmethod
    def resume(cls, folder: Path, data: Dataset | None = None) -> Trainer:
        """The run as it was when it was last saved; ``data`` is read again unless given.

        It goes on bit for bit as it would have, on the same machine with the same number of threads. ``folder`` may
        be the checkpoint itself; the run then goes on in the folder where that is.

        Raises:
            CheckpointError: the folder holds no run that can be resumed.
            RunError: the data has changed since.
        """
        path = folder / LAST if os.path.isdir(folder) else folder
        tensors, header = _load(path)
        source, model, train = read_configs(path, header)
        if "progress" not in header:
            raise CheckpointError(f"{path} holds the model of a run and no more: it goes on from {LAST}")
        self = cls(source, model, train, run_data(path, header, data), path.parent)
        try:
            self._restore(tensors, header)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not hold a whole run: {_one_line(error)}") from error
        return self

    @property
    def batches(self) -> int:
        """Optimiser steps in an epoch."""
        return math.ceil(len(self.data.train) / self.config.batch_size)

    @property
    def best(self) -> tuple[int, float]:
        """The epoch with the lowest validation bound, and that bound in nats per time step."""
        return self._progress.best_epoch, self._progress.best

    @property
    def finished(self) -> bool:
        """No step is left to train, or validation has not improved for ``patience`` epochs."""
        at = self._progress
        waited = at.epoch - 1 - at.best_epoch
        return at.epoch >= self.config.epochs or (0 < self.config.patience <= waited)

    def steps(self) -> Iterator[Step]:
        """Train to the end, one optimiser step each; between two of them the caller may :meth:`save` and leave.

        Raises:
            RunError: the run has diverged: a loss, the norm of a gradient or a validation bound is not finite. The
                step is not taken, or the epoch not saved: the folder keeps what was there.
        """
        while not self.finished:
            self._order.set_state(self._epoch_order)
            order = bucketed([len(x) for x in self.data.train], self.config.batch_size, self._order)
            for indices in order[self._progress.batch :]:
                yield self._step(pad([self.data.train[i] for i in indices]))

    def save(self) -> Path:
        """Write all that resuming takes into the run's folder; returns the file.

        Raises:
            RunError: it cannot be written, say for want of space. What was there stays.
        """
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"optimizer.{name}.{key}": t for key, t in self.optimizer.state[parameter].items()}
        tensors |= {"random.order": self._epoch_order, "random.noise": self._noise.get_state()}
        progress = dataclasses.asdict(self._progress)
        history = [dataclasses.asdict(epoch) for epoch in self.history]
        return self._write(LAST, tensors, {"progress": progress, "history": history})

    def load_best(self) -> VRNN:
        """A model with the parameters of the epoch that validated best."""
        return load_model(self.folder, self.config.backend)[0]

    def _step(self, batch: Padded) -> Step:
        start = perf_counter()
        config, at = self.config, self._progress
        learning_rate = config.learning_rate_at(at.step / (config.epochs * self.batches), at.step)
        kl_weight = config.kl_weight_at((at.step + 1) / self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        out = self.model(batch.x, batch.lengths, generator=self._noise, beta=kl_weight, free_nats=config.free_nats)
        loss, where = out.loss.item(), f"at step {at.step + 1}, in epoch {at.epoch + 1}"
        self._require_finite("loss", loss, where)
        self.optimizer.zero_grad()
        out.loss.backward()
        with using(1):  # one parallel region per parameter costs more than it gains, on busy cores a hundred times
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip).item()
            self._require_finite("norm of the gradient", norm, where)
            self.optimizer.step()

        sums = Sums(out.nll.sum().item(), out.kl.sum().item(), batch.steps, perf_counter() - start)
        at.sums += sums
        at.step += 1
        at.batch += 1
        step = Step(at.step, at.epoch, loss, sums, learning_rate, kl_weight, norm, None)
        return step._replace(finished=self._end_epoch(step)) if at.batch == self.batches else step

    def _end_epoch(self, last: Step) -> Epoch:
        at = self._progress
        valid = evaluate(self.model, self.data.valid)
        self._require_finite("validation bound", valid.bound, f"after epoch {at.epoch + 1}")
        epoch = Epoch(at.epoch, at.sums, valid, last.learning_rate, last.kl_weight)
        self.history.append(epoch)
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, Sums()
        self._epoch_order = self._order.get_state()
        if valid.bound < at.best:
            at.best, at.best_epoch = valid.bound, epoch.number
            self._write(BEST, self.model.state_dict(), {"epoch": epoch.number})
        self.save()
        return epoch

    def _write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
        path = self.folder / name
        try:
            files.save(path, tensors, {**self._header, **about})
        except OSError as error:
            whole = [file for file in (LAST, BEST) if _is_whole(self.folder / file)]
            kept = f"still whole there: {', '.join(whole)}, as saved before" if whole else "no checkpoint is there yet"
            raise RunError(f"{path} cannot be written: {error.strerror}; {kept}") from error
        return path

    def _require_finite(self, name: str, value: float, where: str) -> None:
        """Raise RunError where the run has diverged, saying what to try, and what is left of it."""
        if math.isfinite(value):
            return
        at, config = self._progress, self.config
        advice = (
            f"try a learning rate (--lr) below {config.learning_rate:.2g}, --clip below {config.clip:.2g} or a longer "
            f"--warmup than {config.warmup}"
            if at.step
            else "no step was taken yet, so look at the range of the data"
        )
        kept = f"the best model, of epoch {at.best_epoch + 1}, stays" if at.best_epoch >= 0 else "no model is kept yet"
        raise RunError(f"the {name} is {value} {where}: {advice}; {kept} in {self.folder}")

    def _restore(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        self.model.load_state_dict(_below("model", tensors))
        state = self.optimizer.state_dict()
        state["state"] = {
            i: _below(name, _below("optimizer", tensors)) for i, (name, _) in enumerate(self.model.named_parameters())
        }
        self.optimizer.load_state_dict(state)
        self._epoch_order = tensors["random.order"]
        self._order.set_state(self._epoch_order)
        self._noise.set_state(tensors["random.noise"])
        progress = header["progress"]
        self._progress = _Progress(**{**progress, "sums": Sums(**progress["sums"])})
        self.history = [
            Epoch(**{**epoch, "train": Sums(**epoch["train"]), "valid": Sums(**epoch["valid"])})
            for epoch in header["history"]
        ]


def evaluate(model: VRNN, sequences: Sequence[Tensor], batch_size: int = 64) -> Sums:
    """The evidence lower bound of whole sequences (T_i, X), one latent sample each, always with the same noise."""
    noise = torch.Generator().manual_seed(_EVALUATION_SEED)
    by_length = sorted(sequences, key=len)
    total = Sums()
    with torch.no_grad():
        for i in range(0, len(by_length), batch_size):
            start = perf_counter()
            batch = pad(by_length[i : i + batch_size])
            out = model(batch.x, batch.lengths, generator=noise)
            total += Sums(out.nll.sum().item(), out.kl.sum().item(), batch.steps, perf_counter() - start)
    return total


def load_model(path: Path, backend: str = "auto") -> tuple[VRNN, dict[str, Any]]:
    """The model of a run's best epoch and the header of its checkpoint; ``path`` is the run's folder or the file.

    Raises:
        CheckpointError: it holds no such model.
    """
    path = path / BEST if os.path.isdir(path) else path
    tensors, header = _load(path)
    model = read_configs(path, header)[1].build(backend)
    try:
        model.load_state_dict(_below("model", tensors) or tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold the parameters it describes: {_one_line(error)}") from error
    return model, header


_OTHER = {
    LAST: (BEST, "eval and sample take it, but no run goes on from it"),
    BEST: (LAST, "eval and sample take it by its name, and --resume goes on from it"),
}


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint of a run.

    Raises:
        CheckpointError: it is missing, damaged or none of ours. If the run's other one is whole, that is offered.
    """
    try:
        return files.load(path)
    except CheckpointError as error:
        name, use = _OTHER.get(path.name, ("", ""))
        if name and _is_whole(path.with_name(name)):
            raise CheckpointError(f"{error}; {path.with_name(name)} is whole: {use}") from error
        raise


def _is_whole(path: Path) -> bool:
    try:
        files.load(path)
    except CheckpointError:
        return False
    return True


def read_configs(path: Path, header: Mapping[str, Any]) -> tuple[Source, ModelConfig, TrainConfig]:
    """The configuration in the header of the checkpoint ``path``.

    Raises:
        CheckpointError: it is not one that this version knows.
    """
    try:
        return Source(**header["source"]), ModelConfig(**header["model"]), TrainConfig(**header["train"])
    except (KeyError, TypeError, RunError) as error:
        raise CheckpointError(f"{path} does not describe a run: {error}") from error


def run_data(path: Path, header: Mapping[str, Any], data: Dataset | None = None) -> Dataset:
    """What the run with the checkpoint ``path`` was trained on, read again unless given.

    Raises:
        RunError: it has changed since.
        DataError: it is no longer there.
    """
    source = read_configs(path, header)[0]
    if data is None:
        from ..data import load

        data = load(source)
    if data.fingerprint() != header["data"]["fingerprint"]:
        folder = path if path.is_dir() else path.parent
        raise RunError(
            f"the data {source.path!r} is not what the run in {folder} was trained on (eval --data takes any)"
        )
    return data


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix`` and a dot, without them."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written: {error.strerror}") from error


def _start_at_baseline(model: VRNN, data: Dataset) -> None:
    """Let the decoder's biases predict each feature's training mean and deviation: the baseline, to begin with."""
    train = torch.cat(data.train)
    if data.likelihood == "bernoulli":
        biases = [((train.sum(0) + 1) / (len(train) + 2)).logit()]
    else:
        std = train.std(0, correction=0).clamp(min=1e-2)
        biases = [train.mean(0), std + (-(-std).expm1()).log()]  # the inverse of softplus
    with torch.no_grad():
        for (head, _), bias in zip(model.spec.decoder_heads, biases, strict=True):
            model.get_parameter(f"{head}.bias").copy_(bias)
