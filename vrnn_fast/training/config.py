"""What a run is told: which model to train, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .. import checks
from ..cell.spec import Activation, Cell
from ..data.dataset import Output
from ..model import VRNN

Schedule = Literal["cosine", "linear", "constant"]
MAX_SEED = 2**63 - 1


class RunError(RuntimeError):
    """A run cannot start or go on."""


@dataclass(frozen=True)
class ModelConfig:
    """The part of :class:`VRNN`'s arguments that a run may choose. ``width`` is that of every hidden layer."""

    input_size: int
    likelihood: Output
    hidden_size: int = 100
    latent_size: int = 16
    width: int = 100
    cell: Cell = "gru"
    activation: Activation = "leaky_relu"

    def build(self, backend: str = "auto") -> VRNN:
        """A freshly initialised model.

        Raises:
            RunError: an argument is out of its domain, or the backend cannot run such a model.
        """
        w = self.width
        try:
            model = VRNN(
                self.input_size, self.hidden_size, self.latent_size, cell=self.cell, activation=self.activation,
                phi_x=(w, w), phi_z=(w,), encoder=(w, w), prior=(w,), decoder=(w, w),
                likelihood=self.likelihood, backend=backend,
            )  # fmt: skip
            model.explain()
        except (ValueError, RuntimeError) as error:
            raise RunError(str(error)) from error
        return model


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains.

    Attributes:
        learning_rate: AdamW's, at its highest.
        schedule: how it falls from there to zero at the last step; ``"constant"`` does not.
        warmup: optimiser steps over which it first rises.
        clip: the largest norm of the gradient of all parameters together.
        anneal: epochs over which the weight of the KL rises from zero to one.
        free_nats: KL per time step below which nothing is gained: a lower one costs as much as this.
        patience: epochs without a better validation bound after which training stops; 0 trains to the end.
    """

    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 4e-3
    schedule: Schedule = "cosine"
    warmup: int = 50
    weight_decay: float = 0.3
    clip: float = 1.0
    anneal: float = 20.0
    free_nats: float = 0.0
    patience: int = 15
    seed: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        try:
            for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("patience", 0)):
                checks.integer(name, getattr(self, name), least=least)
            checks.integer("seed", self.seed, least=0, most=MAX_SEED)
            for name in ("learning_rate", "weight_decay", "anneal", "free_nats"):
                checks.positive(name, getattr(self, name), zero=name != "learning_rate")
            checks.one_of("schedule", self.schedule, get_args(Schedule))
        except ValueError as error:
            raise RunError(str(error)) from None
        if not self.clip > 0:
            raise RunError(f"clip must be a number > 0, or infinity, got {self.clip}")

    def learning_rate_at(self, progress: float, step: int) -> float:
        """For optimiser step ``step``, a ``progress`` from 0 to 1 into the run."""
        factor = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return self.learning_rate * factor[self.schedule] * min(1.0, (step + 1) / max(1, self.warmup))

    def kl_weight_at(self, epochs: float) -> float:
        """After so many epochs, fractions included."""
        return min(1.0, epochs / self.anneal) if self.anneal else 1.0
