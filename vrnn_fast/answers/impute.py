"""What was not observed, drawn given what was."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import checks, inputs, particles, resampling
from ..call import ModelCall
from ..executors.base import Batch, full_precision
from ..executors.reference import Equations, log_ratio
from ..likelihoods import MeanStd
from ..padding import at_real, with_frames


class Imputation(NamedTuple):
    """How :meth:`.Answers.impute` draws."""

    num_samples: int
    num_particles: int
    smoothed: bool

    def checked(self) -> Imputation:
        """Raise ValueError or TypeError, naming it, where one is out of its domain."""
        checks.integer("num_samples", self.num_samples)
        checks.integer("num_particles", self.num_particles)
        checks.flag("smoothed", self.smoothed)
        return self


def impute(call: ModelCall, given: inputs.Given, imputation: Imputation) -> Tensor:
    """Draw what is missing: arguments, result and errors are those of :meth:`.Answers.impute`."""
    num_samples, count, smoothed = imputation
    checks.flag("mask_inputs", given.mask_inputs)
    features = "input_size", call.spec.input_size
    x = inputs.sequence(call, "x", given.x, None, None, features)
    mask = inputs.sequence(call, "mask", cast(Tensor, given.mask), *x.shape[:2], features, dtype=torch.bool)
    x = torch.where(mask, x, torch.zeros_like(x))
    seen = given._replace(x=call.turned(x), mask=given.mask if call.likelihood.takes_mask else None, mask_inputs=False)
    batch = inputs.batch_of(call, seen, (("num_particles", count),))
    if not call.likelihood.takes_mask:
        partly = at_real(batch.real(), (mask.any(-1) != mask.all(-1)).unsqueeze(-1))
        if bool(partly.any()):
            raise ValueError(
                f"mask must mark all features of a step or none: {call.likelihood} has no marginal_log_prob, by which "
                "some are drawn given others"
            )
    with full_precision(batch.x.device):
        drawn, log_weights, ancestors = _particles(call, batch, mask, given.mask_inputs, given.generator)
    if smoothed:
        return _turned(call, _histories(drawn, log_weights, ancestors, num_samples, given), batch, mask)
    chosen = particles.draw(log_weights.flatten(0, 1), num_samples, batch.x, given.generator)
    chosen = chosen.unflatten(0, log_weights.shape[:2])
    return _turned(call, _taken(drawn, chosen), batch, mask)


def _particles(
    call: ModelCall, batch: Batch, mask: Tensor, zeros: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Filter with what is missing among what is drawn; encoder and cell see ``zeros`` in its place, or what was drawn.

    Returns:
        (T, B, N, X) x of every particle, (T, B, N) their log-weights at the end of a step, before any is drawn anew,
        and (T, B, N) the ancestors after it.
    """
    cell = Equations(call.spec, call.parameters)
    (steps, sequences), count, real = batch.x.shape[:2], batch.eps.shape[2], batch.real()
    cond = None if batch.cond is None else at_real(real, batch.cond)
    rows = batch._replace(
        x=with_frames(batch.x, real, batch.lengths), eps=at_real(real, batch.eps), cond=cond, mask=mask
    ).repeated(count)
    uniforms = resampling.uniforms("systematic", steps, sequences, count, batch.x, generator)
    deal, state, real = resampling.Filter(uniforms, particles.THRESHOLD, rows.lengths), rows.state, rows.real()
    found: list[tuple[Tensor, Tensor]] = []
    for t in range(steps):
        x_t, seen, cond_t = rows.x[t], cast(Tensor, rows.mask)[t], None if rows.cond is None else rows.cond[t]
        h, whole = cell.top(state), seen.all(-1, keepdim=True) | zeros
        prior = cell.prior(h, cond_t)
        posterior = cell.posterior(cell.phi_x(x_t), h, prior, cond_t)
        proposal = MeanStd(*(torch.where(whole, q, p) for q, p in zip(posterior, prior, strict=True)))
        z = proposal.mean + proposal.std * rows.eps[t]
        phi_z = cell.phi_z(z, cond_t)
        raw = cell.decoder(z, phi_z, h, cond_t)
        drawn = torch.where(seen, x_t, call.likelihood.sample(raw, 1.0, generator).to(x_t.dtype))
        weights = _log_prob(call, raw, drawn, seen) - log_ratio(z, rows.eps[t], proposal, prior)
        after = cell.recur(cell.phi_x(x_t if zeros else drawn), phi_z, state, cond_t)
        if real is not None:
            weights = torch.where(real[t], weights, torch.zeros_like(weights))
            after = tuple(torch.where(real[t].unsqueeze(-1), a, s) for a, s in zip(after, state, strict=True))
        weights = particles.relative(weights.reshape(deal.log_weights.shape))
        found.append((drawn, deal.log_weights + weights))
        state = deal.step(weights, after)
    complete, log_weights = (torch.stack(tensors) for tensors in zip(*found, strict=True))
    return complete.unflatten(1, (sequences, count)), log_weights, torch.stack(deal.ancestors)


def _log_prob(call: ModelCall, raw: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """Compute log p(observed | missing, z) of each row: the weight of one whose missing features came from p(x | z)."""
    likelihood = call.likelihood
    if likelihood.independent:
        return likelihood.marginal_log_prob(raw, x, seen)
    log_prob = likelihood.log_prob(raw, x)
    if likelihood.takes_mask:
        return log_prob - likelihood.marginal_log_prob(raw, x, ~seen)
    return torch.where(seen.all(-1), log_prob, torch.zeros_like(log_prob))


def _taken(drawn: Tensor, chosen: Tensor) -> Tensor:
    """Return x of the chosen particles: (T, B, N, X), (T, B, K) -> (K, T, B, X)."""
    return drawn.gather(2, chosen.unsqueeze(-1).expand(*chosen.shape, drawn.shape[-1])).movedim(2, 0)


def _histories(drawn: Tensor, log_weights: Tensor, ancestors: Tensor, num_samples: int, given: inputs.Given) -> Tensor:
    """Follow particles of the last step back to the first one."""
    chosen = particles.draw(log_weights[-1], num_samples, drawn, given.generator)
    path = [chosen]
    for t in range(drawn.shape[0] - 2, -1, -1):
        parents = ancestors[t].gather(1, chosen)
        chosen = torch.where(parents < 0, chosen, parents)
        path.append(chosen)
    return _taken(drawn, torch.stack(path[::-1]))


def _turned(call: ModelCall, drawn: Tensor, batch: Batch, mask: Tensor) -> Tensor:
    """Put what was observed back, to the last bit, and zeros at padding: (K, T, B, X) in the layout of the caller."""
    complete = at_real(batch.real(), torch.where(mask, batch.x, drawn).movedim(0, 2)).movedim(2, 0)
    return complete.transpose(1, 2) if call.batch_first else complete
