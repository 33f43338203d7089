"""How a run is doing: the numbers of its steps since somebody last looked."""

from __future__ import annotations

import resource
from typing import NamedTuple

import torch

from .evaluation import Sums
from .peak import peak_of
from .trainer import Step, Trainer


class Gauges(NamedTuple):
    """Averages over the steps since the last look.

    Attributes:
        bound, kl: nats per real time step.
        frames: real time steps per second of all ranks together; ``per_rank`` of each.
        share: of the peak of a rank's device, by the products of its matrices; None where the peak is not known.
        waited: share of the time in which the data was not there.
        gradient_norm: of the last step, before it was clipped.
        memory: GB that the first rank has had at most, of the GPU where it has one.
    """

    bound: float
    kl: float
    frames: float
    per_rank: float
    share: float | None
    waited: float
    gradient_norm: float
    memory: float

    def shown(self) -> dict[str, str]:
        """Return them as text, by what they are called."""
        return {
            "nats per step": f"{self.bound:.3f}",
            "KL": f"{self.kl:.3f}",
            "frames/s": f"{self.frames:,.0f}",
            "per rank": f"{self.per_rank:,.0f}",
            "of peak": "" if self.share is None else f"{self.share:.1%}",
            "input wait": f"{self.waited:.1%}",
            "gradient norm": f"{self.gradient_norm:.3g}",
            "memory": f"{self.memory:.2f} GB",
        }


class Meter:
    """Adds up the steps of a run, on the first rank."""

    def __init__(self, trainer: Trainer) -> None:
        self._ranks = trainer.ranks
        self.peak = peak_of(trainer.ranks.device, trainer.config.precision)
        # A multiplication and an addition for each weight, once forward and twice backward.
        self._flops = 6 * sum(p.numel() for p in trainer.model.parameters() if p.dim() == 2)
        self._sums, self._waited, self._norm = Sums(), 0.0, 0.0

    def add(self, step: Step) -> None:
        """Count a step."""
        self._sums += step.sums
        self._waited += step.waited
        self._norm = step.gradient_norm

    def read(self) -> Gauges:
        """Return what the steps since the last look came to, of which there must be one, and begin anew."""
        sums, frames = self._sums, self._sums.time_steps / self._sums.seconds
        per_rank = frames / self._ranks.size
        share = per_rank * self._flops / self.peak.flops if self.peak.flops else None
        waited = self._waited / sums.seconds
        self._sums, self._waited = Sums(), 0.0
        kl = sums.kl / sums.time_steps
        return Gauges(sums.bound, kl, frames, per_rank, share, waited, self._norm, self._memory())

    def _memory(self) -> float:
        if self._ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._ranks.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
