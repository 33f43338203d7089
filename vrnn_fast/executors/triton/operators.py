"""The operators ``vrnn_fast::triton_forward``, ``triton_backward`` and ``triton_generate``, with fakes and autograd.

A cell's structure travels as text, so that a compiled or exported graph means the same in another process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...cell.spec import CellSpec, Std
from ...cell.stages import Keep
from ..base import Batch, Want
from . import launch
from .plan import plan

PER_STEP = ("nll", "kl", "z", "mean", "std", "prior_mean", "prior_std", "raw")
NO_BACKWARD = -1


@lru_cache(maxsize=256)
def encode(spec: CellSpec) -> str:
    """A spec as text."""
    return json.dumps(asdict(spec))


@lru_cache(maxsize=256)
def decode(text: str) -> CellSpec:
    """The spec of a text that :func:`encode` wrote."""
    fields = {name: _tuples(value) for name, value in json.loads(text).items()}
    for name in ("std", "output_std"):
        fields[name] = Std(**fields[name])
    return CellSpec(**fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _forward(
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    uniforms: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    spec: str,
    precision: str,
    keep: int,
    want_prior: bool,
    want_raw: bool,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], Tensor]:
    """Run x (T, B, X); ``keep`` is the least Keep that backward wants, or NO_BACKWARD. See launch.Outputs."""
    batch = Batch(x, eps, tuple(state), lengths, cond, resets, mask, uniforms, threshold)
    least = None if keep == NO_BACKWARD else Keep(keep)
    return (*launch.forward(decode(spec), batch, parameters, precision, least, Want(want_prior, want_raw)),)


def _fake_forward(
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    uniforms: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    spec: str,
    precision: str,
    keep: int,
    want_prior: bool,
    want_raw: bool,
    threshold: float,
) -> tuple[Any, ...]:
    cell, (steps, batch) = decode(spec), x.shape[:2]
    cut = plan(cell, 128)

    def per_step(width: int, wanted: bool = True) -> Tensor:
        return x.new_empty((steps, batch, width) if wanted else (0, 0, width))

    latent = [per_step(cell.latent_size, wanted) for wanted in (True, True, True, want_prior, want_prior)]
    raw = per_step(cell.output_size, want_raw)
    names = launch.kept(cut, None if keep == NO_BACKWARD else Keep(keep))
    saved = [x.new_empty((steps * batch, cut.width(name))) for name in names]
    nll, kl = x.new_empty((steps, batch)), x.new_empty((steps, batch))
    ancestors = x.new_empty((0, 0, 0) if uniforms is None else uniforms.shape, dtype=torch.int64)
    return nll, kl, *latent, raw, [x.new_empty(s.shape) for s in state], saved, ancestors


def _backward(
    upstream: Sequence[Tensor],
    slots: Sequence[int],
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    uniforms: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    z: Tensor,
    std: Tensor,
    ancestors: Tensor,
    saved: Sequence[Tensor],
    spec: str,
    precision: str,
    keep: int,
    want_x: bool,
    want_eps: bool,
    want_cond: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Of x, eps, cond (without elements where not wanted), state and parameters.

    ``slots`` numbers the results that ``upstream`` belongs to, the states after PER_STEP.
    """
    names = [*PER_STEP, *(f"state{i}" for i in range(len(state)))]
    given = {names[slot]: gradient for slot, gradient in zip(slots, upstream, strict=True)}
    batch = Batch(x, eps, tuple(state), lengths, cond, resets, mask, uniforms)
    flags = {"x": want_x, "eps": want_eps, "cond": want_cond}
    wanted = {name for name, flag in flags.items() if flag}
    run = decode(spec), batch, parameters
    found = launch.backward(*run, given, z, std, ancestors, saved, precision, Keep(keep), wanted)
    sequences = (x.new_empty((0,)) if d is None else d for d in found[:3])
    return (*sequences, found.state, found.parameters)  # type: ignore[return-value]


def _fake_backward(
    upstream: Sequence[Tensor],
    slots: Sequence[int],
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    uniforms: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    z: Tensor,
    std: Tensor,
    ancestors: Tensor,
    saved: Sequence[Tensor],
    spec: str,
    precision: str,
    keep: int,
    want_x: bool,
    want_eps: bool,
    want_cond: bool,
) -> tuple[Any, ...]:
    wants = zip((x, eps, cond), (want_x, want_eps, want_cond), strict=True)
    sequences = (x.new_empty(t.shape if t is not None and wanted else (0,)) for t, wanted in wants)
    return *sequences, [x.new_empty(s.shape) for s in state], [x.new_empty(p.shape) for p in parameters]


def _generate(
    eps: Tensor,
    noise: Tensor,
    cond: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    spec: str,
    precision: str,
    mean: bool,
) -> tuple[Tensor, list[Tensor]]:
    """See launch.generate."""
    return launch.generate(decode(spec), Batch(noise, eps, tuple(state), cond=cond), parameters, precision, mean=mean)


def _fake_generate(
    eps: Tensor,
    noise: Tensor,
    cond: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    spec: str,
    precision: str,
    mean: bool,
) -> tuple[Tensor, list[Tensor]]:
    return noise.new_empty(noise.shape), [noise.new_empty(s.shape) for s in state]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    *sequences, state, parameters, spec, precision, keep, _, _, _ = inputs
    *_, saved, ancestors = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*sequences, output[2], output[4], ancestors, *state, *parameters, *saved)
    ctx.states, ctx.parameters, ctx.options = len(state), len(parameters), (spec, precision, keep)


def _autograd(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    on_state = gradients[len(PER_STEP)] or [None] * ctx.states
    upstream = [*gradients[: len(PER_STEP)], *on_state]
    slots = [i for i, g in enumerate(upstream) if g is not None and g.numel() > 0]
    *sequences, z, std, ancestors = ctx.saved_tensors[:10]
    rest = ctx.saved_tensors[10:]
    state, parameters = rest[: ctx.states], rest[ctx.states : ctx.states + ctx.parameters]
    wanted = ctx.needs_input_grad[:3]
    d_x, d_eps, d_cond, d_state, d_parameters = torch.ops.vrnn_fast.triton_backward(
        [upstream[i] for i in slots],
        slots,
        *sequences,
        list(state),
        list(parameters),
        z,
        std,
        ancestors,
        list(rest[ctx.states + ctx.parameters :]),
        *ctx.options,
        *wanted,
    )
    given = (d if want else None for d, want in zip((d_x, d_eps, d_cond), wanted, strict=True))
    return (*given, *(None,) * 4, d_state, d_parameters, *(None,) * 6)


_forward_op = torch.library.custom_op("vrnn_fast::triton_forward", _forward, mutates_args=())
_backward_op = torch.library.custom_op("vrnn_fast::triton_backward", _backward, mutates_args=())
_generate_op = torch.library.custom_op("vrnn_fast::triton_generate", _generate, mutates_args=())
_generate_op.register_fake(_fake_generate)
_forward_op.register_fake(_fake_forward)
_backward_op.register_fake(_fake_backward)
_forward_op.register_autograd(_autograd, setup_context=_setup_context)
