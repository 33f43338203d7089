"""A bound from several samples of z for each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from . import bounds, checks, inputs, particles
from . import resampling as filtering
from .call import ModelCall
from .cell.spec import CellSpec
from .executors.base import Batch


class Bound(NamedTuple):
    """Which bound to measure: see :meth:`VRNN.bound`."""

    objective: bounds.BoundKind
    num_particles: int
    threshold: float
    resampling: filtering.Resampling

    @classmethod
    def checked(
        cls, objective: bounds.BoundKind, num_particles: int, threshold: float, resampling: filtering.Resampling
    ) -> Bound:
        """Raise ValueError or TypeError, naming it, where one is out of its domain."""
        checks.one_of("objective", objective, get_args(bounds.BoundKind))
        checks.integer("num_particles", num_particles)
        checks.one_of("resampling", resampling, get_args(filtering.Resampling))
        return cls(objective, num_particles, checks.share("threshold", threshold), resampling)

    @property
    def filters(self) -> bool:
        """Whether particles are drawn anew."""
        return self.objective == "fivo"

    def check_noise(self, eps: Tensor | None, uniforms: Tensor | None, generator: torch.Generator | None) -> None:
        """Raise ValueError where what is given would have no effect."""
        if uniforms is not None and not self.filters:
            raise ValueError(f"uniforms are for objective='fivo' to resample with, got objective={self.objective!r}")
        if generator is not None and eps is not None and (uniforms is not None or not self.filters):
            both = "eps and uniforms are" if self.filters else "eps is"
            raise ValueError(f"leave out generator: {both} given, and nothing is left to draw")

    @property
    def particles(self) -> inputs.Size:
        """The dimension that noise has for them."""
        return "num_particles", self.num_particles


def bound(
    call: ModelCall,
    specs: Mapping[str, CellSpec],
    batch: Batch,
    wanted: Bound,
    uniforms: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Compute the bound of each sequence of a batch whose eps is (T, B, N, Z): (B,) in nats. ``specs`` are
    :func:`.particles.measured`."""
    steps, sequences = batch.x.shape[:2]
    if uniforms is not None:
        uniforms = inputs.sequence(call, "uniforms", uniforms, steps, sequences, wanted.particles)
        checks.within("uniforms", uniforms, 0, 1)
    elif wanted.filters:
        uniforms = filtering.uniforms(wanted.resampling, steps, sequences, wanted.num_particles, batch.x, generator)
    found = particles.run(call, specs, batch, uniforms, wanted.threshold)
    if found.resampled is not None:
        return bounds.fivo(found.log_weights, found.resampled)
    return (bounds.elbo if wanted.objective == "elbo" else bounds.iwae)(found.log_weights)
