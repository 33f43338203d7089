"""What torch wants to know of the CPU operators without running them: shapes of results, and operations in
floating point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from ...ops import add_op_namespace_prefix, ops
from .schema import BackwardArguments, ForwardArguments, GenerateArguments, StepArguments


def _fake_forward(*arguments: Any) -> tuple[Any, ...]:
    a = ForwardArguments(*arguments)
    _on_one_device(*a)
    x, (steps, batch, latent) = a.x, a.eps.shape
    number = _known(a)
    output = ops.output_width(number)
    saved = 0 if a.saved_size == 0 else a.saved_size + ops.packed_size(number)

    def per_step(width: int, wanted: bool) -> Tensor:
        return x.new_empty((steps, batch, width) if wanted else (0, 0, width))

    return (
        x.new_empty((steps, batch)),
        x.new_empty((steps, batch)),
        per_step(latent, True),
        per_step(latent, True),
        per_step(latent, True),
        per_step(latent, a.want_prior),
        per_step(latent, a.want_prior),
        per_step(output, a.want_raw),
        [x.new_empty(s.shape) for s in a.state],
        x.new_empty((0, 0, 1) if a.uniforms is None else a.uniforms.shape, dtype=torch.int64),
        x.new_empty((saved,)),
    )


def _fake_backward(*arguments: Any) -> tuple[Any, ...]:
    a = BackwardArguments(*arguments)
    _on_one_device(*a)
    x = a.x

    def per_step(like: Tensor | None, wanted: bool) -> Tensor:
        return x.new_empty((0,) if like is None else like.shape if wanted else (0, 0, like.shape[2]))

    return (
        per_step(x, a.want_x),
        per_step(a.eps, a.want_eps),
        per_step(a.cond, a.want_cond),
        [x.new_empty(s.shape) for s in a.state],
        [x.new_empty(p.shape) for p in a.parameters],
    )


def _fake_generate(*arguments: Any) -> tuple[Any, ...]:
    a = GenerateArguments(*arguments)
    _on_one_device(*a)
    return a.noise.new_empty(a.noise.shape), [a.noise.new_empty(s.shape) for s in a.state]


def _fake_step(*arguments: Any) -> tuple[Any, ...]:
    a = StepArguments(*arguments)
    _on_one_device(*a)
    x, batch, output = a.x, a.x.shape[0], ops.output_width(a.number)
    nll, kl, predicted = x.new_empty(batch), x.new_empty(batch), x.new_empty(batch, output)
    return nll, kl, x.new_empty(batch if a.want_raw else 0, output), predicted, [x.new_empty(s.shape) for s in a.state]


def _fake_pack(parameters: list[Tensor], number: int) -> Tensor:
    _on_one_device(parameters)
    return parameters[0].new_empty(ops.packed_size(number))


def _on_one_device(*arguments: Any) -> None:
    """Raise RuntimeError unless all tensors are. One tensor of the meta device among others brings a call here."""
    lists = (part if isinstance(part, list | tuple) else [part] for part in arguments)
    devices = sorted({str(t.device) for given in lists for t in given if isinstance(t, Tensor)})
    if len(devices) > 1:
        raise RuntimeError(f"all tensors of a call must be on one device, got some on {' and '.join(devices)}")


def _known(call: ForwardArguments | BackwardArguments | GenerateArguments) -> int:
    """Find the number of a call's program, given by it or by its whole code."""
    if len(call.program) == 1:
        return call.program[0]
    return int(ops.program_number(call.program, call.constants, len(call.parameters)))


def _flops(number: int) -> list[int]:
    """Count for one row and time step forward: all, what reads x, what reads cond, what a single step repeats."""
    counts: list[int] = ops.flops(number)
    return counts


def _rows(x: Tensor, lengths: Tensor | None) -> int:
    """Count the real (time step, sequence) pairs; of fake lengths, what they are at most."""
    if lengths is None or isinstance(lengths, FakeTensor):
        return x.shape[0] * x.shape[1]
    return int(lengths.sum())


def _forward_flops(*arguments: Any, out_val: Any = None) -> int:
    a = ForwardArguments(*arguments)
    return _rows(a.x, a.lengths) * _flops(_known(a))[0]


def _backward_flops(*arguments: Any, out_val: Any = None) -> int:
    """Count for the gradients alone: what is computed again for them is not counted."""
    a = BackwardArguments(*arguments)
    forward, of_x, of_cond, _ = _flops(_known(a))
    unwanted = (0 if a.want_x else of_x) + (0 if a.want_cond else of_cond)
    return _rows(a.x, a.lengths) * (2 * forward - unwanted)


def _generate_flops(*arguments: Any, out_val: Any = None) -> int:
    a = GenerateArguments(*arguments)
    return _rows(a.eps, None) * _flops(_known(a))[0]


def _step_flops(*arguments: Any, out_val: Any = None) -> int:
    a = StepArguments(*arguments)
    forward, _, _, repeated = _flops(a.number)
    return a.x.shape[0] * (forward + repeated)


_FAKES: dict[str, Callable[..., Any]] = {
    "forward": _fake_forward,
    "backward": _fake_backward,
    "generate": _fake_generate,
    "pack": _fake_pack,
    "step": _fake_step,
}
_FLOPS: dict[str, Callable[..., int]] = {
    "forward": _forward_flops,
    "backward": _backward_flops,
    "generate": _generate_flops,
    "step": _step_flops,
}


def register() -> None:
    """Tell torch."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(add_op_namespace_prefix(name), fake)
    for name, formula in _FLOPS.items():
        register_flop_formula(getattr(ops, name), get_raw=True)(formula)
