"""The chorales, the network that learns them, and a run from the first step to the last measurement."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import cast, get_args

import torch
from rich.console import Console
from scipy.io import loadmat
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vrnn_fast import VRNN, Std
from vrnn_fast.bounds import BoundKind
from vrnn_fast.data import Dataset, bucketed, pad
from vrnn_fast.data.reading import PARTS, DataError
from vrnn_fast.data.stored import Series
from vrnn_fast.executors.reference import Equations

from ..record import Record

PITCHES, WIDTH = 88, 32
SEEDS = (0, 1, 2)  # of every study, unless others are asked for
KINDS: tuple[BoundKind, ...] = get_args(BoundKind)

Nats = dict[BoundKind, float]


@dataclass(frozen=True)
class Hyperparameters:
    """How a run trains.

    Attributes:
        kind: the bound that training maximises.
        particles: in training; ``judges`` of them in a validation, ``measures`` in the final measurement.
        learning_rates: Adam's, each of which is tried.
        weight_decay: Adam's, decoupled from the gradient (Loshchilov and Hutter 2019).
        average: of the running mean of the parameters, per optimiser step.
        every: epochs between two validations.
        patience: epochs without a better one after which training stops.
    """

    kind: BoundKind
    seed: int
    particles: int = 4
    judges: int = 16
    measures: int = 128
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (2e-3, 4e-3)
    weight_decay: float = 0.3
    average: float = 0.99
    epochs: int = 400
    every: int = 10
    patience: int = 50


@dataclass
class Trial:
    """Training at one learning rate.

    Attributes:
        history: epoch, and FIVO of the validation part after it.
        seconds: with the validations.
    """

    learning_rate: float
    history: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> tuple[int, float]:
        """The epoch that validated best, and what it came to."""
        return max(self.history, key=lambda entry: entry[1])


@dataclass
class Result:
    """What a run came to: nats per time step, of all the steps of a part together.

    Attributes:
        valid, test: the bounds of the kept parameters, those of the trial that validated best.
        seconds: of the final measurement.
    """

    setting: Hyperparameters
    machine: dict[str, object]
    trials: list[Trial]
    valid: Nats
    test: Nats
    seconds: float

    @property
    def name(self) -> str:
        """That of the file that holds it."""
        return f"{self.setting.kind}-{self.setting.seed}"

    @property
    def kept(self) -> Trial:
        """The trial that validated best."""
        return max(self.trials, key=lambda trial: trial.best[1])

    @classmethod
    def of_json(cls, text: str) -> Result:
        """Read what :func:`json.dumps` made of ``asdict``."""
        fields = json.loads(text)
        setting = {**fields["setting"], "learning_rates": tuple(fields["setting"]["learning_rates"])}
        trials = [Trial(**{**t, "history": [(epoch, nats) for epoch, nats in t["history"]]}) for t in fields["trials"]]
        return cls(**{**fields, "setting": Hyperparameters(**setting), "trials": trials})


def read(path: Path) -> Dataset:
    """Read the three parts of the file.

    Raises:
        DataError: it is not that file.
    """
    try:
        held = loadmat(path)
        parts = {p: tuple(torch.tensor(roll, dtype=torch.float32) for roll in held[f"{p}data"].ravel()) for p in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not JSB_Chorales.mat: {error}") from error
    if any(roll.dim() != 2 or roll.shape[1] != PITCHES for part in parts.values() for roll in part):
        raise DataError(f"{path} is not JSB_Chorales.mat: its rolls must be (T, {PITCHES})")
    return Dataset("JSB chorales", "bernoulli", parts["train"], parts["valid"], parts["test"])


class Chorist(torch.nn.Module):
    """The network of the paper, and the bounds of whole sequences."""

    def __init__(self, train: Sequence[Series]) -> None:
        super().__init__()
        wide = (WIDTH,)
        self.vrnn = VRNN(
            PITCHES, WIDTH, WIDTH, cell="lstm", phi_x=wide, phi_z=wide, encoder=wide, prior=wide, decoder=wide,
            residual=True, std=Std(offset=0.5),
        )  # fmt: skip
        frames = torch.cat([roll[:] for roll in train])
        with torch.no_grad():
            self.vrnn.get_parameter("dec_mean.0.bias").copy_(((frames.sum(0) + 1) / (len(frames) + 2)).logit())

    def first_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Compute (1, B, 32) h and c: the cell's answer to a silent frame."""
        cell = Equations(self.vrnn.spec, [self.vrnn.get_parameter(p.name) for p in self.vrnn.spec.parameters()])
        nothing = torch.zeros(1, WIDTH)
        h, c = cell.recur(cell.phi_x(torch.zeros(1, PITCHES)), nothing, (nothing, nothing))
        return h.expand(1, batch, WIDTH), c.expand(1, batch, WIDTH)

    def forward(self, rolls: Sequence[Series], kind: BoundKind, particles: int, generator: torch.Generator) -> Tensor:
        """Compute the bound of each roll, (B,)."""
        x, lengths = pad(rolls)
        state = self.first_state(len(rolls))
        return self.vrnn.bound(
            x, objective=kind, num_particles=particles, lengths=lengths, state=state, generator=generator
        )

    @torch.no_grad()
    def nats(self, rolls: Sequence[Series], kinds: Sequence[BoundKind], particles: int, rows: int = 1280) -> Nats:
        """Compute bounds per time step of all rolls, always with the same noise, so many rows in a launch."""
        by_length, at_once = sorted(rolls, key=len), max(1, rows // particles)
        found: Nats = {}
        for kind in kinds:
            noise = torch.Generator().manual_seed(1)
            batches = (by_length[i : i + at_once] for i in range(0, len(rolls), at_once))
            total = sum(float(self(batch, kind, particles, noise).sum()) for batch in batches)
            found[kind] = total / sum(map(len, rolls))
        return found


def run(setting: Hyperparameters, data: Dataset, console: Console) -> Result:
    """Train at every learning rate, choose by the validation part, measure."""
    trials, best, kept = [], -math.inf, None
    for learning_rate in setting.learning_rates:
        trial, trained = train(setting, learning_rate, data, console)
        trials.append(trial)
        if kept is None or trial.best[1] > best:
            best, kept = trial.best[1], trained
    assert kept is not None
    start = perf_counter()
    valid, test = (kept.nats(part, KINDS, setting.measures) for part in (data.valid, data.test))
    result = Result(setting, machine(), trials, valid, test, round(perf_counter() - start, 1))
    listed = ", ".join(f"{kind} {nats:.3f}" for kind, nats in test.items())
    console.print(f"{result.name}: lr {result.kept.learning_rate:g}, epoch {result.kept.best[0]} kept, test {listed}")
    return result


def train(setting: Hyperparameters, learning_rate: float, data: Dataset, console: Console) -> tuple[Trial, Chorist]:
    """Train one trial, and return the running mean of the parameters where it validated best."""
    trial, start = Trial(learning_rate), perf_counter()
    torch.manual_seed(setting.seed)
    model = Chorist(data.train)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(setting.average))
    averaged = cast(Chorist, mean.module)
    kept = averaged.state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=setting.weight_decay, fused=True)
    order, noise = (torch.Generator().manual_seed(setting.seed) for _ in range(2))
    for epoch in range(1, setting.epochs + 1):
        for indices in bucketed([len(roll) for roll in data.train], setting.batch_size, order):
            rolls = [data.train[i] for i in indices]
            bound: Tensor = model(rolls, setting.kind, setting.particles, noise)
            loss = -bound.sum() / sum(map(len, rolls))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean.update_parameters(model)
        if epoch % setting.every:
            continue
        found = averaged.nats(data.valid, ("fivo",), setting.judges)["fivo"]
        trial.history.append((epoch, found))
        trial.seconds = round(perf_counter() - start, 1)
        name = f"{setting.kind}-{setting.seed}, lr {learning_rate:g}"
        console.print(f"{name}: epoch {epoch}, {trial.seconds:.0f} s, validation {found:.3f}")
        if trial.best[0] == epoch:
            kept = {name: t.clone() for name, t in averaged.state_dict().items()}
        elif epoch - trial.best[0] >= setting.patience:
            break
    model.load_state_dict(kept)
    return trial, model


def machine() -> dict[str, object]:
    """Describe this machine and this checkout."""
    described = Record.begin().heading
    return {
        key: described[key] for key in ("processor", "cores", "threads", "kernel_build", "versions", "commit", "date")
    }
