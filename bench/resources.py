"""What the compiler makes of the Triton kernels at the benchmark shapes: registers, spills, shared memory.

``python -m bench.resources`` writes bench/results/triton-resources.md. It needs no GPU and says nothing about speed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vrnn_fast import VRNN
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors.triton import tuning
from vrnn_fast.executors.triton.over_rows import HEIGHT
from vrnn_fast.executors.triton.phases import TURNS
from vrnn_fast.executors.triton.tuning import CHIPS, Chip, Config

from .record import RESULTS
from .shapes import REAL_SHAPES, SIX_SHAPES, Shape

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
SHAPES = {shape.name: shape for shape in (*REAL_SHAPES, *SIX_SHAPES) if shape.model}
COMPILED = ("narrow", "motion", "reference", "speech", "wide")
FILTERED, PARTICLES = "narrow", 4  # the shape that is compiled as a particle filter too


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs: 32-bit registers of a thread, bytes (on AMD registers) spilled to memory, and
    bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int


def spec_of(shape: Shape, particles: int = 1) -> CellSpec:
    """Make the cell of a shape; with more than one particle it resamples them."""
    spec = VRNN(**shape.model, backend="reference", device="meta").spec
    return spec if particles == 1 else replace(spec, measure="particle_filter")


def kernels_of(spec: CellSpec, config: Config, dtype: torch.dtype, precision: str = "ieee") -> dict[str, Any]:
    """Find the two kernels of a training step on the loss alone that have a scan in them."""
    from vrnn_fast.executors.triton import launch

    step = launch.training_kernels(spec, config, dtype, precision)
    return {way: kernel for way, kernel in step if way in ("forward", "backward")}


def compiled(
    kernel: Any,
    chip: str,
    config: Config,
    dtype: torch.dtype,
    precision: str,
    *,
    particles: int = 1,
    ragged: bool = False,
) -> Resources:
    """Compile a kernel with a scan for a chip that need not be there; ``ragged``, for batches with lengths, resets and
    masks."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vrnn_fast.executors.triton.versions import options

    height = tuning.height(config, dtype.itemsize, precision)
    constants: dict[str, Any] = {"ROWS": config.rows, "PARTICLES": particles, "PRECISION": precision, HEIGHT: height}
    constants["PTX"] = not chip.startswith("gfx")
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = dict.fromkeys(("steps", "batch", "count"), "i32") | {TURNS: "*i32"}
    types |= {"resets": "*i8", "mask": "*i8", "enough": "fp32"}
    types |= dict.fromkeys(("lengths", "order", "b_ancestors"), "*i64")
    if not ragged:
        constants |= {name: None for name in ("lengths", "order", "resets", "mask") if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else types.get(name, f"*{NAMES[dtype]}") for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    amd, most = chip.startswith("gfx"), tuning.told("forward", dtype.itemsize, CHIPS[chip])
    target = GPUTarget("hip", chip, 64) if amd else GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    found = triton.compile(source, target=target, options=options(config.warps, most))
    if amd:
        counts = (re.search(rf"\.{name}:\s*(\d+)", found.asm["amdgcn"]) for name in ("vgpr_count", "vgpr_spill_count"))
        registers, spilled = (int(count[1]) if count else 0 for count in counts)
    else:
        registers, spilled = _of_cubin(found.asm["cubin"], Path(triton.__file__).parent)
    return Resources(registers, spilled, found.metadata.shared)


def _of_cubin(cubin: bytes, package: Path) -> tuple[int, int]:
    """Read registers of a thread, and bytes of its stack, as cuobjdump (which triton ships) reads them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = package / "backends" / "nvidia" / "bin" / "cuobjdump"
        output = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", output)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {output}")
    return int(found[1]), int(found[2])


def rows(shapes: Sequence[str], chips: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table, as they are compiled."""
    columns = ("shape", "x, h, z", "operands", "chip", "rows, warps, tile, ahead", "KB on chip")
    yield f"| {' | '.join((*columns, 'kernel', 'registers', 'spilled', 'shared'))} |"
    yield "| --- | --- | --- | --- | --- | --: | --- | --: | --: | --: |"
    for name, particles, chip, dtype, precision in cells(shapes, chips):
        spec = spec_of(SHAPES[name], particles)
        for config in tuning.candidates(spec, dtype.itemsize, chip, precision, particles=particles)[:1]:
            yield from _lines(name, spec, chip, config, dtype, precision, particles)


def notes(table: Sequence[str]) -> Iterator[str]:
    """Yield the lines behind the table: what is refused, and what could be compiled and is not in it."""
    refused, absent = dict[str, list[str]](), list[str]()
    for name, particles, chip, dtype, precision in cells(COMPILED, tuple(CHIPS)):
        title, kind = _titled(name, particles), operands(dtype, precision)
        where = f"{title} in {kind} on {chip.name}"
        reason = tuning.misfit(spec_of(SHAPES[name], particles), dtype.itemsize, chip, precision, particles=particles)
        if reason is not None:
            refused.setdefault(reason, []).append(where)
        elif not any(line.startswith(f"| {title} |") and f"| {kind} | {chip.name} |" in line for line in table):
            absent.append(where)
    if refused:
        yield from ("", "Refused, by name, with the reason that a user is told:", "")
        yield from (f"- {', '.join(where)}: {reason}" for reason, where in refused.items())
    if absent:
        yield from ("", f"Not compiled for this record: {', '.join(absent)}.")


def cells(shapes: Sequence[str], chips: Sequence[str]) -> Iterator[tuple[str, int, Chip, torch.dtype, str]]:
    """Yield what a table has lines of: shapes, some of them as particle filters too, chips and operands."""
    of = [(name, 1) for name in shapes] + [(name, PARTICLES) for name in shapes if name == FILTERED]
    for (name, particles), chip, (dtype, precision) in product(of, chips, OPERANDS):
        yield name, particles, CHIPS[chip], dtype, precision


OPERANDS = ((torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))


def operands(dtype: torch.dtype, precision: str) -> str:
    """Name the operands of products."""
    return str(dtype).removeprefix("torch.") if precision == "ieee" else precision


def _titled(name: str, particles: int) -> str:
    return name if particles == 1 else f"{name}, filter of {particles}"


def _lines(
    name: str, spec: CellSpec, chip: Chip, config: Config, dtype: torch.dtype, precision: str, particles: int
) -> Iterator[str]:
    cut = config.plan(spec)
    sizes = {m.number: tuning.weight_bytes(cut, m, dtype.itemsize) for m in cut.matrices}
    loaded = sum(sizes[number] for number in tuning.resident(cut, config, dtype.itemsize))
    sizes_of = ", ".join(map(str, SHAPES[name].sizes))
    name = _titled(name, particles)
    ahead = "no" if not config.ahead else "forward" if config.forward_only else "yes"
    written = f"{config.rows}, {config.warps}, {config.widest}, {ahead}"
    for way, kernel in kernels_of(spec, config, dtype, precision).items():
        r = compiled(kernel, chip.name, config, dtype, precision, particles=particles)
        place = f"{loaded >> 10} of {sum(sizes.values()) >> 10}"
        of = f"{name} | {sizes_of} | {operands(dtype, precision)} | {chip.name}"
        yield (f"| {of} | {written} | {place} | {way} | {r.registers} | {r.spilled} | {r.shared} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, print, record."""
    import triton

    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="this shape (may be repeated)")
    parser.add_argument("--chip", choices=sorted(CHIPS), action="append", help="this chip (may be repeated)")
    options = parser.parse_args(arguments)
    lines = [
        "# What the compiler makes of the Triton kernels",
        "",
        f"triton {triton.__version__}, cross-compiled, not run. The configuration is the one that runs untuned.",
        "Registers are those of a thread, spilled are bytes of its stack (sm) or registers (gfx). Shared memory is in",
        "bytes, of a program. Weights beyond those on the chip are read from the second-level cache in every step.",
        "Where a scan and what is around it are one launch, they are one kernel here.",
        "`python -m bench.resources` writes this.",
        "",
    ]
    table = []
    for line in rows(options.shape or COMPILED, options.chip or tuple(CHIPS)):
        print(line, flush=True)
        table.append(line)
    (RESULTS / "triton-resources.md").write_text("\n".join((*lines, *table, *notes(table))) + "\n")


if __name__ == "__main__":
    main()
