"""What a run is told: how to train, and in what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .. import checks

LearningRateSchedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "tf32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


class RunError(RuntimeError):
    """A run cannot start or go on. ``everywhere`` where all ranks raise it, so that one of them is enough to say it."""

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def one_line(error: BaseException) -> str:
    """Return its message without line breaks."""
    return " ".join(str(error).split())


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains.

    Args:
        epochs: passes over the training part.
        batch_size: sequences of an optimiser step, on all ranks together.
        accumulate: parts that each rank computes the gradient of its sequences in, one after the other, for want of
            memory. The numbers are those of one part.
        segment: time steps after which a sequence is cut and its state carried on without a gradient (truncated
            backpropagation), each segment one optimiser step; 0 for whole sequences.
        learning_rate: AdamW's, at its highest.
        schedule: how it falls from there to zero at the last step; ``"constant"`` does not.
        warmup: optimiser steps over which it first rises.
        weight_decay: AdamW's.
        clip: the largest norm of the gradient of all parameters together.
        anneal: epochs over which the weight of the KL rises from zero to one.
        free_nats: KL per time step below which nothing is gained: a lower one costs as much as this.
        patience: epochs without a better validation bound after which training stops; 0 trains to the end.
        seed: of every random choice.
        backend: who runs the model: auto, or a name that ``vrnn-fast info`` lists.
        device: auto is a GPU for each process of a node where there are GPUs.
        precision: of products: float32; tf32 on GPUs that have it; or bfloat16, of parameters that are kept in float32.
        compile: whether torch.compile takes the model.
        shard: whether parameters, gradients and the optimiser's state are divided among the ranks (FSDP2).
        workers: processes of each rank that read data ahead; 0 reads between two steps.
        save_every: optimiser steps between two checkpoints beside those at the end of each epoch; 0 for none.
    """

    epochs: int = 40
    batch_size: int = 16
    accumulate: int = 1
    segment: int = 0
    learning_rate: float = 4e-3
    schedule: LearningRateSchedule = "cosine"
    warmup: int = 50
    weight_decay: float = 0.3
    clip: float = 1.0
    anneal: float = 20.0
    free_nats: float = 0.0
    patience: int = 15
    seed: int = 0
    backend: str = "auto"
    device: Device = "auto"
    precision: Precision = "float32"
    compile: bool = False
    shard: bool = False
    workers: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "accumulate": 1}
        at_least_zero = ("segment", "warmup", "patience", "workers", "save_every")
        try:
            for name, smallest in {**least, **dict.fromkeys(at_least_zero, 0)}.items():
                checks.integer(name, getattr(self, name), least=smallest)
            checks.integer("seed", self.seed, least=0, most=checks.MAX_SEED)
            for name in ("learning_rate", "weight_decay", "anneal", "free_nats"):
                checks.positive(name, getattr(self, name), zero=name != "learning_rate")
            for name, kind in (("schedule", LearningRateSchedule), ("precision", Precision), ("device", Device)):
                checks.one_of(name, getattr(self, name), get_args(kind))
            for name in ("compile", "shard"):
                checks.flag(name, getattr(self, name))
        except (ValueError, TypeError) as error:
            raise RunError(str(error)) from None
        if not self.clip > 0:
            raise RunError(f"clip must be a number > 0, or infinity, got {self.clip}")

    def learning_rate_at(self, progress: float, step: int) -> float:
        """Compute that of optimiser step ``step``, a ``progress`` from 0 to 1 into the run."""
        factor = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return self.learning_rate * factor[self.schedule] * min(1.0, (step + 1) / max(1, self.warmup))

    def kl_weight_at(self, epochs: float) -> float:
        """Compute the weight after so many epochs, fractions included."""
        return min(1.0, epochs / self.anneal) if self.anneal else 1.0
