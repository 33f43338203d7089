"""A clock on paper: cycles a step of the CUDA kernels, and microseconds a training step, by arithmetic.

``python -m bench.cycles`` prints them beside what is aimed at, and with ``--record`` keeps them in
bench/results/cuda-cycles.md. **Nothing of it was measured on a GPU**; a test holds what is counted to what the compiled
code is seen to do.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

from vrnn_fast.executors.cuda.cluster import Cluster, ranks_of, workers
from vrnn_fast.executors.cuda.crew import looks
from vrnn_fast.executors.cuda.cycles import (
    FACTOR,
    PAPER_CHIPS,
    cublas,
    gru_alone,
    paper_step,
    paper_training,
    square,
    squares,
    taller,
)
from vrnn_fast.executors.cuda.memory import CHIPS, ROWS, Operand, memory
from vrnn_fast.executors.cuda.plan import STACKS, TOTALS
from vrnn_fast.executors.cuda.steps import A100, BACKWARD, BLOCKS, GAIN, H100, all_by, chosen
from vrnn_fast.executors.cuda.weights import DEPTH, jobs, shares

from .cuda_resources import SCANS, spec_of, steps
from .record import RESULTS

SIZES = 32, 64, 96, 128, 256, 384
WIDE = {1: 0, 2: 256}  # from which width on the table has passes of so many times 16 rows
KINDS: tuple[Operand, ...] = ("bf16", "tf32")
AIMS = {64: (1.0, 3.0), 128: (1.6, 5.0), 256: (2.0, 6.0), 384: (3.0, 9.0)}  # forward, and with backward
AIMED: tuple[Operand, str] = "bf16", "sm_90"
LONG = 256  # steps, of a batch of which nothing but these counts
HEAD = f"""\
# Cycles a step of the CUDA kernels, by arithmetic

`python -m bench.cycles --record`: a GRU cell with Z = 16 and one hidden layer as wide as the state in each network, in
training; of one block, a step of a scan, or a tile of 16 rows of a pass; at H = 256 and 384 of 32 as well. Products,
wavefronts of shared memory, instructions of warps and barriers are within {FACTOR} of those of the executed PTX, which
a test sees to at H = 32, with 16 rows of a pass and with 32; bytes are those of weights from the second-level cache;
the chain is what follows each other however little there is to do. `vrnn_fast/executors/cuda/cycles.py` says how cycles
follow from them.
**Nothing here has run on a GPU.**
"""
OF_PRODUCTS = f"""\
Microseconds of all weight gradients there. cuBLAS is assumed to be a launch for each product, and to reach 0.7 of 989
TFLOP/s on all multiprocessors. Of 16384 rows at H = 256 and 384 squares by mma.sync are 1.5 and 1.7 times as long;
wgmma, which cuBLAS has and these kernels have not, multiplies twice as fast. So cuBLAS has those of a batch without
padding where ours would make a step longer by more than {GAIN} times what it takes, launches included: beside a scan,
by what workers end later; about from 512 rows on at H = 256, whose scans leave few workers. A card must say.
"""
OF_AIMS = """\
Forward is that of training, whose stores are 130 of 1,849 cycles at H = 64: without them, as a model is only asked, it
takes 0.98. There instructions are what a step waits for, 663 and 672 cycles in the phases of sample and update.
"""
OF_MEMORY = f"""\
Microseconds a step on an A100, in {AIMED[0]}, of a batch of up to 16 rows, by the blocks that are chosen, which meet in
memory, and by one block:
"""
OF_TRAINING = f"""\
Microseconds a training step on an H100, in {AIMED[0]}, by the blocks or clusters that are chosen for a tile of rows,
forward and back, and by one block each. Workers beside a scan hide all else, so that the scan is what a training step
takes: at H = 128 of 28 x 128, 28 steps of 1.33 and 2.11 by clusters of 4, 96 of 134, where one block's are 176 of 215;
the rest is weights laid out and loaded, the first rows before a scan and the last behind it.

At most 1.5 times nn.GRU is aimed at: its steps alone, whose sums do not take turns as ours do; if they did, a step of
it took 4.45 where 5.05 are reckoned at H = 256, and 4.75 for 5.65 at 384. Beyond the aim are 128 rows at H = 384, by
1.51 of 256 steps and 2.04 of 28. Of these 28 the scans alone by 8 blocks to a tile, 2.87 and 4.97 a step, are 220 of
the 237 microseconds that are allowed, and some 80 are there whatever T is: no design below reaches them. Of many steps
the work beside the reverse scan is what counts, by 64 of 128 blocks: for each tile and step 91 thousand cycles of a
multiprocessor with 16 rows at a time, with which 256 steps would be 1.77 times nn.GRU, and 70 with 32, of which weight
gradients are 40.
"""
OF_DESIGNS = f"""\
What other designs would take there, at H = 384 and 128 rows: microseconds of a step of {LONG}, and how often those of
nn.GRU, with nothing that is there whatever T is. Workers take 32 rows at a time where 16 would end later than the scan:
half the weights from the second-level cache, which of 16 rows take as long as the operands from shared memory, and both
twice as long as the products. The 32 rows follow each other in memory. Of a batch of 128 that is two tiles of one step,
which their scans reach at about the same time, and of 16 two steps; two steps of each tile would always wait for the
later one, and of an odd T leave a half over for each tile. A scan's tile of 32 rows reads each weight once for both
halves as well, and is not built: twice its rows are twice the bytes of an exchange, which it waits for.
"""
COLUMNS = "H", "operands", "chip", "kernel", "mma", "wavefronts", "instructions", "KB streamed", "barriers", "chain"


def rows() -> Iterator[str]:
    """Yield a line for each kernel that fits."""
    yield f"| {' | '.join(COLUMNS)} | cycles | microseconds |"
    yield f"| --: | --- | --- | --- |{' --: |' * 8}"
    for size, kind, chip, stacked in product(SIZES, KINDS, PAPER_CHIPS, STACKS):
        for step in steps(spec_of(size), all_by(None, stacked)).values():
            found = memory(step.plan, kind, CHIPS[chip])
            if found is None or found.plan.stacked < stacked or size < WIDE[stacked]:
                continue
            own = paper_step(found, step.stored)
            of = own.total
            counted = of.mma, of.wavefronts, of.instructions, of.streamed >> 10, of.barriers, of.chain, own.cycles
            numbers = " | ".join(map(str, counted))
            name = step.name if stacked == 1 else f"{step.name}, of {ROWS * stacked} rows"
            yield f"| {size} | {kind} | {chip} | {name} | {numbers} | {own.microseconds(chip):.2f} |"


def aims() -> Iterator[str]:
    """Yield a line for each width with an aim: blocks that share a tile of rows, microseconds of a step of the scans,
    what they should be, and those of nn.GRU alone."""
    yield "| H | blocks | forward | aim | and backward | aim | nn.GRU alone, as cuDNN's | in one block, at best |"
    yield f"|{' --: |' * 8}"
    kind, chip = AIMED
    for size, (there, both) in AIMS.items():
        us, ranks, spec = [0.0], [], spec_of(size)
        for step in (steps(spec, chosen(spec, kind, H100))[way] for way in SCANS):
            ranks.append(str(step.plan.ranks))
            found = memory(step.plan, kind, CHIPS[chip])
            us.append(math.inf if found is None else us[-1] + paper_step(found, step.stored).microseconds(chip))
        alone = [sum(gru_alone(size, chip, reverse=r, apart=apart) for r in (False, True)) for apart in (True, False)]
        ours = f"{', '.join(ranks)} | {us[1]:.2f} | {there} | {us[2]:.2f} | {both}"
        yield f"| {size} | {ours} | {alone[0]:.2f} | {alone[1]:.2f} |"


def without_clusters() -> Iterator[str]:
    """Yield a line for each width: what shares a tile of rows on a chip without clusters, and the microseconds of a
    step of the scans, and of one block to a tile."""
    yield "| H | blocks | forward | by one block | backward | by one block |"
    yield f"| --: | --: |{' --: |' * 4}"
    kind, chip = AIMED[0], "sm_80"
    for size in (128, 256, 384, 512):
        spec, ways, us = spec_of(size), chosen(spec_of(size), kind, A100), []
        for way, by in product(SCANS, (ways, BLOCKS)):
            step = steps(spec, by)[way]
            found = memory(step.plan, kind, CHIPS[chip])
            us.append(math.inf if found is None else paper_step(found, step.stored).microseconds(chip))
        ranks = ", ".join(str(ranks_of(own)) for own in ways.clusters[:2])
        yield f"| {size} | {ranks} | {' | '.join(f'{each:.2f}' for each in us)} |"


def training() -> Iterator[str]:
    """Yield a line for each batch: microseconds of a training step by the blocks that are chosen, its launches one
    behind the other and one each way, that by one block to a tile, and of nn.GRU alone by steps like cuDNN's, without
    its products over all rows."""
    yield (
        "| H | T x B | blocks | rows a worker takes | launches apart | one each way | by one block | nn.GRU alone "
        "| one each way / nn.GRU |"
    )
    yield f"| --: | --- | --: | --: |{' --: |' * 5}"
    kind, chip = AIMED
    for size, (count, batch) in product((64, 96, 128, 256, 384), ((28, 128), (256, 128), (256, 16))):
        spec, ways = spec_of(size), chosen(spec_of(size), kind, H100, batch)
        rows, own = count * batch, jobs(spec, frozenset(TOTALS), kind)
        parts = shares(rows)
        products = squares(len(own.tiles), own.side, rows, parts, chip)
        us, ranks = [], ", ".join(str(ranks_of(each)) for each in ways.clusters[:2])
        taken = ", ".join(str(ROWS * each.stacked) for each in ways[:2])
        for by in (ways, BLOCKS):
            laid = {name: (memory(s.plan, kind, CHIPS[chip]), s.stored) for name, s in steps(spec, by).items()}
            there = {name: (found, stored) for name, (found, stored) in laid.items() if found is not None}
            us.append(paper_training(there, products, parts, count, batch, chip, H100.blocks, partial(looks, count)))
        alone = count * sum(gru_alone(size, chip, reverse=r, apart=True) for r in (False, True))
        numbers = f"{us[0].apart:.0f} | {us[0].joined:.0f} | {us[1].joined:.0f} | {alone:.0f}"
        yield f"| {size} | {count} x {batch} | {ranks} | {taken} | {numbers} | {us[0].joined / alone:.2f} |"


class Design(NamedTuple):
    """One way to build a training step: blocks to a tile of a scan, rows of a tile, rows that a worker takes at a time,
    and whether cuBLAS has the weight gradients."""

    ranks: int
    rows: int = ROWS
    taken: int = ROWS
    cublas: bool = False

    def step(self, size: int, batch: int, way: str) -> float:
        """Return the microseconds of a step of a long batch in one direction, with all that lies beside its scan."""
        (kind, chip), spec, own = AIMED, spec_of(size), Cluster(self.ranks)
        scan, beside, tiles = 0, 0.0, -(-batch // self.rows)
        for name, step in steps(spec, all_by(own, self.taken // ROWS)).items():
            found = memory(step.plan, kind, CHIPS[chip])
            if found is None or name.endswith(BACKWARD) != (way == BACKWARD):
                continue
            one = paper_step(found, step.stored)
            if name == way:
                scan = (one if self.rows == ROWS else taller(one)).cycles
            else:
                beside += one.cycles / (ROWS * found.plan.stacked)
        multiplied, behind = jobs(spec, frozenset(TOTALS), kind), 0.0
        if way == BACKWARD and self.cublas:
            shapes = [(int(job[6]), int(job[7])) for job in multiplied.jobs if job[7]]
            behind = cublas(shapes, LONG * batch) / LONG
        elif way == BACKWARD:
            beside += len(multiplied.tiles) * square(multiplied.side).cycles / DEPTH
        room, clock = H100.blocks(self.ranks), PAPER_CHIPS[chip].clock * 1e3
        if meanwhile := workers(tiles, self.ranks, room):
            return max(scan, batch * beside / meanwhile) / clock + behind
        turns = -(-tiles // (room // self.ranks))
        return (turns * scan + batch * beside / PAPER_CHIPS[chip].multiprocessors) / clock + behind


DESIGNS = (
    *(Design(ranks) for ranks in (4, 8, 16)),
    Design(16, rows=2 * ROWS),
    Design(8, rows=2 * ROWS),
    Design(8, cublas=True),
    Design(8, taken=2 * ROWS),
    Design(8, taken=2 * ROWS, cublas=True),
    Design(16, rows=2 * ROWS, taken=2 * ROWS),
    Design(16, taken=2 * ROWS, cublas=True),
)


def designs(size: int, batch: int) -> Iterator[str]:
    """Yield a line for each design: microseconds of a step, and those of nn.GRU that they are."""
    columns = "blocks to a tile", "rows of a tile", "rows a worker takes", "weight gradients", "forward", "backward"
    yield f"| {' | '.join(columns)} | / nn.GRU |"
    yield f"| --: | --: | --: | --- |{' --: |' * 3}"
    alone = sum(gru_alone(size, AIMED[1], reverse=r, apart=True) for r in (False, True))
    for own in DESIGNS:
        there, back = (own.step(size, batch, way) for way in SCANS)
        head = f"{own.ranks} | {own.rows} | {own.taken} | {'cuBLAS, behind' if own.cublas else 'ours, beside'}"
        yield f"| {head} | {there:.2f} | {back:.2f} | {(there + back) / alone:.2f} |"


def products() -> Iterator[str]:
    """Yield a line for each width: microseconds of all weight gradients, and of cuBLAS as cycles.py assumes it."""
    yield "| H | rows | squares | side | ours | cuBLAS | ours / cuBLAS |"
    yield f"|{' --: |' * 7}"
    kind, chip = AIMED
    for size, rows in product((64, 128, 256, 384), (4096, 16384)):
        own = jobs(spec_of(size), frozenset(TOTALS), kind)
        ours = squares(len(own.tiles), own.side, rows, shares(rows), chip)
        theirs = cublas(((int(job[6]), int(job[7])) for job in own.jobs if job[7]), rows)
        numbers = f"{len(own.tiles)} | {own.side} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f}"
        yield f"| {size} | {rows} | {numbers} |"


def lines() -> Iterator[str]:
    yield HEAD
    yield f"Microseconds a step on an H100, in {AIMED[0]}:"
    yield ""
    yield from aims()
    yield ""
    yield OF_AIMS
    yield OF_MEMORY
    yield from without_clusters()
    yield ""
    yield OF_TRAINING
    yield from training()
    yield ""
    yield OF_DESIGNS
    yield from designs(384, 128)
    yield ""
    yield OF_PRODUCTS
    yield from products()
    yield ""
    yield from rows()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and keep them if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.cycles", description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep them in bench/results/cuda-cycles.md")
    options = parser.parse_args(arguments)
    text = "\n".join(lines())
    print(text)
    if options.record:
        (RESULTS / "cuda-cycles.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
