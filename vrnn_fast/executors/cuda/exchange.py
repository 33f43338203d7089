"""What the ranks that share a tile of rows push to each other, and when each of them may. Pure.

Of an operand whose columns the ranks share, each pushes its own to all others, step by step into one of two buffers. A
step waits for a part once, before it first reads it, and there is no barrier of all ranks inside the loop. So a rank
may still read a buffer when another one is two steps ahead of it; :func:`early` finds where nothing keeps the other one
back.

Through peers, the ranks are a cluster: each pushes into the shared memory of all others, where a gate for each buffer
counts the bytes to come. Through memory, they are any blocks that run at once: each pushes into one place in memory and
then publishes, for all its warps, how many visits are behind it; the others copy from there into their own shared
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ...cell.stages import Slice
from .plan import TILE, KernelPlan

BUFFERS = 2  # of each part that is exchanged, by parity
_STEPS = 5  # that show all that can meet


def operand_buffers(plan: KernelPlan, part: Slice) -> int:
    """Count the places in shared memory that an operand takes turns in: two of what peers push there."""
    return BUFFERS if plan.through == "peers" and part in plan.exchanged else 1


def buffer_read(plan: KernelPlan, part: Slice, step: int) -> int:
    """Tell which buffer of shared memory a step reads of an operand."""
    return step % operand_buffers(plan, part)


def buffer_written(plan: KernelPlan, part: Slice, step: int) -> int:
    """Tell which buffer of shared memory a step writes of an operand."""
    return buffer_read(plan, part, step + plan.is_for_next(part))


def with_waits(plan: KernelPlan) -> KernelPlan:
    """Let each part be waited for where a step first reads it; through memory, where it first reads one of those that
    come with it."""
    missing, visits = dict.fromkeys(plan.exchanged), []
    for visit in plan.visits:
        read = {_published(plan, p.source) for p in visit.products if p.source in missing}
        own = tuple(part for part in missing if _published(plan, part) in read)
        for part in own:
            del missing[part]
        visits.append(replace(visit, waits=own))
    return replace(plan, visits=tuple(visits))


def _published(plan: KernelPlan, part: Slice) -> tuple[Slice | int, bool]:
    """Name what comes at once: a part that peers push, or all that a visit has put into memory."""
    return part if plan.through == "peers" else plan.maker(part), plan.is_for_next(part)


class RanksApart(ValueError):
    """What ranks wait for does not keep them together."""


def with_barriers(plan: KernelPlan) -> KernelPlan:
    """Put a barrier wherever a push could come early and one helps; through memory none does.

    Raises:
        RanksApart: one could where none helps.
    """
    found, visits = plan, list(plan.visits)
    while (at := next(early(found), None)) is not None:
        if plan.through == "memory" or visits[at].barrier:
            raise RanksApart(f"in two buffers, what visit {at} waits for does not keep the ranks of a tile together")
        visits[at] = replace(visits[at], barrier=True)
        found = replace(plan, visits=tuple(visits))
    return found


class _Event(NamedTuple):
    """What a visit does with a part: that of which turn, at which place in the order of all visits of some steps."""

    part: Slice
    turn: int
    place: int
    unit: int


def early(plan: KernelPlan) -> Iterator[int]:
    """Yield visits whose pushes overwrite what another rank may still read: a barrier before them would help.

    A rank that pushes turn n + 2 of a part must know that every other one has read turn n. It knows what a peer had
    done before a push that it has waited for: all that lies behind a barrier of that peer, and all that the same warps
    did, which are those of the same unit. Through memory, a peer reads where it waits, and publishes for all warps.
    Of a part with fewer tiles than ranks, some peers push nothing, and nobody knows anything of them.
    """
    count, in_memory = len(plan.visits), plan.through == "memory"
    reads, pushes, waits, barriers = list[_Event](), list[_Event](), list[_Event](), list[int]()
    for step in range(_STEPS):
        for i, visit in enumerate(plan.visits):
            place = step * count + i
            if visit.barrier:
                barriers.append(place)
            waits += (_Event(part, step, place, visit.unit) for part in visit.waits)
            reads += (_Event(p.source, step, place, visit.unit) for p in visit.products if p.source in plan.exchanged)
            if visit.finishes:
                made = (part for part in plan.units[visit.unit].writes if part in plan.exchanged)
                pushes += (_Event(part, step + plan.is_for_next(part), place, visit.unit) for part in made)
    pushed = {(p.part, p.turn): p for p in pushes}
    for read in waits if in_memory else reads:
        over = pushed.get((read.part, read.turn + BUFFERS))
        if over is None:
            continue
        told = (w for w in waits if w.place <= over.place and _all_push(plan, w.part))
        known = [pushed[w.part, w.turn] for w in told if (w.part, w.turn) in pushed]
        if in_memory:
            follows = any(read.place <= p.place for p in known)
        else:
            follows = any(_follows(p, read, barriers) for p in known)
        if not follows:
            yield max((p.place for p in known), default=over.place) % count


def _all_push(plan: KernelPlan, part: Slice) -> bool:
    """Tell whether each rank has some of what it waits for, whatever the operands are; in memory all publish."""
    return plan.through == "memory" or -(-part.width // TILE) >= plan.ranks


def _follows(push: _Event, read: _Event, barriers: list[int]) -> bool:
    if read.place <= push.place and read.unit == push.unit:
        return True
    return any(read.place < barrier <= push.place for barrier in barriers)
