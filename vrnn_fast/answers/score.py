"""How unlikely each observation is, given those before it."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import checks, inputs, particles, resampling
from ..call import ModelCall
from ..executors.base import full_precision
from ..padding import at_real, with_frames
from ..particles import Measured
from .proposal import Blinded, blind

Proposal = Literal["prior", "posterior"]


class Scoring(NamedTuple):
    """How :meth:`.Answers.score` measures."""

    num_particles: int
    per_feature: bool
    proposal: Proposal

    def checked(self, call: ModelCall) -> Scoring:
        """Raise ValueError or TypeError, naming it, where one is out of its domain; without z one particle is all."""
        checks.integer("num_particles", self.num_particles)
        checks.flag("per_feature", self.per_feature)
        checks.one_of("proposal", self.proposal, get_args(Proposal))
        if self.per_feature and not call.likelihood.takes_mask:
            raise ValueError(f"per_feature needs a likelihood with marginal_log_prob, and {call.likelihood} has none")
        if self.per_feature and self.proposal == "posterior" and call.spec.latent_size:
            raise ValueError(
                "per_feature needs proposal='prior': the posterior's samples explain x_t whole, and hardly any lies "
                "where a feature alone would have it"
            )
        return self if call.spec.latent_size else self._replace(num_particles=1, proposal="posterior")


def score(
    call: ModelCall, given: inputs.Given, scoring: Scoring, measured: Measured, blinded: Blinded | None
) -> Tensor:
    """Compute -log p(x_t | x_<t): arguments, result and errors are those of :meth:`.Answers.score`."""
    count = scoring.num_particles
    batch = inputs.batch_of(call, given, (("num_particles", count),))
    if scoring.proposal == "prior":
        assert blinded is not None  # there is z
        call, measured = blind(call, blinded.spec), blinded.measured
        batch = batch if call.spec.cond_size else batch._replace(cond=None)
    steps, sequences = batch.x.shape[:2]
    uniforms = resampling.uniforms("systematic", steps, sequences, count, batch.x, given.generator)
    found = particles.run(call, measured, batch, uniforms, raw=scoring.per_feature)
    before = found.accumulated()[:-1]
    before = before - before.logsumexp(-1, keepdim=True)  # log-weights that add up to 1
    if found.raw is None:
        surprise = -(before + found.log_weights).logsumexp(-1)
        return call.turned(surprise.to(batch.x.dtype))
    real = batch.real()
    x = with_frames(batch.x, real, batch.lengths)
    if batch.mask is not None:
        x = torch.where(batch.mask, x, torch.zeros_like(x))
    with full_precision(x.device):
        each = call.likelihood.log_prob_of_each(found.raw, x.unsqueeze(2))
    surprise = -((before - found.log_ratio).unsqueeze(-1) + each).logsumexp(2).to(batch.x.dtype)
    if batch.mask is not None:
        surprise = torch.where(batch.mask, surprise, torch.zeros_like(surprise))
    return call.turned(at_real(real, surprise))
