"""Scans by several blocks to a tile of rows: what the compiler makes of them, and the clock on paper beside one block.

``python -m bench.cuda_clusters`` writes bench/results/cuda-clusters.md. It needs nvcc and no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from vrnn_fast.executors.cuda.cluster import ranks_of
from vrnn_fast.executors.cuda.cycles import paper_step
from vrnn_fast.executors.cuda.driver import Kernel
from vrnn_fast.executors.cuda.kernels import PlannedKernel, program
from vrnn_fast.executors.cuda.memory import Operand, memory
from vrnn_fast.executors.cuda.steps import A100, H100, ScanRoom, chosen

from .cuda_resources import DTYPES, SCANS, compiled, joined, spec_of, steps
from .record import RESULTS

SIZES = 128, 256, 384, 512
ROOMS = {"sm_90a": H100, "sm_100a": H100, "sm_80": A100}  # by whom scans of a few rows are compiled for each
KIND: Operand = "bf16"
HEAD = """\
# Scans by several blocks to a tile of rows

`python -m bench.cuda_clusters`: a GRU cell with Z = 16 and one hidden layer as wide as the state in each network, in
bfloat16, for a batch of up to 16 rows, by clusters, and on sm_80, which knows none, by blocks that meet in memory.
Weights are counted by the products that read them, of each rank; exchanges are those that a step waits for. All of
forward and all of backward are the launches beside a scan in one with it, by the same blocks. Microseconds are those of
a step on an H100 and an A100 by the clock on paper (`vrnn_fast/executors/cuda/cycles.py`), by so many ranks and by one
block. **Nothing here has run on a GPU.**
"""
COLUMNS = "H", "kernel", "chip", "ranks", "registers", "spilled", "KB shared", "weights in shared memory"
MORE = "in registers", "streamed", "exchanges", "KB exchanged", "barriers", "microseconds", "by one block"


def scan(size: int, way: str, kind: Operand = KIND, room: ScanRoom = H100) -> PlannedKernel:
    """Write the kernel of a scan of a GRU cell as a batch of few rows has it."""
    spec = spec_of(size)
    return program(steps(spec, chosen(spec, kind, room))[way], kind, room.shared, DTYPES[kind])


def whole(size: int, way: str, target: str) -> Kernel | None:
    """Write the kernel that is all of a direction for a batch of few rows; None where none fits."""
    return joined(size, KIND, target, way, chosen(spec_of(size), KIND, ROOMS[target]))


def rows() -> Iterator[str]:
    """Yield the lines of the table, as they are compiled."""
    yield f"| {' | '.join((*COLUMNS, *MORE))} |"
    yield f"| --: | --- | --- |{' --: |' * 12}"
    for size, way, target in product(SIZES, SCANS, ROOMS):
        room, chip = ROOMS[target], "sm_80" if target == "sm_80" else "sm_90"
        found, alone = scan(size, way, room=room), steps(spec_of(size))[way]
        block = memory(alone.plan, KIND, room.shared)
        paper, places = paper_step(found.memory, found.step.stored), list(found.memory.place.values())
        counted = [places.count("shared"), places.count("registers"), places.count("memory")]
        counted += [paper.total.exchanges, paper.total.pushed >> 10, paper.total.barriers]
        us = [f"{paper.microseconds(chip):.2f}"]
        us.append("does not fit" if block is None else f"{paper_step(block, alone.stored).microseconds(chip):.2f}")
        of = compiled(found.kernel.text, target)
        own = found.step.plan.ranks, of.registers, of.spilled, round(found.memory.shared / 1024)
        yield f"| {size} | {way} | {target} | {' | '.join(map(str, (*own, *counted, *us)))} |"
    for size, way, target in product(SIZES, SCANS, ROOMS):
        one = whole(size, way, target)
        if one is not None:
            of = compiled(one.text, target)
            ranks = ranks_of(chosen(spec_of(size), KIND, ROOMS[target]).of(way).cluster)
            own = ranks, of.registers, of.spilled, round(one.shared / 1024)
            yield f"| {size} | {one.name} | {target} | {' | '.join(map(str, own))} |{' |' * 8}"


def main() -> None:
    (RESULTS / "cuda-clusters.md").write_text("\n".join((HEAD, *rows(), "")))


if __name__ == "__main__":
    main()
