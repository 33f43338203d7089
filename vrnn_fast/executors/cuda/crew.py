"""One launch of all that a batch needs, by blocks that scan and workers beside them: csrc/cuda/rows/crew.h. Pure.

The kernel has the programs of all launches that it stands for, each in a namespace of its own, and its argument has
theirs. Which block does what, and what waits for what, is in crew.h; here is in which order its turns are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from .cluster import Cluster, ranks_of, through_of, workers
from .cycles import FLAG
from .header import clustered
from .plan import WARPS
from .steps import BACKWARD, FORWARD, GENERATE

SCANS = FORWARD, BACKWARD, GENERATE
LOOKS = 4, 8, 16, 32, 64  # steps of a scan from one look at others to the next
LATE = 1.5  # microseconds of what waits for the last look, where it is no pass
PACKED = 4096  # operands that an item packs
MOST_ARGUMENTS = 4096  # bytes, of what every driver takes
COUNTERS = 8 * 2 + 4 * 4  # bytes of struct Crew


class JoinedProgram(NamedTuple):
    """What one of the launches does, that are joined: its name, its C++, bytes of shared memory of a block."""

    name: str
    body: str
    shared: int


def apart(scans: int, blocks: int, cooperative: bool, arguments: int, ranks: int = 1) -> str | None:
    """Return None, or why a batch whose rows are so many tiles is several launches.

    A block of the joined kernel has a multiprocessor to itself, so that all of them run at once; and workers, of which
    there are at least as many as blocks that scan, are seldom later than these: cycles.py.

    Args:
        blocks: that the chip runs at once, so many ranks to a tile.
        cooperative: whether the driver promises that all blocks of a launch run at once.
        arguments: bytes that the joined kernel is given.
        ranks: blocks that scan a tile.
    """
    if not scans:
        return "there is nothing to scan"
    if not cooperative:
        return "this GPU does not run all blocks of a launch at once"
    if not workers(scans, ranks, blocks):
        each = "" if ranks == 1 else f" of {ranks} blocks each"
        return f"the batch is {scans} tiles of rows{each}, and of {blocks} blocks at once half are for what waits"
    if arguments > MOST_ARGUMENTS:
        return f"its kernel would be given {arguments} bytes, and takes {MOST_ARGUMENTS}"
    return None


def looks(steps: int, tiles: float, beside: int, late: float) -> int:
    """Choose how often a scan looks at others, and they may look at it: a look costs it the price of a flag, and what
    comes behind its last one is done when it has ended, by those that work ``beside`` it.

    Args:
        tiles: of rows in a step, of the pass behind the scan,
        late: and microseconds of one of them.
    """

    def price(count: int) -> float:
        return FLAG * steps / count + late * math.ceil(count * tiles / beside)

    return min(LOOKS, key=price)


@lru_cache(maxsize=256)
def joined(programs: tuple[JoinedProgram, ...], limit: int, cluster: Cluster | None = None) -> str:
    """Write the kernel that does what all of these do, one after the other.

    Args:
        limit: bytes of shared memory that a block may have.
        cluster: the blocks that scan a tile, where these are several.
    """
    ranks = ranks_of(cluster)
    backward = any(p.name == BACKWARD for p in programs)
    shared = max(p.shared for p in programs)
    names = _names([p.name for p in programs])
    lines = [
        "// Written by vrnn_fast/executors/cuda/crew.py.",
        f'{clustered(ranks if through_of(cluster) == "peers" else 1)}#include "scan/base.h"',
    ]
    for name, own in zip(names, programs, strict=True):
        lines += [f"namespace vrnn::{name}_program {{", own.body.rstrip("\n"), "}"]
    lines += [
        '#include "rows/crew.h"',
        "namespace vrnn {",
        "struct Call : Crew {",
        *(f"    {name}_program::vrnn::Call {name};" for name in names),
        "};",
        "struct Kernel {",
        f"    static constexpr int threads = {32 * WARPS}, blocks = 1, shared = {shared}, limit = {limit};",
        "    static VRNN_DEVICE void run(const Call& call) {",
        f"        Queue<{str(backward).lower()}, {ranks}> queue{{call}};",
        *(f"        queue.{turn};" for turn in _turns(names)),
        "    }",
        "};",
        "}  // namespace vrnn",
        "VRNN_ENTRY",
    ]
    return "\n".join(lines) + "\n"


def _names(launches: Sequence[str]) -> list[str]:
    """Return what each launch is in C++: pack, before_0, ..., scan, after, weights, sums."""
    at = next(i for i, name in enumerate(launches) if name in SCANS)
    fixed = {"pack": "pack", "weight gradients": "weights", "their sums": "sums"}
    beside = (f"before_{i}" if i < at else "scan" if i == at else "after" for i in range(len(launches)))
    return [fixed.get(name, place) for name, place in zip(launches, beside, strict=True)]


def _turns(names: Sequence[str]) -> Iterator[str]:
    """Yield calls of struct Queue, in their order: a pass behind a scan belongs to the weight gradients, if any."""
    for name in names:
        kernel = f"{name}_program::vrnn::Kernel"
        if name == "weights" and "after" in names:
            yield f"weights<{kernel}, after_program::vrnn::Kernel>(call.weights, call.after)"
        elif name != "after" or "weights" not in names:
            yield f"{name.partition('_')[0]}<{kernel}>(call.{name})"
