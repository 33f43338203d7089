"""The training of the small models of studies on signals with an input: x (T, B, X) given cond (T, B, C)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrnn_fast import VRNN


class Signals(NamedTuple):
    """Outputs y (T, B, Y) and inputs u (T, B, U)."""

    y: Tensor
    u: Tensor


@dataclass(frozen=True)
class TrainingCourse:
    """AdamW with a cosine schedule; the weight of the KL rises over a fifth of the updates. The parameters that
    validate best, every so many updates, stay."""

    updates: int
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    every: int = 50
    clip: float = 1.0


def learn(
    model: VRNN, drawn: Callable[[torch.Generator], Signals], valid: Signals, schedule: TrainingCourse, seed: int
) -> float:
    """Train a model on batches as they are drawn; returns the best validation bound in nats per step, higher is
    better."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.updates)
    best, kept = -math.inf, copy.deepcopy(model.state_dict())
    for update in range(1, schedule.updates + 1):
        y, u = drawn(generator)
        beta = min(1.0, 5 * update / schedule.updates)
        optimizer.zero_grad()
        model(y, cond=u, beta=beta, generator=generator).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        falling.step()
        if update % schedule.every == 0:
            with torch.no_grad():
                noise: dict[str, Any] = {"generator": torch.Generator().manual_seed(1)}
                found = -float(model(valid.y, cond=valid.u, **noise).loss)
            if found > best:
                best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best
