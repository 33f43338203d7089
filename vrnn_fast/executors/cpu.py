"""The fused CPU executor: a partition encoded once, then one operator call per batch of sequences and direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias, assert_never

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import ops
from ..layout import Reading
from ..partition import generation, partition
from ..spec import ACTIVATIONS, CellSpec, Std
from ..stages import (
    Activate,
    Add,
    Bias,
    Block,
    Dense,
    Divergence,
    Draw,
    Keep,
    Likelihood,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
    Term,
)
from .reference import step_of_run
from .result import SequenceResult, StepResult

name = "cpu"
verified = (
    "float32, float64 and bfloat16 (computed in float32): baseline and AVX2 builds on AMD Zen 3, all three builds on "
    "an AVX-512 Intel Xeon"
)

Way: TypeAlias = Literal["inference", "samples", "means"]  # of running a cell: over given x, or drawing them

_LINE = 16  # elements; csrc/core/program.h
_ALIAS = 256  # elements: rows a multiple of this apart would compete for the same sets of the first-level cache
_OPS: tuple[type[Stage], ...] = (
    Bias,
    Dense,
    Activate,
    Add,
    Sample,
    Recur,
    Divergence,
    Likelihood,
    Resample,
    Draw,
)
_CELLS = ("gru", "lstm", "rnn")
_LIKELIHOODS = ("bernoulli", "gaussian", "external")
_STD_KINDS = ("plain", "softplus", "exponential")
_LARGEST = 3.4028234663852886e38  # float32: a clamp that clamps nothing
_FORMAT = 7  # of the code and of what forward saves: compiled graphs are cached by it


def unavailable() -> str | None:
    """None if the extension is built and loads, else the reason why not. Loads it."""
    return ops.load()


def refuses(spec: CellSpec, x: Tensor) -> str | None:
    """None, or why a call with this x cannot run here."""
    if x.device.type != "cpu":
        return f"it runs on CPU tensors, and x is on {x.device}"
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it takes float32, float64 or bfloat16, and x is {x.dtype}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "it knows gradients of reverse mode alone: no transforms of torch.func, no forward-mode derivatives"
    return None


def launches(spec: CellSpec) -> str:
    """How many launches a batch of sequences takes, in words.

    Raises:
        RuntimeError: as the launch would, where VRNN_FAST_ISA names a build that this machine cannot run.
    """
    calls = f"forward 1 operator call, backward 1, each one parallel region of {ops.chosen_isa()} code, whatever T is"
    if spec.likelihood == "external":
        return f"{calls}; generate and fivo go step by step, for the likelihood is outside of the launch"
    return f"{calls}; generate 1, and every bound as forward"


def source(spec: CellSpec, x: Tensor) -> str:
    """See :class:`vrnn_fast.executors.Executor`."""
    return "no kernel is generated: those of csrc/cpu, compiled beforehand, run every cell"


def run(
    spec: CellSpec,
    parameters: Sequence[Tensor],
    x: Tensor,
    eps: Tensor,
    lengths: Tensor | None,
    state: tuple[Tensor, ...],
    *,
    cond: Tensor | None = None,
    resets: Tensor | None = None,
    mask: Tensor | None = None,
    uniforms: Tensor | None = None,
    threshold: float = 0.5,
    recompute: bool,
    want_prior: bool,
    want_raw: bool,
) -> SequenceResult:
    """See :class:`vrnn_fast.executors.Executor`. bfloat16 is widened: stored in 16 bits, computed in float32."""
    if x.dtype == torch.bfloat16:
        wide = run(
            spec,
            [p.float() for p in parameters],
            x.float(),
            eps.float(),
            lengths,
            tuple(s.float() for s in state),
            cond=None if cond is None else cond.float(),
            resets=resets,
            mask=mask,
            uniforms=None if uniforms is None else uniforms.float(),
            threshold=threshold,
            recompute=recompute,
            want_prior=want_prior,
            want_raw=want_raw,
        )
        return wide.to(x.dtype)
    number, packed = None, None
    if not torch.compiler.is_compiling():
        number = _number(spec)
        if isinstance(parameters, Reading) and not ops.wanted(x, eps, cond, *state, *parameters):
            packed = parameters.once(_pack, spec, whole=True)
    out = ops.forward(
        program_of(spec),
        number,
        x,
        eps,
        cond,
        lengths,
        resets,
        mask,
        uniforms,
        state,
        parameters,
        packed,
        recompute=recompute,
        want_prior=want_prior,
        want_raw=want_raw,
        threshold=threshold,
    )
    return SequenceResult(
        *out[:5],
        prior_mean=out.prior_mean if want_prior else None,
        prior_std=out.prior_std if want_prior else None,
        raw=out.raw if want_raw else None,
        state=tuple(out.state),
        ancestors=None if uniforms is None else out.ancestors,
    )


def step(
    spec: CellSpec,
    parameters: Sequence[Tensor],
    x: Tensor,
    eps: Tensor,
    state: tuple[Tensor, ...],
    *,
    cond: Tensor | None = None,
    recompute: bool,
    want_raw: bool,
) -> StepResult:
    """See :class:`vrnn_fast.executors.Executor`. Without gradients, a cell of one layer steps in one call, on
    weights that were packed once."""
    plain = spec.num_layers == 1 and spec.latent_size > 0 and cond is None and x.dtype != torch.bfloat16
    if not plain or not isinstance(parameters, Reading) or ops.wanted(x, eps, cond, *state, *parameters):
        return step_of_run(run, spec, parameters, x, eps, state, cond=cond, recompute=recompute, want_raw=want_raw)
    nll, kl, raw, predicted, after = ops.step(parameters.once(_pack, spec, whole=False), x, eps, state, want_raw)
    return StepResult(nll, kl, raw if want_raw else None, predicted, after)


def generate(
    spec: CellSpec,
    parameters: Sequence[Tensor],
    eps: Tensor,
    noise: Tensor,
    state: tuple[Tensor, ...],
    *,
    cond: Tensor | None = None,
    mean: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See :class:`vrnn_fast.executors.Executor`. bfloat16 is widened as in :func:`run`."""
    if eps.dtype == torch.bfloat16:
        wide = None if cond is None else cond.float()
        start = tuple(s.float() for s in state)
        x, after = generate(
            spec, [p.float() for p in parameters], eps.float(), noise.float(), start, cond=wide, mean=mean
        )
        return x.to(eps.dtype), tuple(s.to(eps.dtype) for s in after)
    way: Way = "means" if mean else "samples"
    number, packed = None, None
    if not torch.compiler.is_compiling():
        number = _number(spec, way)
        if isinstance(parameters, Reading):
            packed = parameters.once(_pack, spec, way, whole=True)
    drawn, final = ops.generate(program_of(spec, way), number, eps, noise, cond, state, parameters, packed)
    return drawn, tuple(final)


def _pack(spec: CellSpec, parameters: Sequence[Tensor], way: Way = "inference") -> ops.Packed:
    return ops.Packed(_number(spec, way), parameters)


@lru_cache(maxsize=256)
def _number(spec: CellSpec, way: Way = "inference") -> ops.Number:
    return ops.number_of(encode(spec, way), len(list(spec.parameters())))


def stride(width: int) -> int:
    """Elements from one row of a buffer to the next."""
    lines = -(-width // _LINE) * _LINE
    return lines + _LINE if lines % _ALIAS == 0 else lines


# A method: Dynamo of torch 2.10 takes no frozen dataclass as an argument of such a function. It guards what is read of
# the object, so whoever calls it reads the key.
torch.compiler.assume_constant_result(CellSpec.constant)


def program_of(spec: CellSpec, way: Way = "inference") -> ops.Program:
    """:func:`encode`, remembered. A constant to torch.compile, which would otherwise trace through the cache."""
    return spec.constant(spec.key, _encoded, way)


def _encoded(spec: CellSpec, way: Way) -> ops.Program:
    return encode(spec, way)


@lru_cache(maxsize=256)
def encode(spec: CellSpec, way: Way = "inference") -> ops.Program:
    """The partition of a cell as the integers that csrc/core/decode.cpp reads."""
    program = partition(spec) if way == "inference" else generation(spec, mean=way == "means")
    buffers = {b.name: i for i, b in enumerate(program.buffers)}
    parameters = {p.name: i for i, p in enumerate(spec.parameters())}
    constants: list[float] = []

    def slices(*parts: Slice) -> Iterator[int]:
        for part in parts:
            yield from (buffers[part.buffer], part.start, part.width)

    def weights(stage: Bias | Dense, blocks: tuple[Block, ...], terms: tuple[Term, ...] | None) -> Iterator[int]:
        yield from slices(stage.target)
        yield from (terms is None, len(blocks), len(terms or ()))
        for b in blocks:
            yield from (parameters[b.parameter], b.row, b.rows, b.column, b.at)
        for t in terms or ():
            yield from (parameters[t.parameter], t.row, t.rows, t.at)

    def constant(value: float) -> int:
        constants.append(value)
        return len(constants) - 1

    def transform(std: Std) -> Iterator[int]:
        yield _STD_KINDS.index("plain" if std.plain else "softplus" if std.kind == "softplus" else "exponential")
        yield constant(std.floor)
        if not std.plain:
            scale = 0.5 if std.kind == "log_variance" else std.beta
            for value in (scale, std.shift, std.minimum, max(std.low, -_LARGEST), min(std.high, _LARGEST)):
                yield constant(value)

    def integers(stage: Stage) -> Iterator[int]:
        yield _OPS.index(type(stage))
        match stage:
            case Bias():
                yield from weights(stage, (), stage.terms)
            case Dense():
                yield from slices(stage.source)
                yield from weights(stage, stage.blocks, stage.bias)
            case Activate():
                yield from (*slices(stage.target), ACTIVATIONS.index(stage.activation))
            case Add():
                yield from slices(stage.source, stage.target)
            case Sample():
                yield from (*slices(stage.source, stage.std, stage.z), *transform(stage.transform))
            case Recur():
                yield from (_CELLS.index(stage.cell), *slices(stage.gates, stage.h))
                for part in (stage.candidate, stage.c, stage.output):
                    yield part is not None
                    yield from slices(*(() if part is None else (part,)))
            case Divergence():
                yield from slices(stage.posterior, stage.posterior_std, stage.prior, stage.prior_std)
                yield from transform(stage.transform)
                yield stage.z is not None
                yield from slices(*(() if stage.z is None else (stage.z,)))
            case Likelihood():
                yield from (*slices(stage.source), _LIKELIHOODS.index(stage.kind), *transform(stage.transform))
            case Resample():
                pass
            case Draw():
                yield from slices(stage.source, stage.noise, stage.x)
                yield from (_LIKELIHOODS.index(stage.kind), stage.mean, *transform(stage.transform))
            case _:
                assert_never(stage)

    code = [_FORMAT, spec.output_size, len(program.buffers), spec.state_tensors, buffers.get("cond", -1)]
    for b in program.buffers:
        code += [b.width, stride(b.width), int(b.keep)]
    code += [len(program.before), len(program.scan), len(program.after)]
    for stage in program.stages:
        code += map(int, integers(stage))

    def saved(least: Keep) -> int:
        return sum(stride(b.width) for b in program.buffers if b.keep >= least)

    return ops.Program(code, constants, saved(Keep.STORED), saved(Keep.ALWAYS))
