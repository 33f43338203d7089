"""Weighted samples of z along sequences: the particles of each sequence as rows side by side, in one launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import executors, inference, resampling
from .call import ModelCall
from .cell.spec import CellSpec, Measure
from .executors.base import Batch, SequenceResult

THRESHOLD = 0.5  # of the effective sample size: a share of the particles
_LEAST = -1e4  # of a particle's log-weight, relative to the best one of its step: exp() of it is 0


class Particles(NamedTuple):
    """Particles of every sequence, as a launch left them.

    Attributes:
        log_weights: (T, B, N) log w_t of each step alone, 0 at padding: see :mod:`vrnn_fast.bounds`.
        log_ratio: (T, B, N) log q(z_t) - log p(z_t) of their samples, 0 at padding.
        state: (B * N, H) tensors, after each row's own last step.
        ancestors: (T, B, N) whom each goes on from after the step, as :class:`.resampling.Filter` gives them; None
            where they were never drawn anew.
        raw: (T, B, N, R) the decoder's raw output, if asked for.
    """

    log_weights: Tensor
    log_ratio: Tensor
    state: tuple[Tensor, ...]
    ancestors: Tensor | None
    raw: Tensor | None

    @property
    def resampled(self) -> Tensor | None:
        """(T, B) bool, true where the particles were drawn anew at the end of the step."""
        return None if self.ancestors is None else self.ancestors[..., 0] >= 0

    def accumulated(self) -> Tensor:
        """Add up log-weights since the particles were last drawn anew, up to a constant for each sequence and step.

        Returns:
            (T + 1, B, N) float64: before each step, and after the last one. Where no particle has a weight above 0, all
            have the same.
        """
        each = relative(self.log_weights.double())
        upto: Tensor = torch.cat([torch.zeros_like(each[:1]), each.cumsum(0)])
        if self.resampled is None:
            return upto
        steps = torch.arange(1, each.shape[0] + 1, device=each.device).unsqueeze(1)
        begun = torch.where(self.resampled, steps, 0).cummax(0).values
        begun = torch.cat([torch.zeros_like(begun[:1]), begun]).unsqueeze(-1).expand_as(upto)
        since: Tensor = upto - upto.gather(0, begun)
        return since


def relative(log_weights: Tensor) -> Tensor:
    """Return log-weights (..., N) up to a constant, all of them finite: 0 for the best one of a step, and for all where
    none has a weight above 0."""
    best = log_weights.detach().amax(-1, keepdim=True)
    return torch.where(best.isfinite(), log_weights - best, 0.0).clamp(min=_LEAST)


Measured: TypeAlias = Mapping[str, CellSpec]


def measured(spec: CellSpec) -> Measured:
    """Return a cell as it measures the log-weights of samples, by measure."""
    measures: tuple[Measure, ...] = ("log_weight", "particle_filter")
    return {m: replace(spec, measure=m) for m in measures if m == "log_weight" or spec.likelihood != "external"}


def run(
    call: ModelCall,
    specs: Measured,
    batch: Batch,
    uniforms: Tensor | None,
    threshold: float = THRESHOLD,
    *,
    raw: bool = False,
) -> Particles:
    """Draw and weigh particles along a batch of sequences whose eps is (T, B, N, Z).

    One launch; with a filter and a likelihood that the launch does not compute, one for every time step.

    Args:
        call: whose model.
        specs: of its cell, :func:`measured`.
        batch: of B rows.
        uniforms: (T, B, N) in [0, 1], what a filter draws with at the end of each step; None never draws anew.
        threshold: it does where the effective sample size is below this share of N.
        raw: whether to return the decoder's output.
    """
    sequences, particles = batch.eps.shape[1:3]
    fused = uniforms is not None and not call.external
    spec = specs["particle_filter" if fused else "log_weight"]
    executor = executors.choose(call.backend, spec, batch.x, particles if fused else 1)
    outputs = ("prediction",) if raw else ()

    def launch(rows: Batch) -> tuple[SequenceResult, Tensor]:
        return inference.run(call, spec, executor, rows, rows.real(), outputs)

    rows = batch.repeated(particles)
    if fused:
        rows = rows._replace(uniforms=uniforms, threshold=threshold)
    if fused or uniforms is None:
        result, nll = launch(rows)
        kl, state, ancestors, found = result.kl, result.state, result.ancestors, result.raw
    else:
        deal, state, steps = resampling.Filter(uniforms, threshold, rows.lengths), rows.state, []
        for t in range(uniforms.shape[0]):
            result, nll = launch(rows.step(t, state))
            state = deal.step(-(nll + result.kl), result.state)
            steps.append((nll, result.kl, *([result.raw] if raw and result.raw is not None else [])))
        nll, kl, *rest = (torch.cat(tensors) for tensors in zip(*steps, strict=True))
        ancestors, found = torch.stack(deal.ancestors), next(iter(rest), None)

    sizes = sequences, particles
    kept = found.unflatten(1, sizes) if raw and found is not None else None
    return Particles(-(nll + kl).unflatten(1, sizes), kl.unflatten(1, sizes), state, ancestors, kept)


def draw(log_weights: Tensor, num_samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw particles in proportion to their weights, systematically: log-weights (B, N) -> (B, num_samples) int64."""
    uniforms = resampling.uniforms("systematic", 1, log_weights.shape[0], num_samples, like, generator)[0]
    return resampling.ancestors(log_weights, uniforms.to(log_weights.dtype))
