"""The arguments of a call, checked, as the batch that executors take."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import checks
from .call import ModelCall
from .executors.base import Batch
from .state import State, layers_of, start

Size: TypeAlias = tuple[str, int]  # the name of a dimension, and how large it must be


def sequence(
    call: ModelCall,
    name: str,
    value: Tensor,
    steps: int | None,
    batch: int | None,
    *sizes: Size,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Check an argument in the layout of the caller, and return it as (T, B, *sizes); steps or batch None is any of
    them."""
    rows = ("T", steps), ("B", batch)
    shape = (*(rows[::-1] if call.batch_first else rows), *sizes)
    return call.turned(checks.tensor(name, value, shape, call.like, dtype))


def condition(call: ModelCall, cond: Tensor | None, steps: int, batch: int) -> Tensor | None:
    """Check the conditioning input, and return it as (T, B, C)."""
    has_condition(call, "cond", cond)
    return None if cond is None else sequence(call, "cond", cond, steps, batch, ("cond_size", call.spec.cond_size))


def has_condition(call: ModelCall, name: str, cond: Tensor | None) -> None:
    """Raise ValueError where a conditioning input is missing, or there is none."""
    if cond is None and call.spec.cond_size:
        raise ValueError(f"{name} must be given: this model was built with cond_size={call.spec.cond_size}")
    if cond is not None and not call.spec.cond_size:
        raise ValueError(f"{name} must be left out: this model was built without cond_size")


def noise(call: ModelCall, *rows: int, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise (*rows, Z): what ``torch.randn`` draws, which compiles for no dynamic shape."""
    return call.like.new_empty((*rows, call.spec.latent_size)).normal_(generator=generator)


class Given(NamedTuple):
    """The arguments of a call over a batch of sequences, as :meth:`VRNN.forward` describes them."""

    x: Tensor
    lengths: Tensor | None = None
    state: State | None = None
    eps: Tensor | None = None
    generator: torch.Generator | None = None
    cond: Tensor | None = None
    resets: Tensor | None = None
    mask: Tensor | None = None
    mask_inputs: bool = False


def batch_of(call: ModelCall, given: Given, particles: tuple[Size, ...] = (), *, none_real: bool = True) -> Batch:
    """Check what is given; eps, which may be drawn, is (T, B, *particles, Z).

    Without ``none_real``, a length must be above 0.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device, layout or value, naming it.
    """
    spec, features = call.spec, ("input_size", call.spec.input_size)
    x, lengths, state, eps, generator, cond, resets, mask, mask_inputs = given
    x = sequence(call, "x", x, None, None, features)
    steps, batch = x.shape[:2]
    if lengths is not None:
        lengths = checks.lengths(lengths, steps, batch, x.device, none=none_real)
    begin = layers_of(start(call, state, batch))
    cond = condition(call, cond, steps, batch)
    if resets is not None:
        resets = sequence(call, "resets", resets, steps, batch, dtype=torch.bool)
    if mask is not None:
        mask = sequence(call, "mask", mask, steps, batch, features, dtype=torch.bool)
        if not call.likelihood.takes_mask:
            raise ValueError(f"mask needs a likelihood with marginal_log_prob, and {call.likelihood} has none")
    checks.flag("mask_inputs", mask_inputs)
    if mask_inputs:
        if mask is None:
            raise ValueError("mask_inputs needs a mask")
        x = torch.where(mask, x, torch.zeros_like(x))
    checks.generator(generator, x.device)
    if eps is None:
        eps = noise(call, steps, batch, *(size for _, size in particles), generator=generator)
    else:
        eps = sequence(call, "eps", eps, steps, batch, *particles, ("Z", spec.latent_size))
    checked = Batch(x, eps, begin, lengths, cond, resets, mask)
    if call.check_values:
        real = checked.real()
        checks.finite("x", x, real, mask, support=call.likelihood.support, swap=call.batch_first)
        if cond is not None:
            checks.finite("cond", cond, real, swap=call.batch_first)
    return checked


def frame_of(call: ModelCall, x_t: Tensor, state: State | None, eps: Tensor | None, cond: Tensor | None) -> Batch:
    """Check the arguments of one time step, as executors take them for a step; eps may be drawn.

    Raises:
        ValueError, TypeError: as :func:`batch_of`.
    """
    spec, like = call.spec, call.like
    x_t = checks.tensor("x_t", x_t, (("B", None), ("input_size", spec.input_size)), like)
    batch = x_t.shape[0]
    begin = start(call, state, batch)
    if eps is None:
        eps = torch.randn(batch, spec.latent_size, dtype=x_t.dtype, device=x_t.device)
    else:
        eps = checks.tensor("eps", eps, (("B", batch), ("Z", spec.latent_size)), like)
    has_condition(call, "cond", cond)
    if cond is not None:
        cond = checks.tensor("cond", cond, (("B", batch), ("cond_size", spec.cond_size)), like)
    if call.check_values:
        checks.finite("x_t", x_t, support=call.likelihood.support)
        if cond is not None:
            checks.finite("cond", cond)
    return Batch(x_t, eps, begin, cond=cond)
