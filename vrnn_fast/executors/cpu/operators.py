"""The torch operators of the fused executors: loading them, their fake kernels and their autograd, in one place.

``vrnn_fast::forward`` runs a whole batch of sequences, ``vrnn_fast::backward`` its gradient: one launch each,
whatever T is. ``vrnn_fast::step`` runs one time step on weights that ``vrnn_fast::pack`` has laid out beforehand.
csrc/torch/operators.cpp has their schemas.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from ...cell.encode import Program
from ..base import Batch, Want

LIBRARY = Path(__file__).parents[2] / "_ops.so"


@cache
def load() -> str | None:
    """Load the operators, once. None on success, else the reason why they cannot be had."""
    if not LIBRARY.exists():
        return _unbuilt(LIBRARY)
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the extension does not load: {error}"
    _register()
    return None


def _unbuilt(library: Path) -> str:
    """Why there is no ``library``, and what to do. Python imports a checkout that it was started in before anything
    that is installed."""
    source = f"the extension is not built in {library.parent}, the folder that was imported"
    for folder in sys.path:
        built = Path(folder, library.parent.name, library.name)
        if built != library and built.exists():
            return f"{source}; {built.parent} holds a built one: start Python in another folder than {Path.cwd()}"
    return (
        f"{source} (pip install --no-build-isolation -e . builds it there, for which it needs a C++17 compiler; after "
        "an install without -e, start Python in another folder than the checkout)"
    )


def launch_counts() -> dict[str, int]:
    """How often each build of the fused CPU kernels was launched in this process, counted at the launch itself.

    Keys such as ``"cpu.avx2.forward"``, for forward, backward, step and generate; empty if the extension is not loaded.
    """
    if not hasattr(torch.ops.vrnn_fast, "launch_counts"):
        return {}
    names = [
        f"cpu.{isa}.{way}"
        for isa in ("baseline", "avx2", "avx512")
        for way in ("forward", "backward", "step", "generate")
    ]
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
    ancestors: Tensor
    saved: Tensor


PER_STEP_OUTPUTS = ForwardOutput._fields.index("state")  # those before it: Output of csrc/core, whom `slots` numbers


def forward(
    program: Program,
    number: Number | None,
    batch: Batch,
    parameters: Sequence[Tensor],
    packed: Packed | None,
    want: Want,
) -> ForwardOutput:
    """Run a batch of sequences.

    The program's ``number`` is not for traced code, ``packed`` weights not where gradients are wanted.
    """
    wants_grad = packed is None and wanted(*batch.differentiable, *parameters)
    saved: int | SymInt = 0
    if wants_grad:
        rows = batch.x.shape[0] * batch.x.shape[1]
        saved = rows * (program.saved_recompute if want.recompute else program.saved) + SLACK
    code = (program.code, program.constants) if number is None else ([number], [])
    options = (*code, saved, want.recompute, want.prior, want.raw, batch.threshold)
    sequences, state = batch.sequences, batch.state
    if torch.compiler.is_compiling():
        return ForwardOutput(*torch.ops.vrnn_fast.forward(*sequences, list(state), list(parameters), None, *options))
    if not wants_grad:
        weights = ([], packed.weights) if packed is not None else (list(parameters), None)
        return ForwardOutput(*_below_autograd("forward", *sequences, list(state), *weights, *options))
    fixed = (batch.lengths, batch.resets, batch.mask, batch.uniforms, len(state), options)
    flat = _Eager.apply(*fixed, *batch.differentiable, *parameters)  # type: ignore[no-untyped-call]
    return ForwardOutput._make((*flat[:PER_STEP_OUTPUTS], list(flat[PER_STEP_OUTPUTS:-2]), *flat[-2:]))


def generate(
    program: Program,
    number: Number | None,
    batch: Batch,
    parameters: Sequence[Tensor],
    packed: Packed | None,
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own, without gradients, by the noise in the place of x: x (T, B, X) and the state after
    it."""
    sequences = (batch.eps, batch.x, batch.cond, list(batch.state))
    results: tuple[Tensor, list[Tensor]]
    code = (program.code, program.constants) if number is None else ([number], [])
    if torch.compiler.is_compiling():
        results = torch.ops.vrnn_fast.generate(*sequences, list(parameters), None, *code)
    else:
        weights = ([], packed.weights) if packed is not None else (list(parameters), None)
        results = _below_autograd("generate", *sequences, *weights, *code)
    return results


def wanted(*tensors: Tensor | None) -> bool:
    """Whether a call that reads these tensors has to keep what their gradients need."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class Number(int):
    """What stands for a program in this process: the operators keep that as long as its number lives."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)  # a copy keeps nothing

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():
            torch.ops.vrnn_fast.release_program(int(self))


def number_of(program: Program, parameters: int) -> Number:
    """The number of a program of so many parameters."""
    return Number(torch.ops.vrnn_fast.hold_program(program.code, program.constants, parameters))


class Packed:
    """The weights of a cell in one tensor, laid out for the build of the kernels that was chosen then.

    Attributes:
        weights: for :func:`forward` and :func:`step`.
        number: of the program they belong to.

    Raises:
        RuntimeError: as :func:`chosen_isa`.
    """

    def __init__(self, number: Number, parameters: Sequence[Tensor]) -> None:
        parameters = list(parameters)
        self.number = number
        self._watch = int(_below_autograd("watch", parameters))
        weakref.finalize(self, torch.ops.vrnn_fast.unwatch.default, self._watch).atexit = False
        self.weights: Tensor = _below_autograd("pack", parameters, number)

    def is_current(self, thorough: bool) -> bool:
        """Whether the parameters hold what they did, a few values of each or, ``thorough``, all: a look below what
        torch counts."""
        unchanged: bool = _overload("unchanged")(self._watch, thorough)
        return unchanged


def step(packed: Packed, batch: Batch, want_raw: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Run one time step without gradients: x (B, X), noise eps (B, Z), state (1, B, H) each.

    Returns:
        nll (B,) and kl (B,); raw and predicted (B, output), the decoder's raw output for the posterior's sample
        (without elements where not wanted) and at the prior's mean; the state after this step, as it came.
    """
    results: tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]
    results = _below_autograd("step", packed.weights, packed.number, batch.x, batch.eps, batch.state, want_raw)
    return results


def _below_autograd(name: str, *arguments: Any) -> Any:
    operator = _overload(name)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


@cache
def _overload(name: str) -> Any:
    return getattr(torch.ops.vrnn_fast, name).default


class _Eager(torch.autograd.Function):
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
        *per_step, final_state, ancestors, saved = _below_autograd("forward", *inputs, None, *options)
        _remember(ctx, inputs, ancestors, saved, options)
        return (*per_step, *final_state, ancestors, saved)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call = _traced if torch.is_grad_enabled() else _below_autograd  # create_graph=True: whoever goes on is refused
        *sequences, d_state, d_parameters = _gradients(ctx, gradients[:-2], ctx.needs_input_grad[6:9], call)
        return (*(None,) * 6, *sequences, *d_state, *d_parameters)


def _on_one_device(*given: Tensor | Sequence[Tensor] | None) -> None:
    """Raise RuntimeError unless all of them are. One tensor of the meta device among others brings a call here."""
    tensors = [t for part in given if part is not None for t in ([part] if isinstance(part, Tensor) else part)]
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        raise RuntimeError(f"all tensors of a call must be on one device, got some on {' and '.join(devices)}")


SLACK = 64  # elements: kernels read whole vectors, so the last row needs some room behind it


def _fake_forward(
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    uniforms: Tensor | None,
    state: list[Tensor],
    parameters: list[Tensor],
    packed: Tensor | None,
    program: list[int],
    constants: list[float],
    saved_size: int,
    recompute: bool,
    want_prior: bool,
    want_raw: bool,
    threshold: float,
) -> tuple[Any, ...]:
    _on_one_device(x, eps, cond, lengths, resets, mask, uniforms, state, parameters, packed)
    steps, batch, latent = eps.shape
    number = _known(program, constants, parameters)
    output = torch.ops.vrnn_fast.output_width(number)
    saved = 0 if saved_size == 0 else saved_size + torch.ops.vrnn_fast.packed_size(number)

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
        x.new_empty((0, 0, 1) if uniforms is None else uniforms.shape, dtype=torch.int64),
        x.new_empty((saved,)),
    )


def _known(program: list[int], constants: list[float], parameters: list[Tensor]) -> int:
    """The number of a program, given by it or by its whole code."""
    if len(program) == 1:
        return program[0]
    return int(torch.ops.vrnn_fast.program_number(program, constants, len(parameters)))


def _fake_generate(
    eps: Tensor,
    noise: Tensor,
    cond: Tensor | None,
    state: list[Tensor],
    parameters: list[Tensor],
    packed: Tensor | None,
    program: list[int],
    constants: list[float],
) -> tuple[Any, ...]:
    _on_one_device(eps, noise, cond, state, parameters, packed)
    return noise.new_empty(noise.shape), [noise.new_empty(s.shape) for s in state]


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
    ancestors: Tensor | None,
    saved: Tensor,
    program: list[int],
    constants: list[float],
    recompute: bool,
    want_x: bool,
    want_eps: bool,
    want_cond: bool,
) -> tuple[Any, ...]:
    _on_one_device(upstream, x, eps, cond, lengths, resets, mask, state, parameters, ancestors, saved)

    def per_step(like: Tensor | None, wanted: bool) -> Tensor:
        return x.new_empty((0,) if like is None else like.shape if wanted else (0, 0, like.shape[2]))

    return (
        per_step(x, want_x),
        per_step(eps, want_eps),
        per_step(cond, want_cond),
        [x.new_empty(s.shape) for s in state],
        [x.new_empty(p.shape) for p in parameters],
    )


def _fake_pack(parameters: list[Tensor], number: int) -> Tensor:
    _on_one_device(parameters)
    return parameters[0].new_empty(torch.ops.vrnn_fast.packed_size(number))


def _fake_step(
    packed: Tensor, number: int, x: Tensor, eps: Tensor, state: list[Tensor], want_raw: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    _on_one_device(packed, x, eps, state)
    batch, output = x.shape[0], torch.ops.vrnn_fast.output_width(number)
    nll, kl, predicted = x.new_empty(batch), x.new_empty(batch), x.new_empty(batch, output)
    return nll, kl, x.new_empty(batch if want_raw else 0, output), predicted, [x.new_empty(s.shape) for s in state]


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


def _flops(program: list[int], constants: list[float], parameters: list[Tensor]) -> list[int]:
    """Of one row and time step forward: all, what reads x, what reads cond, what a single step repeats."""
    counts: list[int] = torch.ops.vrnn_fast.flops(_known(program, constants, parameters))
    return counts


def _rows(x: Tensor, lengths: Tensor | None) -> int:
    """The real (time step, sequence) pairs; of fake lengths, what they are at most."""
    if lengths is None or isinstance(lengths, FakeTensor):
        return x.shape[0] * x.shape[1]
    return int(lengths.sum())


def _forward_flops(
    x: Tensor,
    eps: Tensor,
    cond: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mask: Tensor | None,
    uniforms: Tensor | None,
    state: list[Tensor],
    parameters: list[Tensor],
    packed: Tensor | None,
    program: list[int],
    constants: list[float],
    *options: Any,
    out_val: Any = None,
) -> int:
    return _rows(x, lengths) * _flops(program, constants, parameters)[0]


def _backward_flops(
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
    ancestors: Tensor | None,
    saved: Tensor,
    program: list[int],
    constants: list[float],
    recompute: bool,
    want_x: bool,
    want_eps: bool,
    want_cond: bool,
    out_val: Any = None,
) -> int:
    """Of the gradients alone: what is computed again for them is not counted."""
    forward, of_x, of_cond, _ = _flops(program, constants, parameters)
    unwanted = (0 if want_x else of_x) + (0 if want_cond else of_cond)
    return _rows(x, lengths) * (2 * forward - unwanted)


def _generate_flops(
    eps: Tensor,
    noise: Tensor,
    cond: Tensor | None,
    state: list[Tensor],
    parameters: list[Tensor],
    packed: Tensor | None,
    program: list[int],
    constants: list[float],
    out_val: Any = None,
) -> int:
    return _rows(eps, None) * _flops(program, constants, parameters)[0]


def _step_flops(
    packed: Tensor,
    number: int,
    x: Tensor,
    eps: Tensor,
    state: list[Tensor],
    want_raw: bool,
    out_val: Any = None,
) -> int:
    forward, _, _, repeated = _flops([number], [], [])
    return x.shape[0] * (forward + repeated)


_FLOPS: dict[str, Callable[..., int]] = {
    "forward": _forward_flops,
    "backward": _backward_flops,
    "generate": _generate_flops,
    "step": _step_flops,
}


def _register() -> None:
    torch.library.register_fake("vrnn_fast::forward", _fake_forward)
    torch.library.register_fake("vrnn_fast::backward", _fake_backward)
    torch.library.register_fake("vrnn_fast::generate", _fake_generate)
    torch.library.register_fake("vrnn_fast::pack", _fake_pack)
    torch.library.register_fake("vrnn_fast::step", _fake_step)
    torch.library.register_autograd("vrnn_fast::forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("vrnn_fast::backward", _refuse)
    for name, formula in _FLOPS.items():
        register_flop_formula(getattr(torch.ops.vrnn_fast, name), get_raw=True)(formula)
