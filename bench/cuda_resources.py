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
from pathlib import Path
from typing import Literal, get_args

from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors.base import Want
from vrnn_fast.executors.cuda import sources
from vrnn_fast.executors.cuda.forward import forward
from vrnn_fast.executors.cuda.header import header
from vrnn_fast.executors.cuda.memory import CHIPS, Memory, Operand, memory
from vrnn_fast.executors.cuda.reverse import reverse

from .record import RESULTS

Way = Literal["forward", "backward"]
VALUES = {"bf16": "bfloat16", "f16": "float16", "tf32": "float32", "f32": "float32"}
SIZES: dict[Operand, tuple[int, ...]] = {"bf16": (32, 64, 96, 128, 256), "tf32": (64, 128), "f32": (64, 128)}
TARGETS = ("sm_80", "sm_90a", "sm_100a", "sm_120")


@dataclass(frozen=True)
class Resources:
    """Of a thread: registers, and bytes that spilled."""

    registers: int
    spilled: int


@dataclass(frozen=True)
class Kernel:
    """A kernel's source, and where it keeps everything."""

    text: str
    memory: Memory


def kernel(size: int, kind: Operand, target: str, way: Way) -> Kernel | None:
    """Of a GRU cell in training, with one hidden layer as wide as the state in each network; None where none fits."""
    wide = (size,)
    spec = CellSpec(28, size, 16, phi_x=wide, phi_z=wide, encoder=wide, prior=wide, decoder=wide)
    if way == "forward":
        plan = forward(spec)
        stored = plan.cut.stored(Keep.STORED, Want())
        buffers = (*plan.cut.given, *stored)
    else:
        plan = reverse(spec, on_z=False, on_eps=False)
        stored = tuple(f"d {name}" for name in plan.cut.summed)
        buffers = (*plan.cut.values, "eps", *(part.buffer for part in plan.given), *stored)
    found = memory(plan, kind, CHIPS[target.removesuffix("a")])
    if found is None:
        return None
    return Kernel(header(found, tuple(dict.fromkeys(buffers)), stored, VALUES[kind]), found)


def compiled(text: str, target: str) -> Resources:
    """What nvcc and its assembler make of it.

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
    return Resources(int(registers), sum(map(int, re.findall(r"(\d+) bytes spill", said))))


def rows() -> Iterator[str]:
    """The lines of the table, as they are compiled."""
    columns = ("H", "operands", "chip", "kernel", "registers", "spilled", "KB shared", "weights in shared memory")
    more = ("in registers", "streamed", "inputs ahead", "barriers a step")
    yield f"| {' | '.join((*columns, *more))} |"
    yield f"| --: | --- | --- | --- |{' --: |' * 8}"
    for kind, sizes in SIZES.items():
        for size in sizes:
            for target in TARGETS:
                for way in get_args(Way):
                    made = kernel(size, kind, target, way)
                    yield f"| {size} | {kind} | {target} | {way} | {_cells(made, target)} |"


def _cells(made: Kernel | None, target: str) -> str:
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
            "the products that read them, inputs by the parts of a step that lie in shared memory a step ahead.",
            "**Nothing here has run on a GPU.**",
            "",
            *lines,
            "",
        )
    )
    (RESULTS / "cuda-resources.md").write_text(text)


if __name__ == "__main__":
    main()
