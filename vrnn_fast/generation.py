"""A model that runs on its own: sequences drawn from it, and the prior's own course with gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, executors, inference, inputs
from .call import ModelCall
from .executors.base import Batch, full_precision
from .executors.reference import generate_by
from .likelihoods import MeanStd
from .outputs import VRNNRollout, each
from .resampling import widened
from .state import State, given, layers_of, paired, stacked, start


class Beginning(NamedTuple):
    """What drawn sequences go on from, as :meth:`VRNN.generate` describes it."""

    batch_size: int
    prefix: Tensor | None
    lengths: Tensor | None
    prefix_cond: Tensor | None
    state: State | None


class Draws(NamedTuple):
    """How sequences are drawn, as :meth:`VRNN.generate` describes it."""

    num_steps: int
    temperature: float
    sample_output: bool
    generator: torch.Generator | None
    num_samples: int | None

    def checked(self, device: torch.device) -> Draws:
        """Return the same with a float for the temperature.

        Raises:
            ValueError, TypeError: one of them is out of its domain, naming it.
        """
        checks.integer("num_steps", self.num_steps)
        given = self.temperature
        if isinstance(given, Tensor) and given.dim() == 0:
            given = given.item()
        temperature = checks.number("temperature", given, zero=False)
        checks.flag("sample_output", self.sample_output)
        checks.generator(self.generator, device)
        if self.num_samples is not None:
            checks.integer("num_samples", self.num_samples)
        return self._replace(temperature=temperature)


def generate(call: ModelCall, beginning: Beginning, draws: Draws, cond: Tensor | None) -> tuple[Tensor, State]:
    """Draw sequences from the model: arguments, result and errors are those of :meth:`VRNN.generate`."""
    batch_size, prefix, lengths, prefix_cond, state = beginning
    num_steps, temperature, _, generator, num_samples = draws = draws.checked(call.like.device)
    checks.integer("batch_size", batch_size)
    if prefix is None:
        if lengths is not None:
            raise ValueError("lengths are those of a prefix: pass prefix too")
        if prefix_cond is not None:
            raise ValueError("prefix_cond is that of a prefix: pass prefix too")
        begin = layers_of(start(call, None, batch_size) if state is None else given(call, state, None))
    elif state is not None:
        raise ValueError("pass either `state` or `prefix`: the prefix determines the state")
    else:
        begin = _after(call, beginning, prefix, generator)
    batch = begin[0].shape[0]
    if state is not None and batch_size not in (1, batch):
        raise ValueError(f"batch_size must be the state's, {batch}, or left out, got {batch_size}")
    cond = inputs.condition(call, cond, num_steps, batch)
    if cond is not None and call.check_values:
        checks.finite("cond", cond, swap=call.batch_first)
    if num_samples is not None:
        begin = tuple(layer.repeat(num_samples, 1) for layer in begin)
        cond = None if cond is None else cond.repeat(1, num_samples, 1)
    eps = temperature * inputs.noise(call, num_steps, batch * (num_samples or 1), generator=generator)
    with full_precision(call.like.device):
        x, after = drawn(call, eps, begin, cond, draws)
    if num_samples is None:
        x = call.turned(x)
    else:
        x = x.unflatten(1, (num_samples, batch)).movedim(1, 0)
        x = x.transpose(1, 2) if call.batch_first else x
    return x.detach(), paired(stacked(after, call.spec.state_parts))  # detached: no view, like the state


def _after(
    call: ModelCall, beginning: Beginning, prefix: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """Compute the layers of the state after a prefix."""
    batch_size, lengths, cond = beginning.batch_size, beginning.lengths, beginning.prefix_cond
    batch = inputs.sequence(call, "prefix", prefix, None, None, ("input_size", call.spec.input_size)).shape[1]
    if batch_size not in (1, batch):
        raise ValueError(f"batch_size must be the prefix's, {batch}, or left out, got {batch_size}")
    inputs.has_condition(call, "prefix_cond", cond)
    seen = inputs.batch_of(call, inputs.Given(prefix, lengths, generator=generator, cond=cond))
    executor = executors.choose(call.backend, call.spec, seen.x)
    return inference.run(call, call.spec, executor, seen, seen.real())[0].state


def drawn(
    call: ModelCall, eps: Tensor, begin: tuple[Tensor, ...], cond: Tensor | None, draws: Draws
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draw x (T, B, X) that the cell makes of eps (T, B, Z), and the layers of the state after it."""
    _, temperature, sample_output, generator, _ = draws
    if call.external:

        def draw(raw: Tensor, t: int) -> Tensor:
            if not sample_output:
                return call.likelihood.mean(raw)
            return call.likelihood.sample(raw, temperature, generator)

        played = generate_by(draw, call.spec, call.parameters, eps, begin, cond)
        return played.x, played.state
    noise = widened(eps.new_zeros((*eps.shape[:2], call.spec.input_size)))  # 16 bits know no rare event
    if sample_output and call.spec.likelihood == "bernoulli":
        noise.uniform_(generator=generator).logit_().mul_(temperature)
    elif sample_output:
        noise.normal_(generator=generator).mul_(temperature)
    executor = executors.choose(call.backend, call.spec, eps)
    return executor.generate(call.spec, call.parameters, Batch(noise, eps, begin, cond=cond), mean=not sample_output)


def rollout(call: ModelCall, eps: Tensor, state: State | None, cond: Tensor | None) -> VRNNRollout:
    """Let the prior run on: arguments, result and errors are those of :meth:`VRNN.rollout_prior`."""
    eps = inputs.sequence(call, "eps", eps, None, None, ("Z", call.spec.latent_size))
    steps, batch = eps.shape[:2]
    begin = layers_of(start(call, state, batch))
    cond = inputs.condition(call, cond, steps, batch)
    with full_precision(call.like.device):
        played = generate_by(lambda raw, _: call.likelihood.mean(raw), call.spec, call.parameters, eps, begin, cond)
    return VRNNRollout(
        latent=call.turned(played.z),
        prior=MeanStd(*map(call.turned, played.prior)),
        prediction=each(call.turned, inference.prediction(call, played.raw)),
        state=paired(stacked(played.state, call.spec.state_parts)),
    )
