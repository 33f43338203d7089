"""A bound from several samples of z: the particles of each sequence as rows side by side, in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from . import bounds, checks, executors, inference, inputs
from . import resampling as filtering
from .call import ModelCall
from .cell.spec import CellSpec, Objective
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


def measured(spec: CellSpec) -> Mapping[str, CellSpec]:
    """Return a cell as it measures the log-weights of samples, by objective."""
    objectives: tuple[Objective, ...] = ("log_weight", "particle_filter")
    return {o: replace(spec, objective=o) for o in objectives if o == "log_weight" or spec.likelihood != "external"}


def bound(
    call: ModelCall,
    specs: Mapping[str, CellSpec],
    batch: Batch,
    wanted: Bound,
    uniforms: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Compute the bound of each sequence of a batch whose eps is (T, B, N, Z): (B,) in nats. ``specs`` are
    :func:`measured`."""
    particles = wanted.num_particles
    steps, sequences = batch.x.shape[:2]
    if uniforms is not None:
        uniforms = inputs.sequence(call, "uniforms", uniforms, steps, sequences, wanted.particles)
        checks.within("uniforms", uniforms, 0, 1)
    elif wanted.filters:
        uniforms = filtering.uniforms(wanted.resampling, steps, sequences, particles, batch.x, generator)

    fused = wanted.filters and not call.external
    spec = specs["particle_filter" if fused else "log_weight"]
    executor = executors.choose(call.backend, spec, batch.x, particles if fused else 1)

    def launch(rows: Batch) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        result, nll = inference.run(call, spec, executor, rows, rows.real())
        return -(nll + result.kl), result.state, result.ancestors

    rows, ancestors = batch.repeated(particles), None
    if uniforms is None:
        log_weights, *_ = launch(rows)
    elif fused:
        log_weights, _, ancestors = launch(rows._replace(uniforms=uniforms, threshold=wanted.threshold))
    else:
        log_weights, ancestors = bounds.filtered(launch, rows, uniforms, wanted.threshold)
    log_weights = log_weights.unflatten(1, (sequences, particles))
    if ancestors is not None:
        return bounds.fivo(log_weights, ancestors[..., 0] >= 0)
    return bounds.elbo(log_weights) if wanted.objective == "elbo" else bounds.iwae(log_weights)
