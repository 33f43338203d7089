"""The gradients of the CPU operators, as autograd calls for them: of eager calls, and of traced ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    ancestors: Tensor
    saved: Tensor


PER_STEP_OUTPUTS = ForwardOutput._fields.index("state")  # those before it: Output of csrc/core, whom `slots` numbers


def below_autograd(name: str, *arguments: Any) -> Any:
    """Call an operator without a gradient."""
    operator = overload(name)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


@cache
def overload(name: str) -> Any:
    """The operator of a name, found once."""
    return getattr(torch.ops.vrnn_fast, name).default


class Eager(torch.autograd.Function):
    """What register_autograd does for traced code, without its price: about 0.25 ms for thirty parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
        mask: Tensor | None,
        uniforms: Tensor | None,
        states: int,
        options: tuple[Any, ...],
        x: Tensor,
        eps: Tensor,
        cond: Tensor | None,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = (x, eps, cond, lengths, resets, mask, uniforms, list(rest[:states]), list(rest[states:]))
        *per_step, final_state, ancestors, saved = below_autograd("forward", *inputs, None, *options)
        _remember(ctx, inputs, ancestors, saved, options)
        return (*per_step, *final_state, ancestors, saved)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call = _traced if torch.is_grad_enabled() else below_autograd  # create_graph=True: whoever goes on is refused
        *sequences, d_state, d_parameters = _gradients(ctx, gradients[:-2], ctx.needs_input_grad[6:9], call)
        return (*(None,) * 6, *sequences, *d_state, *d_parameters)


def _remember(ctx: Any, inputs: tuple[Any, ...], ancestors: Tensor, saved: Tensor, options: tuple[Any, ...]) -> None:
    *tensors, uniforms, state, parameters = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(ancestors, saved)
    ctx.save_for_backward(*tensors, None if uniforms is None else ancestors, saved, *state, *parameters)
    ctx.states, ctx.code, ctx.constants, ctx.recompute = len(state), options[0], options[1], options[3]


def _gradients(
    ctx: Any, upstream: Sequence[Tensor | None], wanted: Sequence[bool], call: Callable[..., Any]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    """Of x, eps, cond, state and parameters; ``upstream`` in the order of the outputs, the state's last."""
    x, eps, cond, lengths, resets, mask, ancestors, saved, *rest = ctx.saved_tensors
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
        ancestors,
        saved,
        ctx.code,
        ctx.constants,
        ctx.recompute,
        *wanted,
    )
    sequences = (d if want else None for d, want in zip((d_x, d_eps, d_cond), wanted, strict=True))
    return (*sequences, d_state, d_parameters)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _remember(ctx, inputs[:9], output[-2], output[-1], inputs[10:])


def _backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    on_state = gradients[PER_STEP_OUTPUTS]
    upstream = [*gradients[:PER_STEP_OUTPUTS], *(on_state if on_state is not None else [None] * ctx.states)]
    *sequences, d_state, d_parameters = _gradients(ctx, upstream, ctx.needs_input_grad[:3], _traced)
    return (*sequences, *(None,) * 4, d_state, d_parameters, *(None,) * 8)


def _refuse(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError(
        "vrnn_fast has no second derivatives: the gradient of a launch cannot be differentiated again, as gradient "
        "penalties do (create_graph=True). With backend='reference' torch differentiates the model any number of times"
    )


def _traced(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.vrnn_fast, name)(*arguments)


def register() -> None:
    """Give the operators their gradients."""
    torch.library.register_autograd("vrnn_fast::forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("vrnn_fast::backward", _refuse)
