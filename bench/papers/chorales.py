"""The chorales, the network that learns them, and a run from the first step to the last measurement."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import cast, get_args

import torch
from rich.console import Console
from scipy.io import loadmat
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vrnn_fast import VRNN, Std
from vrnn_fast.bounds import Kind
from vrnn_fast.data import Dataset, bucketed, pad
from vrnn_fast.data.dataset import PARTS, DataError
from vrnn_fast.executors.reference import Cell

from ..record import Record

PITCHES, WIDTH = 88, 32
KINDS: tuple[Kind, ...] = get_args(Kind)

Nats = dict[Kind, float]


@dataclass(frozen=True)
class Setting:
    """How a run trains.

    Attributes:
        kind: the bound that training maximises.
        learning_rate, weight_decay: Adam's, the decay decoupled from the gradient (Loshchilov and Hutter 2019).
        average: of the running mean of the parameters, per optimiser step.
        every: epochs between two validations.
        patience: validations without a better one after which training stops.
        judges: particles of a validation.
        measures: particles of the final measurement.
    """

    kind: Kind
    seed: int
    particles: int = 4
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.3
    average: float = 0.99
    epochs: int = 300
    every: int = 5
    patience: int = 6
    judges: int = 16
    measures: int = 128


@dataclass
class Result:
    """What a run came to: nats per time step, of all the steps of a part together.

    Attributes:
        history: epoch, and the bounds of the validation part after it.
        valid, test: the bounds of the kept parameters.
        seconds: of training with its validations, and of the final measurement.
    """

    setting: Setting
    machine: dict[str, object]
    history: list[tuple[int, Nats]] = field(default_factory=list)
    best_epoch: int = 0
    valid: Nats = field(default_factory=dict)
    test: Nats = field(default_factory=dict)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.setting.kind}-{self.setting.seed}"

    @classmethod
    def of_json(cls, text: str) -> Result:
        fields = json.loads(text)
        history = [(epoch, nats) for epoch, nats in fields["history"]]
        seconds = cast(tuple[float, float], tuple(fields["seconds"]))
        return cls(**{**fields, "setting": Setting(**fields["setting"]), "history": history, "seconds": seconds})


def read(path: Path) -> Dataset:
    """The three parts of the file.

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

    def __init__(self, train: Sequence[Tensor]) -> None:
        super().__init__()
        wide = (WIDTH,)
        self.vrnn = VRNN(
            PITCHES, WIDTH, WIDTH, cell="lstm", phi_x=wide, phi_z=wide, encoder=wide, prior=wide, decoder=wide,
            residual=True, std=Std(shift=0.5),
        )  # fmt: skip
        frames = torch.cat(list(train))
        with torch.no_grad():
            self.vrnn.get_parameter("dec_mean.0.bias").copy_(((frames.sum(0) + 1) / (len(frames) + 2)).logit())

    def first_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """(1, B, 32) h and c: the cell's answer to a silent frame."""
        cell = Cell(self.vrnn.spec, [self.vrnn.get_parameter(p.name) for p in self.vrnn.spec.parameters()])
        nothing = torch.zeros(1, WIDTH)
        h, c = cell.recur(cell.phi_x(torch.zeros(1, PITCHES)), nothing, (nothing, nothing))
        return h.expand(1, batch, WIDTH), c.expand(1, batch, WIDTH)

    def forward(self, rolls: Sequence[Tensor], kind: Kind, particles: int, generator: torch.Generator) -> Tensor:
        """The bound of each roll, (B,)."""
        x, lengths = pad(rolls)
        state = self.first_state(len(rolls))
        return self.vrnn.bound(x, kind, particles, lengths, state, generator=generator)

    @torch.no_grad()
    def nats(self, rolls: Sequence[Tensor], particles: int, rows: int = 1280) -> Nats:
        """All three bounds per time step, always with the same noise, so many rows in a launch."""
        by_length, at_once = sorted(rolls, key=len), max(1, rows // particles)
        found: Nats = {}
        for kind in KINDS:
            noise = torch.Generator().manual_seed(1)
            batches = (by_length[i : i + at_once] for i in range(0, len(rolls), at_once))
            total = sum(float(self(batch, kind, particles, noise).sum()) for batch in batches)
            found[kind] = total / sum(map(len, rolls))
        return found


def run(setting: Setting, data: Dataset, console: Console) -> Result:
    """Train, choose by the validation part, measure."""
    result, start = Result(setting, _machine()), perf_counter()
    torch.manual_seed(setting.seed)
    model = Chorist(data.train)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(setting.average))
    averaged = cast(Chorist, mean.module)
    kept, best = model.state_dict(), -math.inf
    matrices, biases = ([p for p in model.parameters() if (p.dim() > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting.learning_rate, fused=True)
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
        nats = averaged.nats(data.valid, setting.judges)
        result.history.append((epoch, nats))
        console.print(f"{result.name}: epoch {epoch}, {perf_counter() - start:.0f} s, validation {_listed(nats)}")
        if max(nats.values()) > best:
            best, result.best_epoch = max(nats.values()), epoch
            kept = {name: t.clone() for name, t in averaged.state_dict().items()}
        elif epoch - result.best_epoch >= setting.patience * setting.every:
            break
    trained = perf_counter()
    model.load_state_dict(kept)
    result.valid, result.test = (model.nats(part, setting.measures) for part in (data.valid, data.test))
    result.seconds = round(trained - start, 1), round(perf_counter() - trained, 1)
    console.print(f"{result.name}: epoch {result.best_epoch} kept, test {_listed(result.test)}")
    return result


def _listed(nats: Nats) -> str:
    return ", ".join(f"{kind} {value:.3f}" for kind, value in nats.items())


def _machine() -> dict[str, object]:
    described = asdict(Record.begin())
    return {
        key: described[key] for key in ("processor", "cores", "threads", "kernel_build", "versions", "commit", "date")
    }
