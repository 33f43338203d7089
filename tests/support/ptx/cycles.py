"""Cycles a step of the Triton kernels, by arithmetic, from what their compiled code is seen to do.

``python -m tests.support.ptx.cycles`` writes bench/results/triton-cycles.md. Nothing in it was measured on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import torch

from bench.record import RESULTS
from bench.resources import COMPILED, OPERANDS, SHAPES, operands, spec_of
from tests.support.oracle import Problem
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import triton
from vrnn_fast.executors.cuda.cycles import BARRIER, MMA, PAPER_CHIPS, SCHEDULERS, Work
from vrnn_fast.executors.triton import tuning
from vrnn_fast.executors.triton.launch import Launch
from vrnn_fast.executors.triton.phases import Phase

from .launches import compiled
from .report import Report

CLOCK = PAPER_CHIPS["sm_90"].clock
HEAD = f"""\
# Cycles a step of the Triton kernels, by arithmetic

`python -m tests.support.ptx.cycles`: instructions of warps, wavefronts of shared memory and barriers of one program
in one step of a scan of 16 or 8 rows, or in one tile of as many rows before or after it, counted as the compiled
sm_90 code is executed in the interpreter. Cycles are the largest of instructions / {SCHEDULERS}, wavefronts and {MMA}
for each product of tensor cores, and {BARRIER} for each barrier, between which nothing overlaps; microseconds at
{CLOCK} GHz. Accesses of global memory come on top: each thread reads and stores what it needs and has, so that one
instruction of a warp touches eight rows. The aims are those of a step in bfloat16.
**Nothing here has run on a GPU.**

| shape | operands | kernel | instructions | wavefronts | of the least | barriers | cycles | microseconds | aim |
| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: |
"""
AIMS = {64: {"forward": 1.5, "backward": 2.0}, 128: {"forward": 5.0, "backward": 6.0}}  # microseconds, by H
ONE_LAUNCH = """
What is before and after a scan is in its launch, as tiles of rows that all multiprocessors share. At T = 28, B = 64
these are 112 tiles, one for each of 132 multiprocessors. Launches of their own would take as long, and four boundaries
of 0.5 to 1.3 us more, for four numbers drawn and waited for at 0.8 us. If each program of a scan did its own rows
behind its loop, they would take 28 times as long. With more tiles than multiprocessors, launches of their own would
hold two to four programs of fewer registers on each, which at B = 128 is 1 percent of the step once their boundaries
are added, so that it is one launch for all sizes.
"""
STREAMED = """
**Streamed weights.** Of reference in bfloat16, 172 of 268 KB stay on the chip, and 96 KB come from the second-level
cache in every step: 12 tiles of 8 KB each way, two reads of 16 bytes a thread each. Each is written to shared memory
behind one barrier, so that what a read waits, by published measurements some 260 cycles, may be exposed 12 times: 3,100
cycles (1.8 us) beside those counted. Four forms were compiled by triton 3.9 for sm_90, not run:

| form | cp.async forward, backward | shared memory forward, backward | barriers between a read and its store | verdict |
| --- | --: | --: | --: | --- |
| as it is | 0, 0 | 186,368, 186,368 | 1 | |
| `tl.range(longest, num_stages=2)` over time | 48, 52 | 276,480, 280,576 | | more than the 232,448 there are |
| the same, 3 stages | 72, 78 | 374,784, 382,976 | | the same |
| a tile read before the product in front of its own | 0, 0 | 194,560, 192,512 | not counted | none of it forward: triton stores as it reads |
| the same, as bits that become operands at the product | 0, 0 | 184,320, 184,320 | 1 | no nearer to hiding the read |

Triton's pipeline copies by cp.async what a loop reads ahead of itself, and its only loop here is the one over time:
each streamed tile keeps a buffer for a whole step, which is what would let it stay on the chip for good. A loop over
tiles within a step would need sums and sources in registers by a number known at run time, which Triton's language
has not.
As bits, a tile still had one barrier between its read and its store, 5 to 34 instructions apart forward and 5 to 94
backward, where they are 5 to 36 and 4 to 31 as it is: ptxas moves no read across a barrier. So none of the forms is
shipped: cp.async of single tiles is left to the CUDA kernels, which have it.
"""  # noqa: E501


@dataclass(frozen=True)
class Step:
    """What one step of one program does, and its wavefronts if no two lanes met in a bank."""

    work: Work
    least_wavefronts: int


def _take_and_go(own: Launch, phase: Phase, programs: int, arguments: Mapping[str, Any]) -> None:
    _take(own, phase, programs, arguments)
    own.go(phase.name.replace("_rows", "").replace("_scan", "").replace("_", " "))


_take = Launch.take


def between(one: Report, two: Report) -> Step:
    """The step by which the second launch was longer. How products and barriers follow each other is not seen."""

    def work(of: Report) -> Work:
        mma, issued = of.issued["mma"], of.issued.total()
        return Work(mma, of.wavefronts.total(), instructions=issued, barriers=of.barriers)

    fewer, more = vars(work(one)), vars(work(two))
    least = two.least_wavefronts.total() - one.least_wavefronts.total()
    return Step(Work(**{name: more[name] - fewer[name] for name in more}), least)


def steps(spec: CellSpec, dtype: torch.dtype, precision: str, chip: str) -> dict[str, Step]:
    """Count each phase of a training step, as if each were a launch of its own; none of a cell that is refused."""
    found: list[dict[str, Report]] = []
    config = next(iter(tuning.candidates(spec, dtype.itemsize, tuning.CHIPS[chip], precision)), None)
    if config is None:
        return {}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        for count in (1, 2):
            with compiled(chip) as seen, mock.patch.object(Launch, "take", _take_and_go):
                Problem.draw(spec, count, config.rows).run(triton, dtype)
            found.append(dict(seen.reports))
    finally:
        torch.set_float32_matmul_precision(before)
    ways = (way for way in found[0] if not way.startswith("weight"))
    return {way: between(found[0][way], found[1][way]) for way in ways}


def rows(shapes: Sequence[str]) -> Iterator[str]:
    """The lines of the table, as they are counted."""
    for shape in shapes:
        for dtype, precision in OPERANDS:
            name = operands(dtype, precision)
            for way, step in steps(spec_of(SHAPES[shape]), dtype, precision, "sm_90").items():
                of, share = step.work, step.work.wavefronts / step.least_wavefronts
                aim = AIMS.get(SHAPES[shape].sizes[1], {}).get(way, "") if dtype == torch.bfloat16 else ""
                yield (
                    f"| {shape} | {name} | {way} | {of.instructions} | {of.wavefronts} | {share:.2f} "
                    f"| {of.barriers} | {of.cycles} | {of.cycles / CLOCK / 1e3:.1f} | {aim} |"
                )


def uncounted(lines: Sequence[str]) -> Iterator[str]:
    """What could be counted and is not among the lines."""
    absent = []
    for shape, (dtype, precision) in product(COMPILED, OPERANDS):
        name = operands(dtype, precision)
        fits = tuning.misfit(spec_of(SHAPES[shape]), dtype.itemsize, tuning.CHIPS["sm_90"], precision) is None
        if fits and not any(line.startswith(f"| {shape} | {name} |") for line in lines):
            absent.append(f"{shape} in {name}")
    if absent:
        yield from ("", f"Not counted for this record: {', '.join(absent)}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print, record."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.ptx.cycles", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="this shape (may be repeated)")
    options = parser.parse_args(arguments)
    lines = []
    for line in rows(options.shape or COMPILED):
        print(line, flush=True)
        lines.append(line)
    text = "\n".join((*lines, *uncounted(lines))) + "\n"
    (RESULTS / "triton-cycles.md").write_text(HEAD + text + ONE_LAUNCH + STREAMED)


if __name__ == "__main__":
    main()
