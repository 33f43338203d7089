"""A clock on paper: cycles a step of the CUDA scans, by arithmetic.

``python -m bench.cycles`` prints them. **Nothing of it was measured on a GPU**; a test holds what is counted to what
the compiled code is seen to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors.base import Want
from vrnn_fast.executors.cuda.cycles import CLOCKS, paper_step
from vrnn_fast.executors.cuda.memory import CHIPS, Operand, memory
from vrnn_fast.executors.cuda.plan import TOTALS
from vrnn_fast.executors.cuda.steps import BACKWARD, FORWARD, backward_steps, forward_steps

from .cuda_resources import spec_of

SIZES = 32, 64, 96, 128, 256
KINDS: tuple[Operand, ...] = ("bf16", "tf32")
HEAD = (
    "| H | operands | chip | kernel | mma | wavefronts | KB streamed | barriers | cycles | microseconds |",
    "| --: | --- | --- | --- | --: | --: | --: | --: | --: | --: |",
)


def rows() -> Iterator[str]:
    """Yield a line for each kernel that fits."""
    for size, kind, chip in product(SIZES, KINDS, CLOCKS):
        spec = spec_of(size)
        there = forward_steps(spec, Keep.STORED, Want())
        back = backward_steps(spec, frozenset(TOTALS), frozenset(), Keep.STORED)
        for step in (*there, *back):
            found = memory(step.plan, kind, CHIPS[chip]) if step.name in (FORWARD, BACKWARD) else None
            if found is None:
                continue
            own = paper_step(found)
            counted = (own.mma, own.wavefronts, own.streamed >> 10, own.barriers, own.cycles)
            numbers = " | ".join(map(str, counted))
            yield f"| {size} | {kind} | {chip} | {step.name} | {numbers} | {own.microseconds(chip):.2f} |"


def main() -> None:
    """Print the table."""
    print("\n".join((*HEAD, *rows())))


if __name__ == "__main__":
    main()
