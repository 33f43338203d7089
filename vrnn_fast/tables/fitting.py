"""The training of a model on series: windows of them from anywhere, ragged, with gaps."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model import VRNN
from ..outputs import VRNNOutput
from .reader import TimeSeries, steps_trained

CLIP = 1.0  # of the gradient's norm
WARMUP = 0.2  # of the updates, over which the weight of the KL rises from 0 to 1
EVERY = 50  # updates from one validation to the next


class Windows(NamedTuple):
    """Sequences side by side: x (T, B, X), mask, lengths (B,), cond (T, B, C) or None."""

    x: Tensor
    mask: Tensor
    lengths: Tensor
    cond: Tensor | None


@dataclass(frozen=True)
class Fitting:
    """How long and how fast to train: see :class:`.base.Estimator`."""

    updates: int
    batch_size: int
    window: int
    learning_rate: float
    validation: float
    patience: int
    seed: int
    verbose: bool


def stacked(series: Sequence[TimeSeries], device: torch.device) -> Windows:
    """Pad series to the longest."""
    steps, batch = max(len(s.values) for s in series), len(series)
    x = np.full((steps, batch, series[0].values.shape[1]), np.nan, dtype=np.float32)
    cond = np.zeros((steps, batch, series[0].covariates.shape[1]), dtype=np.float32)
    for b, one in enumerate(series):
        x[: len(one.values), b], cond[: len(one.values), b] = one.values, one.covariates
    values = torch.from_numpy(x).to(device)
    lengths = torch.tensor([len(s.values) for s in series], device=device)
    told = torch.from_numpy(cond).to(device) if cond.shape[2] else None
    return Windows(values, ~values.isnan(), lengths, told)


def fit(model: VRNN, series: Sequence[TimeSeries], fitting: Fitting) -> list[float]:
    """Train on the beginning of each series, and keep the parameters by which its end is most likely.

    Without a share for validation, the last parameters stay.

    Returns:
        nats per step, of the end of each series, every 50 updates.
    """
    device = next(model.parameters()).device
    chance, generator = np.random.default_rng(fitting.seed), torch.Generator(device).manual_seed(fitting.seed)
    train, valid = [], []
    for one in series:
        steps = steps_trained(len(one.values), fitting.validation)
        train.append(one.part(slice(steps)))
        valid += [one.part(slice(i, i + fitting.window)) for i in range(steps, len(one.values), fitting.window)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=fitting.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fitting.updates)
    history: list[float] = []
    best = copy.deepcopy(model.state_dict())
    for update in range(1, fitting.updates + 1):
        batch = stacked(_drawn(train, fitting, chance), device)
        optimizer.zero_grad()
        _loss(model, batch, generator, min(1.0, update / (WARMUP * fitting.updates))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if update % EVERY and update < fitting.updates:
            continue
        history.append(_validated(model, valid or train, fitting, device))
        if not math.isfinite(history[-1]):
            raise RuntimeError(
                f"training diverged within {update} updates: a bound is {history[-1]}. Lower learning_rate"
            )
        if fitting.verbose:
            print(f"update {update} of {fitting.updates}: {history[-1]:.4f} nats per step", flush=True)
        since = len(history) - 1 - int(np.argmin(history))
        if not valid or not since:
            best = copy.deepcopy(model.state_dict())
        elif fitting.patience and since >= fitting.patience:
            break
    model.load_state_dict(best)
    return history


def _drawn(series: Sequence[TimeSeries], fitting: Fitting, chance: np.random.Generator) -> list[TimeSeries]:
    """Draw windows from anywhere, each place where one may begin as likely as any other."""
    starts = np.array([max(1, len(s.values) - fitting.window + 1) for s in series])
    found = []
    for place in chance.integers(starts.sum(), size=fitting.batch_size):
        index = int(np.searchsorted(starts.cumsum(), place, side="right"))
        begin = int(place - starts[:index].sum())
        found.append(series[index].part(slice(begin, begin + fitting.window)))
    return found


def _loss(model: VRNN, batch: Windows, generator: torch.Generator, beta: float) -> Tensor:
    x, mask, lengths, cond = batch
    out: VRNNOutput = model(x, lengths, mask=mask, mask_inputs=True, cond=cond, generator=generator, beta=beta)
    return out.loss


@torch.no_grad()
def _validated(model: VRNN, series: Sequence[TimeSeries], fitting: Fitting, device: torch.device) -> float:
    """Average nats per step, by the same noise every time."""
    generator, total, steps = torch.Generator(device).manual_seed(fitting.seed), 0.0, 0
    for i in range(0, len(series), fitting.batch_size):
        batch = stacked(series[i : i + fitting.batch_size], device)
        count = int(batch.lengths.sum())
        total += _loss(model, batch, generator, 1.0).item() * count
        steps += count
    return total / steps
