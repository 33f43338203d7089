"""What the compiler makes of the CUDA kernels: registers, spills, shared memory, barriers.

``python -m bench.cuda_resources`` writes bench/results/cuda-resources.md. It needs nvcc and no GPU, and says nothing
about speed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors.base import Want
from vrnn_fast.executors.cuda import sources
from vrnn_fast.executors.cuda.crew import JoinedProgram
from vrnn_fast.executors.cuda.driver import Kernel
from vrnn_fast.executors.cuda.kernels import FixedKernel, PlannedKernel, fixed, program, together
from vrnn_fast.executors.cuda.memory import CHIPS, ROWS, Memory, Operand, memory
from vrnn_fast.executors.cuda.plan import STACKS, TOTALS
from vrnn_fast.executors.cuda.steps import (
    BACKWARD,
    BLOCKS,
    PlannedLaunch,
    ScanWays,
    all_by,
    backward_steps,
    forward_steps,
)
from vrnn_fast.executors.cuda.weights import SIDES, jobs

from .record import RESULTS

SCANS = ("forward", "backward")
PASSES = ("before", "after", "after, backward", "before, backward")
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "f32": torch.float32}
SIZES: dict[Operand, tuple[int, ...]] = {"bf16": (32, 64, 96, 128, 256), "tf32": (64, 128), "f32": (64, 128)}
WIDE = 256, 384  # of which there are passes of 32 rows
TARGETS = ("sm_80", "sm_90a", "sm_100a", "sm_120")


@dataclass(frozen=True)
class Registers:
    """What a thread needs: registers, and bytes that spilled."""

    registers: int
    spilled: int


@dataclass(frozen=True)
class KernelSource:
    """A kernel's source, and where it keeps everything."""

    text: str
    memory: Memory


def spec_of(size: int) -> CellSpec:
    """Return a GRU cell with one hidden layer as wide as the state in each network."""
    wide = (size,)
    return CellSpec(28, size, 16, phi_x=wide, phi_z=wide, encoder=wide, prior=wide, decoder=wide)


def steps(spec: CellSpec, ways: ScanWays = BLOCKS) -> dict[str, PlannedLaunch]:
    """List the launches of a training step on the loss alone."""
    there = forward_steps(spec, Keep.STORED, Want(), ways)
    back = backward_steps(spec, frozenset(TOTALS), frozenset(), Keep.STORED, ways)
    return {step.name: step for step in (*there, *back)}


def kernel(size: int, kind: Operand, target: str, way: str, stacked: int = 1) -> KernelSource | None:
    """Write the kernel of a GRU cell in training, whose passes take so many times 16 rows; None where none fits."""
    step, limit = steps(spec_of(size), all_by(None, stacked))[way], CHIPS[target.removesuffix("a")]
    if memory(step.plan, kind, limit) is None:
        return None
    found = program(step, kind, limit, DTYPES[kind])
    return KernelSource(found.kernel.text, found.memory)


def joined(size: int, kind: Operand, target: str, way: str, ways: ScanWays = BLOCKS) -> Kernel | None:
    """Write the kernel that is all of a direction; None where one of its programs does not fit."""
    spec, limit, dtype = spec_of(size), CHIPS[target.removesuffix("a")], DTYPES[kind]
    parts = forward_steps(spec, Keep.STORED, Want(), ways)
    if way == BACKWARD:
        parts = backward_steps(spec, frozenset(TOTALS), frozenset(), Keep.STORED, ways)
    if any(memory(step.plan, kind, limit) is None for step in parts):
        return None
    parameters = len(list(spec.parameters()))
    found: list[FixedKernel | PlannedKernel] = [fixed("pack", kind, dtype, parameters)]
    found += (program(step, kind, limit, dtype) for step in parts)
    if way == BACKWARD:
        own = jobs(spec, frozenset(TOTALS), kind)
        found.append(fixed("weights", kind, dtype, len(own.buffers), own.side))
        found.append(fixed("sums", kind, dtype, parameters))
    programs = tuple(JoinedProgram(p.kernel.name, p.body, p.kernel.shared) for p in found)
    return together(programs, limit, ways.of(way).cluster)


def compiled(text: str, target: str) -> Registers:
    """Compile it with nvcc and its assembler.

    Raises:
        ValueError: the compiler refuses it, or warns.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.cu")
        source.write_text(text)
        command = ["nvcc", "-std=c++17", f"-arch={target}", f"-I{sources.SOURCE}", "-cubin", "-Xptxas", "-v"]
        command += ["-Werror", "all-warnings", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise ValueError(said)
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return Registers(int(registers), sum(map(int, re.findall(r"(\d+) bytes spill", said))))


def rows() -> Iterator[str]:
    """Yield the lines of the table, as they are compiled."""
    columns = ("H", "operands", "chip", "kernel", "registers", "spilled", "KB shared", "weights in shared memory")
    more = ("in registers", "streamed", "inputs ahead", "barriers a step")
    yield f"| {' | '.join((*columns, *more))} |"
    yield f"| --: | --- | --- | --- |{' --: |' * 8}"
    for kind, sizes in SIZES.items():
        for size, target in product(sizes, TARGETS):
            for way in (*SCANS, *(PASSES if kind == "bf16" else ())):
                made = kernel(size, kind, target, way)
                yield f"| {size} | {kind} | {target} | {way} | {_cells(made, target)} |"
    for size, target, way in product(WIDE, TARGETS, PASSES):
        made = kernel(size, "bf16", target, way, STACKS[-1])
        if made is not None and made.memory.plan.stacked == STACKS[-1]:
            yield f"| {size} | bf16 | {target} | {way}, of {ROWS * STACKS[-1]} rows | {_cells(made, target)} |"
    for kind, target in product(SIZES, TARGETS):
        for name in ("pack", "weights", "sums"):
            yield _row("any", kind, target, fixed(name, kind, DTYPES[kind], 20).kernel)
    for target in TARGETS:
        yield _row("wide", "bf16", target, fixed("weights", "bf16", DTYPES["bf16"], 20, SIDES[1]).kernel)
    for size, target, way in product((64, 128), TARGETS[:3], SCANS):
        whole = joined(size, "bf16", target, way)
        if whole is not None:
            yield _row(str(size), "bf16", target, whole)


def _row(size: str, kind: Operand, target: str, kernel: Kernel) -> str:
    of = compiled(kernel.text, target)
    numbers = of.registers, of.spilled, round(kernel.shared / 1024)
    return f"| {size} | {kind} | {target} | {kernel.name} | {' | '.join(map(str, numbers))} | | | | | |"


def _cells(made: KernelSource | None, target: str) -> str:
    if made is None:
        return "does not fit | | | | | | |"
    found, of = made.memory, compiled(made.text, target)
    places = list(found.place.values())
    weights = (places.count("shared"), places.count("registers"), places.count("memory"))
    ahead = f"{len(found.ahead)} of {len(found.plan.read)}"
    barriers = sum(visit.barrier for visit in found.plan.visits)
    numbers = (of.registers, of.spilled, round(found.shared / 1024), *weights, ahead, barriers)
    return " | ".join(map(str, numbers))


def main() -> None:
    lines = list(rows())
    text = "\n".join(
        (
            "# What the compiler makes of the CUDA kernels",
            "",
            "`python -m bench.cuda_resources`: a GRU cell with Z = 16 and one hidden layer as wide as the state in",
            "each network, in training. Registers are those of a thread, spills bytes of it; weights are counted by",
            "the products that read them, inputs by the parts of a step that lie in shared memory a step ahead. All of",
            "forward and all of backward are the launches beside them in one, for a block a multiprocessor. Passes",
            "take 16 rows at a time, or 32.",
            "**Nothing here has run on a GPU.**",
            "",
            *lines,
            "",
        )
    )
    (RESULTS / "cuda-resources.md").write_text(text)


if __name__ == "__main__":
    main()
