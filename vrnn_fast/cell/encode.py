"""A partition as the integers that compiled code reads: csrc/core/decode.cpp has the other half."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from .partition import generation, partition
from .spec import ACTIVATIONS, CellSpec, Std
from .stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Block,
    Dense,
    Divergence,
    Draw,
    Keep,
    Likelihood,
    Normalize,
    Partition,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
    Term,
    forgotten,
)

ProgramKind: TypeAlias = Literal["inference", "samples", "means"]  # of running a cell: over given x, or drawing them

LINE = 16  # elements; csrc/core/program.h
ALIAS = 256  # elements: rows a multiple of this apart would compete for the same sets of the first-level cache
OPS: tuple[type[Stage], ...] = (
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
    Begin,
    Normalize,
)
CELLS = ("gru", "lstm", "rnn")
LIKELIHOODS = ("bernoulli", "gaussian", "external")
STD_KINDS = ("plain", "softplus", "exponential")
LARGEST = 3.4028234663852886e38  # float32: a clamp that clamps nothing
FORMAT = 11  # of the code and of what forward saves: compiled graphs are cached by it


class Program(NamedTuple):
    """An encoded partition: what the operators take of a cell's structure."""

    code: list[int]
    constants: list[float]
    saved: int  # elements that forward keeps for backward per (time step, sequence)
    saved_small: int  # the same where all of it is small
    saved_recompute: int  # the same where everything else is recomputed


def stride(width: int) -> int:
    """Count the elements from one row of a buffer to the next."""
    lines = -(-width // LINE) * LINE
    return lines + LINE if lines % ALIAS == 0 else lines


class _StageWriter:
    """Writes the stages of a partition as integers; the constants of standard deviations lie beside them."""

    def __init__(self, spec: CellSpec, program: Partition) -> None:
        self.buffers = {b.name: i for i, b in enumerate(program.buffers)}
        self.parameters = {p.name: i for i, p in enumerate(spec.parameters())}
        self.constants: list[float] = []

    def stage(self, stage: Stage) -> Iterator[int]:
        yield OPS.index(type(stage))
        match stage:
            case Bias() | Begin():
                yield from self._weights(stage, (), stage.terms)
            case Dense():
                yield from self._slices(stage.source)
                yield from self._weights(stage, stage.blocks, stage.bias)
            case Normalize():
                yield from (*self._slices(stage.source, stage.target), self._constant(stage.eps))
                yield from self._terms((), stage.terms)
            case Activate():
                yield from (*self._slices(stage.source, stage.target), ACTIVATIONS.index(stage.activation))
            case Add():
                yield from self._slices(stage.source, stage.target)
            case Sample():
                yield from (*self._slices(stage.source, stage.std, stage.z), *self._transform(stage.transform))
            case Recur():
                yield from (CELLS.index(stage.cell), *self._slices(stage.gates, stage.h))
                for part in (stage.candidate, stage.c, stage.output):
                    yield from self._optional(part)
            case Divergence():
                yield from self._slices(stage.posterior, stage.posterior_std, stage.prior, stage.prior_std)
                yield from self._transform(stage.transform)
                yield from self._optional(stage.z)
            case Likelihood():
                kind = LIKELIHOODS.index(stage.kind)
                yield from (*self._slices(stage.source), kind, *self._transform(stage.transform))
            case Resample():
                pass
            case Draw():
                yield from self._slices(stage.source, stage.noise, stage.x)
                yield from (LIKELIHOODS.index(stage.kind), stage.mean, *self._transform(stage.transform))
            case _:
                forgotten(stage)

    def _slices(self, *parts: Slice) -> Iterator[int]:
        for part in parts:
            yield from (self.buffers[part.buffer], part.start, part.width)

    def _optional(self, part: Slice | None) -> Iterator[int]:
        yield part is not None
        if part is not None:
            yield from self._slices(part)

    def _weights(
        self, stage: Bias | Dense | Begin, blocks: tuple[Block, ...], terms: tuple[Term, ...] | None
    ) -> Iterator[int]:
        yield from self._slices(stage.target)
        yield from self._terms(blocks, terms)

    def _terms(self, blocks: tuple[Block, ...], terms: tuple[Term, ...] | None) -> Iterator[int]:
        yield from (terms is None, len(blocks), len(terms or ()))
        for b in blocks:
            yield from (self.parameters[b.parameter], b.row, b.rows, b.column, b.at)
        for t in terms or ():
            yield from (self.parameters[t.parameter], t.row, t.rows, t.at)

    def _transform(self, std: Std) -> Iterator[int]:
        yield STD_KINDS.index("plain" if std.plain else "softplus" if std.kind == "softplus" else "exponential")
        yield self._constant(std.floor)
        if not std.plain:
            scale = 0.5 if std.kind == "log_variance" else std.sharpness
            low, high = max(std.clamp[0], -LARGEST), min(std.clamp[1], LARGEST)
            for value in (scale, std.offset, std.min_std, low, high):
                yield self._constant(value)

    def _constant(self, value: float) -> int:
        self.constants.append(value)
        return len(self.constants) - 1


@lru_cache(maxsize=256)
def encode(spec: CellSpec, kind: ProgramKind = "inference") -> Program:
    """Write the partition of a cell as the integers that csrc/core/decode.cpp reads."""
    program = partition(spec) if kind == "inference" else generation(spec, mean=kind == "means")
    writer = _StageWriter(spec, program)
    code = [FORMAT, spec.output_size, len(program.buffers), spec.state_tensors, writer.buffers.get("cond", -1)]
    for b in program.buffers:
        code += [b.width, stride(b.width), int(b.keep)]
    code += [len(program.before), len(program.scan), len(program.after)]
    for stage in program.stages:
        code += map(int, writer.stage(stage))

    def saved(least: Keep) -> int:
        return sum(stride(b.width) for b in program.buffers if b.keep >= least)

    return Program(code, writer.constants, saved(Keep.STORED), saved(Keep.IF_SMALL), saved(Keep.ALWAYS))
