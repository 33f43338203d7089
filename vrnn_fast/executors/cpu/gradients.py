"""The gradients of the CPU operators, as autograd calls for them: of eager calls, and of traced ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...ops import add_op_namespace_prefix, ops
from ..base import PER_STEP
from .schema import BackwardArguments, ForwardArguments, ForwardResult


def below_autograd(name: str, *arguments: Any) -> Any:
    """Call an operator without a gradient."""
    operator = overload(name)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


@cache
def overload(name: str) -> Any:
    """Find the operator of a name, once."""
    return getattr(ops, name).default


class Eager(torch.autograd.Function):
    """What register_autograd does for traced code, without its price: about 0.25 ms for thirty parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        eps: Tensor,
        cond: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        mask: Tensor | None,
        uniforms: Tensor | None,
        states: int,
        options: tuple[Any, ...],
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        sequences = (x, eps, cond, lengths, resets, mask, uniforms)
        arguments = ForwardArguments(*sequences, list(rest[:states]), list(rest[states:]), None, *options)
        *per_step, final_state, ancestors, saved = below_autograd("forward", *arguments)
        _remember(ctx, arguments, ancestors, saved)
        return (*per_step, *final_state, ancestors, saved)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call = _traced if torch.is_grad_enabled() else below_autograd  # create_graph=True: whoever goes on is refused
        *results, _, _ = gradients  # of ancestors and saved there are none
        *sequences, d_state, d_parameters = _gradients(ctx, results, call)
        beside = (None,) * (len(ctx.needs_input_grad) - len(sequences) - len(d_state) - len(d_parameters))
        return (*sequences, *beside, *d_state, *d_parameters)


# That of torch.autograd.Function looks for dead wrappers of torch.func among all parameters first, for 2 % of a single
# step.
apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, Eager).apply


def _remember(ctx: Any, a: ForwardArguments, ancestors: Tensor, saved: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(ancestors, saved)
    sequences = (a.x, a.eps, a.cond, a.lengths, a.resets, a.mask)
    ctx.save_for_backward(*sequences, None if a.uniforms is None else ancestors, saved, *a.state, *a.parameters)
    ctx.states, ctx.program, ctx.constants, ctx.recompute = len(a.state), a.program, a.constants, a.recompute


def _gradients(
    ctx: Any, upstream: Sequence[Tensor | None], call: Callable[..., Any]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    """Compute the gradients of x, eps, cond, state and parameters; ``upstream`` in the order of the outputs, the
    state's last."""
    x, eps, cond, lengths, resets, mask, ancestors, saved, *rest = ctx.saved_tensors
    given = {i: g for i, g in enumerate(upstream) if g is not None and g.numel() > 0}
    want_x, want_eps, want_cond = wanted = ctx.needs_input_grad[:3]
    arguments = BackwardArguments(
        upstream=list(given.values()),
        slots=list(given),
        x=x,
        eps=eps,
        cond=cond,
        lengths=lengths,
        resets=resets,
        mask=mask,
        state=rest[: ctx.states],
        parameters=rest[ctx.states :],
        ancestors=ancestors,
        saved=saved,
        program=ctx.program,
        constants=ctx.constants,
        recompute=ctx.recompute,
        want_x=want_x,
        want_eps=want_eps,
        want_cond=want_cond,
    )
    *found, d_state, d_parameters = call("backward", *arguments)
    d_x, d_eps, d_cond = (d if want else None for d, want in zip(found, wanted, strict=True))
    return d_x, d_eps, d_cond, d_state, d_parameters


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    result = ForwardResult(*output)
    _remember(ctx, ForwardArguments(*inputs), result.ancestors, result.saved)


def _backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    result = ForwardResult(*gradients)
    on_state = result.state if result.state is not None else [None] * ctx.states
    upstream = [*(getattr(result, name) for name in PER_STEP), *on_state]
    d_x, d_eps, d_cond, d_state, d_parameters = _gradients(ctx, upstream, _traced)
    found = {"x": d_x, "eps": d_eps, "cond": d_cond, "state": d_state, "parameters": d_parameters}
    return tuple(found.get(name) for name in ForwardArguments._fields)


def _refuse(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError(
        "vrnn_fast has no second derivatives: the gradient of a launch cannot be differentiated again, as gradient "
        "penalties do (create_graph=True). With backend='reference' torch differentiates the model any number of times"
    )


def _traced(name: str, *arguments: Any) -> Any:
    return getattr(ops, name)(*arguments)


def register() -> None:
    """Give the operators their gradients."""
    torch.library.register_autograd(add_op_namespace_prefix("forward"), _backward, setup_context=_setup_context)
    torch.library.register_autograd(add_op_namespace_prefix("backward"), _refuse)
