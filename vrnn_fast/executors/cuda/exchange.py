"""What the ranks of a cluster push to each other, and when each of them may. Pure.

Of an operand whose columns the ranks share, each pushes its own into the shared memory of all others, step by step into
one of two buffers, each with a gate that counts the bytes to come. A step waits for a part once, before it first reads
it, and there is no barrier of the cluster inside the loop. So a rank may still read a buffer when another one is two
steps ahead of it; :func:`early` finds where nothing keeps the other one back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ...cell.stages import Slice
from .plan import KernelPlan

BUFFERS = 2  # of each part that is exchanged, by parity
_STEPS = 5  # that show all that can meet


def buffer_read(plan: KernelPlan, part: Slice, step: int) -> int:
    """Tell which buffer a step reads of an operand."""
    return step % BUFFERS if part in plan.exchanged else 0


def buffer_written(plan: KernelPlan, part: Slice, step: int) -> int:
    """Tell which buffer a step writes of an operand."""
    return buffer_read(plan, part, step + plan.is_for_next(part))


def with_waits(plan: KernelPlan) -> KernelPlan:
    """Let each part be waited for where a step first reads it, and put a barrier wherever a push could come early."""
    missing, visits = set(plan.exchanged), []
    for visit in plan.visits:
        own = tuple(p for p in dict.fromkeys(p.source for p in visit.products) if p in missing)
        missing -= set(own)
        visits.append(replace(visit, waits=own))
    found = replace(plan, visits=tuple(visits))
    while (at := next(early(found), None)) is not None:
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
    did, which are those of the same unit.
    """
    count = len(plan.visits)
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
    for read in reads:
        over = pushed.get((read.part, read.turn + BUFFERS))
        if over is None:
            continue
        known = [pushed[w.part, w.turn] for w in waits if w.place <= over.place and (w.part, w.turn) in pushed]
        if not any(_follows(p, read, barriers) for p in known):
            yield max(p.place for p in known) % count


def _follows(push: _Event, read: _Event, barriers: list[int]) -> bool:
    if read.place <= push.place and read.unit == push.unit:
        return True
    return any(read.place < barrier <= push.place for barrier in barriers)
