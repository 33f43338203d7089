"""The operators of an executor whose kernels run the scan: ``vrnn_fast::triton_forward``, ``triton_backward``,
``triton_generate`` and the like, with fakes and autograd. See call.py.

A cell's structure travels as text, so that a compiled or exported graph means the same in another process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..cell.partition import partition
from ..cell.spec import CellSpec, Std
from ..cell.stages import Keep
from .base import Batch, SequenceResult, Want
from .call import Gradients, Outputs, kept

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


class Runnable(Protocol):
    """A call of a batch, forward or backward: see the methods of call.Call."""

    def forward(self, keep: Keep | None, want: Want) -> Outputs: ...

    def backward(
        self,
        upstream: Mapping[str, Tensor],
        z: Tensor,
        std: Tensor,
        ancestors: Tensor,
        saved: Sequence[Tensor],
        keep: Keep,
        wanted: set[str],
    ) -> Gradients: ...


class Make(Protocol):
    """Whoever makes a call of a batch."""

    def __call__(
        self, spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, reverse: bool
    ) -> Runnable: ...


class Generate(Protocol):
    """Whoever lets a cell run on its own, with noise in the place of x: x (T, B, X) and the state."""

    def __call__(
        self, spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, mean: bool
    ) -> tuple[Tensor, list[Tensor]]: ...


def run(
    name: str, spec: CellSpec, text: str, parameters: Sequence[Tensor], batch: Batch, want: Want, precision: str
) -> SequenceResult:
    """Run a batch through the operators of ``name``; ``text`` is the encoded spec."""
    keep = NO_BACKWARD
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*batch.differentiable, *parameters)):
        keep = int(Keep.ALWAYS if want.recompute else Keep.STORED)
    options = (text, precision, keep, want.prior, want.raw, batch.threshold)
    operator = getattr(torch.ops.vrnn_fast, f"{name}_forward")
    out = operator(*batch.sequences, list(batch.state), list(parameters), *options)
    asked = (True,) * 5 + (want.prior, want.prior, want.raw)
    per_step = (tensor if asked_for else None for tensor, asked_for in zip(out, asked, strict=False))
    return SequenceResult._make((*per_step, tuple(out[8]), None if batch.uniforms is None else out[10]))


def refuses() -> str | None:
    """None, or why these operators cannot be called just now. Traced."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "it knows gradients of reverse mode alone: no transforms of torch.func, no forward-mode derivatives"
    return None


def register(name: str, make: Make, generate: Generate) -> None:
    """Define the three operators of an executor."""

    def forward(
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
        """Run x (T, B, X); ``keep`` is the least Keep that backward wants, or NO_BACKWARD. See call.Outputs."""
        batch = Batch(x, eps, tuple(state), lengths, cond, resets, mask, uniforms, threshold)
        least = None if keep == NO_BACKWARD else Keep(keep)
        own = make(decode(spec), batch, parameters, precision, reverse=False)
        return (*own.forward(least, Want(want_prior, want_raw)),)

    def backward(
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
        own = make(decode(spec), batch, parameters, precision, reverse=True)
        found = own.backward(given, z, std, ancestors, saved, Keep(keep), wanted)
        sequences = (x.new_empty((0,)) if d is None else d for d in found[:3])
        return (*sequences, found.state, found.parameters)  # type: ignore[return-value]

    def generate_(
        eps: Tensor,
        noise: Tensor,
        cond: Tensor | None,
        state: Sequence[Tensor],
        parameters: Sequence[Tensor],
        spec: str,
        precision: str,
        mean: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`Generate`."""
        batch = Batch(noise, eps, tuple(state), cond=cond)
        return generate(decode(spec), batch, parameters, precision, mean=mean)

    def autograd(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        on_state = gradients[len(PER_STEP)] or [None] * ctx.states
        upstream = [*gradients[: len(PER_STEP)], *on_state]
        slots = [i for i, g in enumerate(upstream) if g is not None and g.numel() > 0]
        *sequences, z, std, ancestors = ctx.saved_tensors[:10]
        rest = ctx.saved_tensors[10:]
        state, parameters = rest[: ctx.states], rest[ctx.states : ctx.states + ctx.parameters]
        wanted = ctx.needs_input_grad[:3]
        d_x, d_eps, d_cond, d_state, d_parameters = getattr(torch.ops.vrnn_fast, f"{name}_backward")(
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

    def define(suffix: str, function: Any) -> Any:
        return torch.library.custom_op(f"vrnn_fast::{name}_{suffix}", function, mutates_args=())

    forward_op, backward_op = define("forward", forward), define("backward", backward)
    define("generate", generate_).register_fake(_fake_generate)
    forward_op.register_fake(_fake_forward)
    backward_op.register_fake(_fake_backward)
    forward_op.register_autograd(autograd, setup_context=_setup_context)


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
    program = partition(cell)
    widths = {buffer.name: buffer.width for buffer in program.buffers}

    def per_step(width: int, wanted: bool = True) -> Tensor:
        return x.new_empty((steps, batch, width) if wanted else (0, 0, width))

    latent = [per_step(cell.latent_size, wanted) for wanted in (True, True, True, want_prior, want_prior)]
    raw = per_step(cell.output_size, want_raw)
    names = kept(program, None if keep == NO_BACKWARD else Keep(keep))
    saved = [x.new_empty((steps * batch, widths[name])) for name in names]
    nll, kl = x.new_empty((steps, batch)), x.new_empty((steps, batch))
    ancestors = x.new_empty((0, 0, 0) if uniforms is None else uniforms.shape, dtype=torch.int64)
    return nll, kl, *latent, raw, [x.new_empty(s.shape) for s in state], saved, ancestors


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
