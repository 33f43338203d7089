"""How sequences go on."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, generation, inputs, particles, resampling
from ..call import ModelCall
from ..executors.base import full_precision
from .result import Forecast


def forecast(
    call: ModelCall,
    given: inputs.Given,
    horizon: int,
    num_samples: int,
    future_cond: Tensor | None,
    measured: particles.Measured,
) -> Forecast:
    """Draw what comes after sequences: arguments, result and errors are those of :meth:`.Answers.forecast`."""
    draws = generation.Draws(horizon, 1.0, True, given.generator, num_samples)
    checks.integer("horizon", horizon)
    draws = draws.checked(call.like.device)
    count = num_samples if call.spec.latent_size else 1
    batch = inputs.batch_of(call, given, (("num_samples", count),))
    steps, sequences = batch.x.shape[:2]
    inputs.has_condition(call, "future_cond", future_cond)
    if future_cond is not None:
        size = "cond_size", call.spec.cond_size
        future_cond = inputs.sequence(call, "future_cond", future_cond, horizon, sequences, size)
        if call.check_values:
            checks.finite("future_cond", future_cond, swap=call.batch_first)
        future_cond = future_cond.repeat_interleave(num_samples, 1)
    uniforms = resampling.uniforms("systematic", steps, sequences, count, batch.x, given.generator)
    found = particles.run(call, measured, batch, uniforms)
    chosen = particles.draw(found.accumulated()[-1], num_samples, batch.x, given.generator)
    rows = (chosen + count * torch.arange(sequences, device=chosen.device).unsqueeze(1)).flatten()
    begin = tuple(layer.index_select(0, rows) for layer in found.state)
    eps = inputs.noise(call, horizon, sequences * num_samples, generator=given.generator)
    with full_precision(call.like.device):
        x, _ = generation.drawn(call, eps, begin, future_cond, draws)
    x = x.unflatten(1, (sequences, num_samples)).movedim(2, 0)
    return Forecast((x.transpose(1, 2) if call.batch_first else x).detach())
