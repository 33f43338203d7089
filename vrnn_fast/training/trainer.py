"""Training, one update at a time: everything a run is, from its configuration to checkpoints that resume exactly.

A :class:`Trainer` owns the model and the optimiser of one rank. ``steps()`` trains and reports; whoever consumes it
draws progress bars, writes logs, or asks to stop: all ranks then stop behind the same step, and save.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from ..checkpoints import files
from ..checkpoints.files import BEST, CheckpointError
from ..data import Dataset, Source
from ..data.dataset import lengths_of
from ..data.loader import Loaded, Pieces, loaded
from ..data.order import EpochOrder, Update
from ..model import VRNN
from ..state import State
from . import checkpoint, segments
from .checkpoint import Checkpoints
from .config import RunError, TrainConfig, one_line
from .evaluation import Sums, evaluate
from .module import Trained, products_in
from .options import build
from .ranks import Ranks, missing, seen_by_all
from .runs import load_model, read_configs, run_data, unwritable
from .threads import using


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training part came to, and the validation after it."""

    number: int
    train: Sums
    valid: Sums
    learning_rate: float
    kl_weight: float


class Step(NamedTuple):
    """One optimiser step, counted from 1, of all ranks together.

    Attributes:
        waited: seconds until its data was there.
        stopping: whether somebody asked to stop; all ranks have the same answer.
        finished: the epoch that ended with it, if one did.
    """

    number: int
    epoch: int
    loss: float
    sums: Sums
    learning_rate: float
    kl_weight: float
    gradient_norm: float
    waited: float
    stopping: bool
    finished: Epoch | None


@dataclass
class _Progress:
    """Where a run stands between two steps: segment ``segment`` of batch ``batch`` of epoch ``epoch`` is next."""

    epoch: int = 0
    batch: int = 0
    segment: int = 0
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    best: float = math.inf
    best_epoch: int = -1


class Trainer:
    """A run in the folder ``folder``: the best parameters so far, and all that resuming takes, are kept there.

    Args:
        model: arguments of :class:`VRNN`, as plain data; see :func:`vrnn_fast.training.options.build`.
        ranks: the processes that it is divided among; None is this one alone, on the CPU.

    Raises:
        RunError: the folder cannot be written, the backend cannot run the model, or ranks have other data.
    """

    def __init__(
        self,
        source: Source,
        model: Mapping[str, Any],
        train: TrainConfig,
        data: Dataset,
        folder: Path,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks = ranks or Ranks(0, 1, torch.device("cpu"))
        self.source, self.arguments, self.config, self.data, self.folder = source, dict(model), train, data, folder
        ranks.together(unwritable(folder) if ranks.first else None)
        seen_by_all(ranks, "the data", fingerprint := data.fingerprint())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            self.model = build(model, data.features, data.likelihood, train.backend).to(ranks.device)
        _start_at_baseline(self.model, data)
        self._trained = Trained(self.model, train, ranks)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        self.history: list[Epoch] = []
        self._progress = _Progress()
        self._carried: list[State | None] = [None] * train.accumulate
        self._stop = False
        self._lengths = lengths_of(data.train)
        self._checkpoints = Checkpoints(folder, ranks)
        self._header: dict[str, Any] = {
            "source": dataclasses.asdict(source),
            "model": self.arguments,
            "train": dataclasses.asdict(train),
            "data": {
                "name": data.name,
                "fingerprint": fingerprint,
                "features": data.features,
                "likelihood": data.likelihood,
                "mean": data.mean,
                "scale": data.scale,
                "rate": data.rate,
            },
        }

    @classmethod
    def resume(cls, path: Path, data: Dataset | None = None, ranks: Ranks | None = None) -> Trainer:
        """Return the run as it was when it was last saved; ``data`` is read again unless given.

        It goes on bit for bit as it would have, on the same kind of machine with the same number of threads and ranks;
        on another number of ranks it goes on with the same epoch, and its sums are rounded otherwise. ``path`` is the
        run's folder or one of its checkpoints; the run then goes on from there.

        Raises:
            CheckpointError: there is no run that can be resumed.
            RunError: the data has changed since.
        """
        found, header = checkpoint.latest(path)
        source, model, train = read_configs(found, header)
        folder = found.parent.parent
        self = cls(source, model, train, run_data(found, header, data), folder, ranks)
        try:
            self._restore(found, header)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{found} does not hold a whole run: {one_line(error)}") from error
        return self

    @property
    def batches(self) -> int:
        """Batches in an epoch, each of one optimiser step for every segment."""
        return math.ceil(len(self._lengths) / self.config.batch_size)

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self._progress.step

    @property
    def epochs_done(self) -> float:
        """How far the run is, fractions included."""
        return self._progress.epoch + self._progress.batch / self.batches

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

    def ask_to_stop(self) -> None:
        """Let the next step say to all ranks that they shall stop."""
        self._stop = True

    def steps(self) -> Iterator[Step]:
        """Train to the end, one optimiser step each; behind one that is ``stopping`` all ranks :meth:`save` and leave.

        Raises:
            RunError: the run has diverged: a loss, the norm of a gradient or a validation bound is not finite; or data
                could not be read. The step is not taken, or the epoch not saved: the folder keeps what was there. Or a
                checkpoint could not be written.
        """
        config = self.config
        while not self.finished:
            at = self._progress
            order = self._order(at.epoch)
            pieces = Pieces(self.data.train, self.model.latent_size, ("noise", config.seed, at.epoch))
            wanted = (
                self.ranks.share(update.pieces, part, config.accumulate)
                for update in order.updates(at.batch, at.segment)
                for part in range(config.accumulate)
            )
            batches = loaded(pieces, wanted, workers=config.workers, pin=self.ranks.device.type == "cuda")
            for update in order.updates(at.batch, at.segment):
                begun = perf_counter()
                parts = list(islice(batches, config.accumulate))
                yield self._step(update, parts, perf_counter() - begun)
        self._checkpoints.wait()

    def save(self) -> Path:
        """Write all that resuming takes into the run's folder, and wait for it; returns the checkpoint.

        Raises:
            RunError: it cannot be written, say for want of space. What was there stays.
        """
        path = self._begin_saving()
        self._checkpoints.wait()
        return path

    def load_best(self) -> VRNN:
        """Return a model with the parameters of the epoch that validated best."""
        return load_model(self.folder, self.config.backend)[0]

    def _begin_saving(self) -> Path:
        progress = dataclasses.asdict(self._progress)
        history = [dataclasses.asdict(epoch) for epoch in self.history]
        header = {**self._header, "progress": progress, "history": history}
        return self._checkpoints.save(self._progress.step, self._state(), header)

    def _state(self) -> dict[str, Any]:
        """Return all tensors of the run, as torch.distributed.checkpoint takes them."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        carried = segments.gathered(self._carried, self.ranks, self._rows_of_batch)
        return {"model": model, "optimizer": optimizer["state"]} | ({} if carried is None else {"carried": carried})

    def _step(self, update: Update, parts: Sequence[Loaded], waited: float) -> Step:
        start = perf_counter()
        config, at = self.config, self._progress
        done = self.epochs_done
        learning_rate = config.learning_rate_at(done / config.epochs, at.step)
        kl_weight = config.kl_weight_at(done + 1 / self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        with products_in(config.precision):
            losses, nll, kl = self._gradients(update, parts, kl_weight)
        unread = next((part.failure for part in parts if part.failure), None)
        told = (not math.isfinite(losses), self._stop, self._checkpoints.failed(), unread is not None)
        found = self.ranks.sum(losses / self.ranks.size, nll, kl, *map(float, told))
        loss, nll, kl, bad, stop, unsaved, missing = found
        if missing:
            self.ranks.together(unread)
        if unsaved:
            self._checkpoints.wait()
        if bad:
            self._refuse_loss(update)
        with using(1) if self.ranks.device.type == "cpu" else nullcontext():  # a parallel region for each parameter
            norm = _norm(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
            self._require_finite("norm of the gradient", norm, f"at step {at.step + 1}, in epoch {at.epoch + 1}")
            self.optimizer.step()

        sums = Sums(nll, kl, update.steps, perf_counter() - start + waited)
        at.sums += sums
        at.step += 1
        at.batch, at.segment = (at.batch + 1, 0) if update.last else (at.batch, at.segment + 1)
        step = Step(at.step, at.epoch, loss, sums, learning_rate, kl_weight, norm, waited, stop > 0, None)
        if at.batch == self.batches:
            return step._replace(finished=self._end_epoch(step))
        if config.save_every and at.step % config.save_every == 0 and not step.stopping:
            self._begin_saving()
        return step

    def _gradients(self, update: Update, parts: Sequence[Loaded], kl_weight: float) -> tuple[float, float, float]:
        """Add up the gradients of this rank's parts; its share of the loss, and its nll and KL."""
        loss, nll, kl = 0.0, 0.0, 0.0
        normalizer = update.steps / self.ranks.size  # gradients are averaged over ranks
        self._unsound: list[tuple[int, Tensor]] = []
        for number, part in enumerate(parts):
            x, lengths, eps, _ = part.to(self.ranks.device)
            with self._trained.accumulating(number + 1 < len(parts)), missing():
                out = self._trained(
                    x.to(self._trained.dtype),
                    lengths,
                    eps=eps.to(self._trained.dtype),
                    state=self._carried[number],
                    beta=kl_weight,
                    free_nats=self.config.free_nats,
                    normalizer=normalizer,
                )
                # At T = 1 the loss reads nothing of the cell; through the state every parameter has a gradient, whoever
                # computes it: ranks wait for each, and an optimiser moves what has a zero, not what has none.
                (out.loss + 0 * segments.stacked(out.state).sum()).backward()
            self._carried[number] = None if update.last else segments.detached(out.state)
            loss += out.loss.item()
            nll, kl = nll + out.nll.sum(dtype=torch.float64).item(), kl + out.kl.sum(dtype=torch.float64).item()
            if not math.isfinite(loss):
                self._unsound.append((number, (out.nll + out.kl).detach().sum(0)))
        return loss, nll, kl

    def _refuse_loss(self, update: Update) -> None:
        """Raise on all ranks that the loss is no number, naming where it first is none."""
        at, found = self._progress, None
        for number, rows in self._unsound:
            own = self.ranks.share(update.pieces, number, self.config.accumulate)
            row = next((i for i, value in enumerate(rows.tolist()) if not math.isfinite(value)), None)
            if row is not None and row < len(own):
                found = own[row].sequence
                break
        value = next((v for v in self.ranks.gather(_first_unsound(self._unsound)) if v is not None), math.nan)
        sequences = self.ranks.gather(found)
        rank = next((rank for rank, sequence in enumerate(sequences) if sequence is not None), None)
        where = f"at step {at.step + 1}, in epoch {at.epoch + 1}"
        if rank is not None:
            on = f", on rank {rank}" if self.ranks.size > 1 else ""
            where += f" (batch {update.batch + 1}, training sequence {sequences[rank]}{on})"
        self._require_finite("loss", value, where)

    def _end_epoch(self, last: Step) -> Epoch:
        at = self._progress
        with products_in(self.config.precision):
            valid = evaluate(self.model, self.data.valid, self.ranks, self.config.segment)
        self._require_finite("validation bound", valid.bound, f"after epoch {at.epoch + 1}")
        epoch = Epoch(at.epoch, at.sums, valid, last.learning_rate, last.kl_weight)
        self.history.append(epoch)
        at.epoch, at.batch, at.segment, at.sums = at.epoch + 1, 0, 0, Sums()
        if valid.bound < at.best:
            at.best, at.best_epoch = valid.bound, epoch.number
            self._write_best(epoch.number)
        self._begin_saving()
        return epoch

    def _write_best(self, epoch: int) -> None:
        whole: Any = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        path, failure = self.folder / BEST, None
        if self.ranks.first:
            try:
                files.save(path, whole, {**self._header, "epoch": epoch})
            except OSError as error:
                kept = f"; {path} stays as it was" if path.exists() else ""
                failure = RunError(f"{path} cannot be written: {error.strerror}{kept}")
        self.ranks.together(failure)

    def _require_finite(self, name: str, value: float, where: str) -> None:
        """Raise RunError where the run has diverged, saying what to try, and what is left of it."""
        if math.isfinite(value):
            return
        at, config = self._progress, self.config
        advice = (
            f"try a learning_rate below {config.learning_rate:.2g}, a clip below {config.clip:.2g} or a longer warmup "
            f"than {config.warmup}"
            if at.step
            else "no step was taken yet, so look at the range of the data"
        )
        kept = f"the best model, of epoch {at.best_epoch + 1}, stays" if at.best_epoch >= 0 else "no model is kept yet"
        raise RunError(f"the {name} is {value} {where}: {advice}; {kept} in {self.folder}", everywhere=True)

    def _rows_of_batch(self) -> int:
        at = self._progress
        return len(self._order(at.epoch).batches[at.batch])

    def _order(self, epoch: int) -> EpochOrder:
        config = self.config
        return EpochOrder(self._lengths, config.batch_size, config.segment, config.seed, epoch)

    def _restore(self, path: Path, header: Mapping[str, Any]) -> None:
        progress = header["progress"]
        self._progress = at = _Progress(**{**progress, "sums": Sums(**progress["sums"])})
        self.history = [
            Epoch(**{**epoch, "train": Sums(**epoch["train"]), "valid": Sums(**epoch["valid"])})
            for epoch in header["history"]
        ]
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer["state"]}
        spec = self.model.spec
        if at.segment:
            shape = (spec.state_parts, spec.num_layers, self._rows_of_batch(), spec.hidden_size)
            state["carried"] = torch.zeros(shape, dtype=self._trained.dtype)
        checkpoint.load(path, state, self.ranks)
        optimizer["state"] = state["optimizer"]
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=optimizer)
        if at.segment:
            self._carried = segments.shared(state["carried"], self.ranks, self.config.accumulate)


def _first_unsound(found: Sequence[tuple[int, Tensor]]) -> float | None:
    for _, rows in found:
        for value in rows.tolist():
            if not math.isfinite(value):
                return float(value)
    return None


def _norm(found: Tensor) -> float:
    whole: Tensor = found.full_tensor() if hasattr(found, "full_tensor") else found
    return whole.item()


def _start_at_baseline(model: VRNN, data: Dataset) -> None:
    """Let the decoder's biases predict each feature's training mean and deviation: the baseline, to begin with. Where
    the likelihood is another one than the data's, they stay."""
    kind = "bernoulli" if data.likelihood == "bernoulli" else "gaussian"
    if model.spec.likelihood != kind or model.spec.packed_heads:
        return
    mean, std = data.moments()
    if kind == "bernoulli":
        biases = [((mean * data.steps("train") + 1) / (data.steps("train") + 2)).logit()]
    else:
        std = std.clamp(min=1e-2)
        biases = [mean, std + (-(-std).expm1()).log()]  # the inverse of softplus
    with torch.no_grad():
        for (head, _), bias in zip(model.spec.decoder_heads, biases, strict=True):
            model.get_parameter(f"{head}.bias").copy_(bias)
