"""The fused CPU executor: a partition encoded once, then one operator call per batch of sequences and direction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...cell.encode import Program, ProgramKind, encode
from ...cell.spec import CellSpec
from ...parameters import Reading
from ..base import Batch, SequenceResult, StepResult, Want, asked_for
from ..reference import step_of_run
from . import operators

name = "cpu"
device = "cpu"
trusted = True
verified = (
    "float32, float64 and bfloat16 (computed in float32): baseline and AVX2 builds on AMD Zen 3, all three builds on "
    "an AVX-512 Intel Xeon"
)


def unavailable() -> str | None:
    """Load the extension: return None if it is built and loads, else the reason why not."""
    return operators.load()


def refuses(spec: CellSpec, x: Tensor, particles: int = 1) -> str | None:
    """Return None, or why a call with this x cannot run here."""
    if x.device.type != "cpu":
        return f"it runs on CPU tensors, and x is on {x.device}"
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it takes float32, float64 or bfloat16, and x is {x.dtype}"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "it knows gradients of reverse mode alone: no transforms of torch.func, no forward-mode derivatives"
    return None


def launches(spec: CellSpec) -> str:
    """Tell how many launches a batch of sequences takes, in words.

    Raises:
        RuntimeError: as the launch would, where VRNN_FAST_ISA names a build that this machine cannot run.
    """
    calls = (
        f"forward 1 operator call, backward 1, each one parallel region of {operators.chosen_isa()} code, whatever T is"
    )
    if spec.likelihood == "external":
        return f"{calls}; generate and fivo go step by step, for the likelihood is outside of the launch"
    return f"{calls}; generate 1, and every bound as forward"


def source(spec: CellSpec, x: Tensor) -> str:
    """See :class:`vrnn_fast.executors.Executor`."""
    return "no kernel is generated: those of csrc/cpu, compiled beforehand, run every cell"


def run(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> SequenceResult:
    """See :class:`vrnn_fast.executors.Executor`. bfloat16 is widened: stored in 16 bits, computed in float32."""
    dtype = batch.x.dtype
    if dtype == torch.bfloat16:
        return run(spec, [p.float() for p in parameters], batch.to(torch.float32), want).to(dtype)
    number, packed = None, None
    if not torch.compiler.is_compiling():
        number = _number(spec)
        if isinstance(parameters, Reading) and not operators.wanted(*batch.differentiable, *parameters):
            packed = parameters.once(_pack, spec, thorough=True)
    out = operators.forward(program_of(spec), number, batch, parameters, packed, want)
    return asked_for(out, batch, want)


def step(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> StepResult:
    """See :class:`vrnn_fast.executors.Executor`. Without gradients, a cell of one layer steps in one call, on
    weights that were packed once."""
    plain = spec.num_layers == 1 and spec.latent_size > 0 and batch.cond is None and batch.x.dtype != torch.bfloat16
    if (
        not plain
        or not isinstance(parameters, Reading)
        or operators.wanted(batch.x, batch.eps, *batch.state, *parameters)
    ):
        return step_of_run(run, spec, parameters, batch, want)
    packed = parameters.once(_pack, spec, thorough=False)
    nll, kl, raw, predicted, after = operators.step(packed, batch, want.raw)
    return StepResult(nll, kl, raw if want.raw else None, predicted, after)


def generate(
    spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, *, mean: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See :class:`vrnn_fast.executors.Executor`. bfloat16 is widened as in :func:`run`."""
    dtype = batch.eps.dtype
    if dtype == torch.bfloat16:
        x, after = generate(spec, [p.float() for p in parameters], batch.to(torch.float32), mean=mean)
        return x.to(dtype), tuple(s.to(dtype) for s in after)
    kind: ProgramKind = "means" if mean else "samples"
    number, packed = None, None
    if not torch.compiler.is_compiling():
        number = _number(spec, kind)
        if isinstance(parameters, Reading):
            packed = parameters.once(_pack, spec, kind, thorough=True)
    drawn, final = operators.generate(program_of(spec, kind), number, batch, parameters, packed)
    return drawn, tuple(final)


def _pack(spec: CellSpec, parameters: Sequence[Tensor], kind: ProgramKind = "inference") -> operators.Packed:
    return operators.Packed(_number(spec, kind), parameters)


@lru_cache(maxsize=256)
def _number(spec: CellSpec, kind: ProgramKind = "inference") -> operators.Number:
    return operators.number_of(encode(spec, kind), len(list(spec.parameters())))


# A method: Dynamo of torch 2.10 takes no frozen dataclass as an argument of such a function. It guards what is read of
# the object, so whoever calls it reads the key.
torch.compiler.assume_constant_result(CellSpec.constant)


def program_of(spec: CellSpec, kind: ProgramKind = "inference") -> Program:
    """Encode as :func:`encode` does, and remember. A constant to torch.compile, which would otherwise trace through the
    cache."""
    return spec.constant(spec.key, _encoded, kind)


def _encoded(spec: CellSpec, kind: ProgramKind) -> Program:
    return encode(spec, kind)
