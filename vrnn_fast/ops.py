"""The torch operators of the fused executors: loading them, their fake kernels and their autograd, in one place.

``vrnn_fast::forward`` runs a whole batch of sequences, ``vrnn_fast::backward`` its gradient; csrc/ops.cpp has their
schemas. Both are one launch whatever T is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch.autograd.function import once_differentiable

LIBRARY = Path(__file__).with_name("_ops.so")
PER_STEP_OUTPUTS = 8  # nll, kl, z, mean, std, prior_mean, prior_std, raw: the numbers that `slots` counts


class Program(NamedTuple):
    """An encoded partition: what the operators take of a cell's structure."""

    code: list[int]
    constants: list[float]
    saved: int  # elements that forward keeps for backward per (time step, sequence)
    saved_recompute: int  # the same where everything else is recomputed


@cache
def load() -> str | None:
    """Load the operators, once. None on success, else the reason why they cannot be had."""
    if not LIBRARY.exists():
        return "the extension is not built (pip install --no-build-isolation . builds it; it needs a C++17 compiler)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the extension does not load: {error}"
    _register()
    return None


def launch_counts() -> dict[str, int]:
    """How often each build of the fused CPU kernels was launched in this process, counted at the launch itself.

    Keys such as ``"cpu.avx2.forward"``; empty if the extension is not loaded.
    """
    if not hasattr(torch.ops.vrnn_fast, "launch_counts"):
        return {}
    names = [f"cpu.{isa}.{way}" for isa in ("baseline", "avx2", "avx512") for way in ("forward", "backward")]
    return dict(zip(names, torch.ops.vrnn_fast.launch_counts(), strict=False))


def chosen_isa() -> str:
    """The instruction set that the next CPU launch uses.

    Raises:
        RuntimeError: VRNN_FAST_ISA names one that this machine cannot run.
    """
    return str(torch.ops.vrnn_fast.chosen_isa())


class ForwardOutput(NamedTuple):
    """The results of ``vrnn_fast::forward``, in its order; what was not wanted has no elements."""

    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: Tensor
    state: list[Tensor]
    saved: Tensor


def forward(
    program: Program,
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    recompute: bool,
    want_prior: bool,
    want_raw: bool,
) -> ForwardOutput:
    """Run x (T, B, X) with noise eps (T, B, Z) and cond (T, B, C) from state, (B, H) each. lengths (B,) int64 on the
    CPU, or None; resets (T, B) and mask (T, B, X) bool, or None."""
    differentiable = (x, eps, *state, *parameters) if cond is None else (x, eps, cond, *state, *parameters)
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    saved: int | SymInt = 0
    if wants_grad:
        saved = x.shape[0] * x.shape[1] * (program.saved_recompute if recompute else program.saved) + SLACK
    options = (program.code, program.constants, saved, recompute, want_prior, want_raw)
    inputs = (x, eps, cond, lengths, resets, mask, list(state), list(parameters))
    if torch.compiler.is_compiling():
        return ForwardOutput(*torch.ops.vrnn_fast.forward(*inputs, *options))
    if not wants_grad:
        return ForwardOutput(*_below_autograd("forward", *inputs, *options))
    fixed = (lengths, resets, mask, len(state), options)
    flat = _Eager.apply(*fixed, x, eps, cond, *state, *parameters)  # type: ignore[no-untyped-call]
    return ForwardOutput._make((*flat[:PER_STEP_OUTPUTS], list(flat[PER_STEP_OUTPUTS:-1]), flat[-1]))


def _below_autograd(name: str, *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.vrnn_fast, name).default(*arguments)


class _Eager(torch.autograd.Function):
    """What register_autograd does for traced code, without its price: about 0.25 ms for thirty parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
        mask: Tensor | None,
        states: int,
        options: tuple[Any, ...],
        x: Tensor,
        eps: Tensor,
        cond: Tensor | None,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = (x, eps, cond, lengths, resets, mask, list(rest[:states]), list(rest[states:]))
        *per_step, final_state, saved = _below_autograd("forward", *inputs, *options)
        _remember(ctx, inputs, saved, options)
        return (*per_step, *final_state, saved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *sequences, d_state, d_parameters = _gradients(ctx, gradients[:-1], ctx.needs_input_grad[5:8], _below_autograd)
        return (*(None,) * 5, *sequences, *d_state, *d_parameters)


SLACK = 64  # elements: kernels read whole vectors, so the last row needs some room behind it


def _fake_forward(
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    state: list[Tensor],
    parameters: list[Tensor],
    program: list[int],
    constants: list[float],
    saved_size: int,
    recompute: bool,
    want_prior: bool,
    want_raw: bool,
) -> tuple[Any, ...]:
    steps, batch, latent = eps.shape
    output = program[1]  # the code begins with the format's version and the width of the decoder's raw output

    def per_step(width: int, wanted: bool) -> Tensor:
        return x.new_empty((steps, batch, width) if wanted else (0, 0, width))

    return (
        x.new_empty((steps, batch)),
        x.new_empty((steps, batch)),
        per_step(latent, True),
        per_step(latent, True),
        per_step(latent, True),
        per_step(latent, want_prior),
        per_step(latent, want_prior),
        per_step(output, want_raw),
        [x.new_empty(s.shape) for s in state],
        x.new_empty((saved_size,)),
    )


def _fake_backward(
    upstream: list[Tensor],
    slots: list[int],
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    state: list[Tensor],
    parameters: list[Tensor],
    saved: Tensor,
    program: list[int],
    constants: list[float],
    recompute: bool,
    want_x: bool,
    want_eps: bool,
    want_cond: bool,
) -> tuple[Any, ...]:
    def per_step(like: Tensor | None, wanted: bool) -> Tensor:
        return x.new_empty((0,) if like is None else like.shape if wanted else (0, 0, like.shape[2]))

    return (
        per_step(x, want_x),
        per_step(eps, want_eps),
        per_step(cond, want_cond),
        [x.new_empty(s.shape) for s in state],
        [x.new_empty(p.shape) for p in parameters],
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], saved: Tensor, options: tuple[Any, ...]) -> None:
    *tensors, state, parameters = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(*tensors, saved, *state, *parameters)
    ctx.states, ctx.code, ctx.constants, ctx.recompute = len(state), options[0], options[1], options[3]


def _gradients(
    ctx: Any, upstream: Sequence[Tensor | None], wanted: Sequence[bool], call: Callable[..., Any]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    """Of x, eps, cond, state and parameters; ``upstream`` in the order of the outputs, the state's last."""
    x, eps, cond, lengths, resets, mask, saved, *rest = ctx.saved_tensors
    slots = [i for i, g in enumerate(upstream) if g is not None and g.numel() > 0]
    d_x, d_eps, d_cond, d_state, d_parameters = call(
        "backward",
        [upstream[i] for i in slots],
        slots,
        x,
        eps,
        cond,
        lengths,
        resets,
        mask,
        rest[: ctx.states],
        rest[ctx.states :],
        saved,
        ctx.code,
        ctx.constants,
        ctx.recompute,
        *wanted,
    )
    sequences = (d if want else None for d, want in zip((d_x, d_eps, d_cond), wanted, strict=True))
    return (*sequences, d_state, d_parameters)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _remember(ctx, inputs[:8], output[-1], inputs[8:])


def _backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    on_state = gradients[PER_STEP_OUTPUTS]
    upstream = [*gradients[:PER_STEP_OUTPUTS], *(on_state if on_state is not None else [None] * ctx.states)]
    *sequences, d_state, d_parameters = _gradients(ctx, upstream, ctx.needs_input_grad[:3], _traced)
    return (*sequences, None, None, None, d_state, d_parameters, *(None,) * 6)


def _traced(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.vrnn_fast, name)(*arguments)


def _register() -> None:
    torch.library.register_fake("vrnn_fast::forward", _fake_forward)
    torch.library.register_fake("vrnn_fast::backward", _fake_backward)
    torch.library.register_autograd("vrnn_fast::forward", _backward, setup_context=_setup_context)
