"""The operators of an executor whose kernels run the scan: ``vrnn_fast::triton_forward``, ``triton_backward``,
``triton_generate`` and the like, with fakes and autograd. See call.py.

A cell's structure travels as text, so that a compiled or exported graph means the same in another process.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..cell.partition import partition
from ..cell.spec import CellSpec, Std
from ..cell.stages import Keep
from ..ops import add_op_namespace_prefix, ops
from .base import PER_STEP, Batch, SequenceResult, Want, asked_for
from .call import Gradients, Outputs, Remembered, kept

NO_BACKWARD = -1


@lru_cache(maxsize=256)
def encode(spec: CellSpec) -> str:
    """Write a spec as text."""
    return json.dumps(asdict(spec))


@lru_cache(maxsize=256)
def decode(text: str) -> CellSpec:
    """Read the spec of a text that :func:`encode` wrote."""
    fields = {name: _tuples(value) for name, value in json.loads(text).items()}
    for name in ("std", "output_std"):
        fields[name] = Std(**fields[name])
    return CellSpec(**fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class Runnable(Protocol):
    """A call of a batch, forward or backward: see the methods of call.Call."""

    def forward(self, keep: Keep | None, want: Want) -> Outputs: ...

    def backward(self, upstream: Mapping[str, Tensor], remembered: Remembered, wanted: set[str]) -> Gradients: ...


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
    operator = getattr(ops, f"{name}_forward")
    out = Outputs(*operator(*batch.sequences, list(batch.state), list(parameters), *options))
    return asked_for(out, batch, want)


def refuses() -> str | None:
    """Return None, or why these operators cannot be called just now. Traced."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "it knows gradients of reverse mode alone: no transforms of torch.func, no forward-mode derivatives"
    return None


class _ScanForward(NamedTuple):
    """What ``forward`` takes; ``keep`` is the least Keep that backward wants, or NO_BACKWARD."""

    x: Tensor
    eps: Tensor
    cond: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    mask: Tensor | None
    uniforms: Tensor | None
    state: Sequence[Tensor]
    parameters: Sequence[Tensor]
    spec: str
    precision: str
    keep: int
    want_prior: bool
    want_raw: bool
    threshold: float

    @property
    def batch(self) -> Batch:
        state, given = tuple(self.state), (self.resets, self.mask, self.uniforms)
        return Batch(self.x, self.eps, state, self.lengths, self.cond, *given, self.threshold)

    @property
    def least(self) -> Keep | None:
        return None if self.keep == NO_BACKWARD else Keep(self.keep)


class _ScanBackward(NamedTuple):
    """What ``backward`` takes; ``slots`` numbers the results of ``upstream``, the states after PER_STEP."""

    upstream: Sequence[Tensor]
    slots: Sequence[int]
    x: Tensor
    eps: Tensor
    cond: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    mask: Tensor | None
    uniforms: Tensor | None
    state: Sequence[Tensor]
    parameters: Sequence[Tensor]
    z: Tensor
    std: Tensor
    ancestors: Tensor
    saved: Sequence[Tensor]
    spec: str
    precision: str
    keep: int
    want_x: bool
    want_eps: bool
    want_cond: bool

    @property
    def batch(self) -> Batch:
        state = tuple(self.state)
        return Batch(self.x, self.eps, state, self.lengths, self.cond, self.resets, self.mask, self.uniforms)

    @property
    def given(self) -> dict[str, Tensor]:
        """The gradients of results, by name."""
        names = [*PER_STEP, *(f"state{i}" for i in range(len(self.state)))]
        return {names[slot]: gradient for slot, gradient in zip(self.slots, self.upstream, strict=True)}

    @property
    def wanted(self) -> dict[str, Tensor | None]:
        """Those of the inputs whose gradients are."""
        flags = {"x": self.want_x, "eps": self.want_eps, "cond": self.want_cond}
        return {name: getattr(self, name) for name, flag in flags.items() if flag}


class _ScanGenerate(NamedTuple):
    """What ``generate`` takes."""

    eps: Tensor
    noise: Tensor
    cond: Tensor | None
    state: Sequence[Tensor]
    parameters: Sequence[Tensor]
    spec: str
    precision: str
    mean: bool


# nll, kl, z, mean, std, prior_mean, prior_std and raw; the state; what was saved; ancestors
_Forwarded: TypeAlias = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], Tensor
]
# of x, eps and cond, without elements where not wanted; of the state; of the parameters
_Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]
_Generated: TypeAlias = tuple[Tensor, list[Tensor]]  # x and the state


def register(name: str, make: Make, generate: Generate) -> None:
    """Define the three operators of an executor."""

    def forward(*arguments: Any) -> _Forwarded:
        a = _ScanForward(*arguments)
        own = make(decode(a.spec), a.batch, a.parameters, a.precision, reverse=False)
        return (*own.forward(a.least, Want(a.want_prior, a.want_raw)),)

    def backward(*arguments: Any) -> _Gradients:
        a = _ScanBackward(*arguments)
        own = make(decode(a.spec), a.batch, a.parameters, a.precision, reverse=True)
        remembered = Remembered(a.z, a.std, a.ancestors, a.saved, Keep(a.keep))
        found = own.backward(a.given, remembered, set(a.wanted))
        x, eps, cond = (a.x.new_empty((0,)) if d is None else d for d in (found.x, found.eps, found.cond))
        return x, eps, cond, found.state, found.parameters

    def generate_(*arguments: Any) -> _Generated:
        a = _ScanGenerate(*arguments)
        batch = Batch(a.noise, a.eps, tuple(a.state), cond=a.cond)
        return generate(decode(a.spec), batch, a.parameters, a.precision, mean=a.mean)

    def autograd(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        result = Outputs(*gradients)
        on_state: Sequence[Tensor | None] = result.state or [None] * ctx.states
        upstream = [*(getattr(result, n) for n in PER_STEP), *on_state]
        slots = [i for i, g in enumerate(upstream) if g is not None and g.numel() > 0]
        x, eps, cond, lengths, resets, mask, uniforms, z, std, ancestors, *rest = ctx.saved_tensors
        state, rest = rest[: ctx.states], rest[ctx.states :]
        parameters, saved = rest[: ctx.parameters], rest[ctx.parameters :]
        spec, precision, keep = ctx.options
        want_x, want_eps, want_cond = ctx.needs_input_grad[:3]
        arguments = _ScanBackward(
            upstream=[upstream[i] for i in slots],
            slots=slots,
            x=x,
            eps=eps,
            cond=cond,
            lengths=lengths,
            resets=resets,
            mask=mask,
            uniforms=uniforms,
            state=state,
            parameters=parameters,
            z=z,
            std=std,
            ancestors=ancestors,
            saved=saved,
            spec=spec,
            precision=precision,
            keep=keep,
            want_x=want_x,
            want_eps=want_eps,
            want_cond=want_cond,
        )
        operator = getattr(ops, f"{name}_backward")
        d_x, d_eps, d_cond, d_state, d_parameters = operator(*arguments)
        found = {"state": d_state, "parameters": d_parameters}
        found |= {n: d for n, d in (("x", d_x), ("eps", d_eps), ("cond", d_cond)) if n in arguments.wanted}
        return tuple(found.get(n) for n in _ScanForward._fields)

    def define(suffix: str, function: Any, arguments: type, results: object, fake: Any) -> Any:
        schema = _schema(arguments, results)
        whole = add_op_namespace_prefix(f"{name}_{suffix}")
        operator = torch.library.custom_op(whole, function, mutates_args=(), schema=schema)
        operator.register_fake(fake)
        return operator

    define("backward", backward, _ScanBackward, _Gradients, _fake_backward)
    define("generate", generate_, _ScanGenerate, _Generated, _fake_generate)
    operator = define("forward", forward, _ScanForward, _Forwarded, _fake_forward)
    operator.register_autograd(autograd, setup_context=_setup_context)


def _schema(arguments: type, results: object) -> str:
    """Write the schema of an operator that takes the fields of a named tuple."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = [inspect.Parameter(name, kind, annotation=type_) for name, type_ in get_type_hints(arguments).items()]

    def operator(*arguments: Any) -> Any: ...

    operator.__signature__ = inspect.Signature(taken, return_annotation=results)  # type: ignore[attr-defined]
    return torch.library.infer_schema(operator, mutates_args=())


def _fake_forward(*arguments: Any) -> tuple[Any, ...]:
    a = _ScanForward(*arguments)
    x, cell, (steps, batch) = a.x, decode(a.spec), a.x.shape[:2]
    program = partition(cell)
    widths = {buffer.name: buffer.width for buffer in program.buffers}

    def per_step(width: int, wanted: bool = True) -> Tensor:
        return x.new_empty((steps, batch, width) if wanted else (0, 0, width))

    latent = [per_step(cell.latent_size, wanted) for wanted in (True, True, True, a.want_prior, a.want_prior)]
    raw = per_step(cell.output_size, a.want_raw)
    saved = [x.new_empty((steps * batch, widths[name])) for name in kept(program, a.least)]
    nll, kl = x.new_empty((steps, batch)), x.new_empty((steps, batch))
    ancestors = x.new_empty((0, 0, 0) if a.uniforms is None else a.uniforms.shape, dtype=torch.int64)
    return nll, kl, *latent, raw, [x.new_empty(s.shape) for s in a.state], saved, ancestors


def _fake_backward(*arguments: Any) -> tuple[Any, ...]:
    a = _ScanBackward(*arguments)
    found = (a.wanted.get(name) for name in ("x", "eps", "cond"))
    sequences = (a.x.new_empty((0,) if t is None else t.shape) for t in found)
    return *sequences, [a.x.new_empty(s.shape) for s in a.state], [a.x.new_empty(p.shape) for p in a.parameters]


def _fake_generate(*arguments: Any) -> tuple[Any, ...]:
    a = _ScanGenerate(*arguments)
    return a.noise.new_empty(a.noise.shape), [a.noise.new_empty(s.shape) for s in a.state]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    a, result = _ScanForward(*inputs), Outputs(*output)
    ctx.set_materialize_grads(False)
    results = (result.z, result.std, result.ancestors)
    ctx.save_for_backward(*a.batch.sequences, *results, *a.state, *a.parameters, *result.saved)
    ctx.states, ctx.parameters, ctx.options = len(a.state), len(a.parameters), (a.spec, a.precision, a.keep)
