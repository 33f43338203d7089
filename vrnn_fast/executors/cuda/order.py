"""In which order a step has its units, and where its barriers are. Pure.

Units follow each other in phases, with a barrier between two where one reads what the other has written. The longest
chain through a step sets the number of phases; what is not on it, such as the prior and the divergence, and products
whose source is there early, go where the chain leaves warps idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ...cell.stages import Dense, Slice
from ..cut import Cut
from .exchange import buffer_read, buffer_written, with_barriers, with_waits
from .plan import EXCHANGES, SHARING, STATEFUL, TILE, UPDATES, WARPS, KernelPlan, Kind, Product, Through, Unit, Visit

FIRST: tuple[Kind, ...] = ("give_back",)  # of a step, in this order, and last
LAST: tuple[Kind, ...] = ("total", "resample", "take")


def planned(
    cut: Cut,
    units: Iterable[Unit],
    given: Iterable[Slice],
    biases: dict[Slice, Dense],
    *,
    reverse: bool = False,
    is_pass: bool = False,
    ranks: int = 1,
    through: Through = "peers",
) -> KernelPlan:
    """Put the units of a scan or of a pass in order; where so many ranks share a tile of rows, those of a rank."""
    every = tuple(units)
    computed = tuple(u for u in every if u.kind not in (*FIRST, *LAST))
    phases = _Phases(computed, ranks, apart=through == "peers")
    phases.arrange()
    around = [tuple(u for kind in kinds for u in every if u.kind == kind) for kinds in (FIRST, LAST)]
    ordered = (*computed, *around[0], *around[1])  # of those around, none needs more than a barrier
    numbers = {id(unit): number for number, unit in enumerate(ordered)}
    first, last = ([Visit(numbers[id(unit)], (), True, True) for unit in own] for own in around)
    visits = [*first, *phases.visits(), *last]
    filters = any(unit.kind in EXCHANGES for unit in every)
    first_warp = [*phases.first_warp, *(0 for own in around for _ in own)]
    for total in around[1]:
        if total.kind == "total" and not filters:  # of a filter, the warp that weighs its rows
            sharing = (u for u, unit in enumerate(computed) if unit.kind in SHARING and unit.total == total.total)
            first_warp[numbers[id(total)]] = first_warp[next(sharing)]
    numbered = tuple(first_warp)
    shape = cut, reverse, is_pass, ordered, numbered, tuple(visits), frozenset(given), biases, ranks, through
    plan = with_waits(KernelPlan(*shape))
    return with_barriers(replace(plan, visits=_with_barriers(plan)))


def on_chain(units: tuple[Unit, ...]) -> frozenset[int]:
    """Find the units that the next step waits for."""
    wanted = {u for u, unit in enumerate(units) if unit.kind in STATEFUL}
    makers = _makers(units)
    for _ in units:
        wanted |= {makers[s] for u in wanted for s in units[u].sources if s in makers}
    return frozenset(wanted)


def _makers(units: tuple[Unit, ...]) -> dict[Slice, int]:
    """Find which unit computes a part in the same step; a state that forward reads belongs to the step before."""
    made = {part: u for u, unit in enumerate(units) for part in unit.writes}
    return {part: u for part, u in made.items() if units[u].kind not in UPDATES or part != units[u].others[0]}


class _Phases:
    """Which work a step does between which barriers, and how much of it each warp has.

    Args:
        apart: whether what ranks share has one buffer that a step reads and another one that it writes.
    """

    def __init__(self, units: tuple[Unit, ...], ranks: int, *, apart: bool) -> None:
        self.units, self.makers, self.ranks, self.apart = units, _makers(units), ranks, apart
        self.finish = [0] * len(units)
        for u, unit in enumerate(units):
            self.finish[u] = 1 + self.ready(unit.sources)
        self.count = max(self.finish)
        self.latest = [self.count] * len(units)
        for unit in units:
            self._need(unit.sources, self.count - 1)
        self.update = {unit.others[0]: u for u, unit in enumerate(units) if unit.kind in UPDATES}  # of each state
        self.first_warp = [0] * len(units)
        self.work: dict[tuple[int, int], list[Product]] = defaultdict(list)  # by phase and unit
        self.loads = [[0] * WARPS for _ in range(self.count + 1)]

    def ready(self, sources: Iterable[Slice]) -> int:
        """Return the phase behind which all of these are there."""
        return max((self.finish[self.makers[s]] for s in sources if s in self.makers), default=0)

    def of_warps(self, unit: int, products: Iterable[Product], first_warp: int) -> list[int]:
        """Count the multiply-adds of each warp."""
        depth, loads = sum(p.source.width for p in products), [0] * WARPS
        tiles = -(-self.units[unit].sums[0].width // TILE)
        for tile in range(-(-tiles // self.ranks) if self.units[unit].split else tiles):
            loads[(first_warp + tile) % WARPS] += depth
        return loads

    def put(self, phase: int, unit: int, products: Iterable[Product]) -> None:
        own = list(products)
        self.work[phase, unit] += own
        more = self.of_warps(unit, own, self.first_warp[unit])
        self.loads[phase] = [a + b for a, b in zip(self.loads[phase], more, strict=True)]

    def longer(self, phase: int, loads: list[int]) -> tuple[int, int]:
        """Tell by how much a phase becomes longer with more work, then how busy all of its warps are."""
        now = self.loads[phase]
        return max(a + b for a, b in zip(now, loads, strict=True)) - max(now), sum(now) - WARPS * max(now)

    def arrange(self) -> None:
        """Put all work in its phase: the chain, then products that it does not wait for, then the units beside it."""
        chain = [u for u in range(len(self.units)) if self.finish[u] == self.latest[u]]
        early: list[tuple[int, list[Product]]] = []
        for u in chain:
            groups: dict[int, list[Product]] = defaultdict(list)
            for p in self.units[u].products:
                groups[self.ready((p.source, *self.units[u].waits))].append(p)
            self.put(self.finish[u], u, groups.pop(self.finish[u] - 1, []))
            early += [(u, products) for products in groups.values()]
        for u, products in early:
            phase = self._early_phase(u, products)
            self.put(phase, u, products)
            self._need((p.source for p in products), phase - 1)
        for u in sorted(set(range(len(self.units))) - set(chain)):
            self.finish[u], self.first_warp[u] = self._free_phase(u)
            self.put(self.finish[u], u, self.units[u].products)

    def meets_update(self, u: int, products: Iterable[Product], phase: int) -> bool:
        """Tell whether these read a state in the phase in which another unit overwrites it, which costs a barrier."""
        updates = (self.update.get(p.source, u) for p in products)
        return any(other != u and self.finish[other] == phase for other in updates)

    def _is_read(self, phase: int, u: int) -> bool:
        """Tell whether a unit overwrites a state in a phase in which others read it: then these come first."""
        if self.units[u].kind not in UPDATES or phase != self.finish[u]:
            return False
        others = (p for at, products in self.work.items() if at[0] == phase and at[1] != u for p in products)
        return any(p.source == self.units[u].others[0] for p in others)

    def _travels(self, phase: int) -> bool:
        """Tell whether what a phase of a cluster ends with is on its way to peers, which leaves time for other work."""
        ends = {
            part for u, unit in enumerate(self.units) if unit.split and self.finish[u] == phase for part in unit.writes
        }
        return self.ranks > 1 and any(p.source in ends for unit in self.units for p in unit.products)

    def _early_phase(self, u: int, products: list[Product]) -> int:
        """Find the phase that some products of a unit make longer by the least; of a cluster, one that ends with an
        exchange."""
        loads = self.of_warps(u, products, 0)
        least = 1 + self.ready((products[0].source, *self.units[u].waits))

        def price(phase: int) -> tuple[bool, bool, tuple[int, int]]:
            at_the_end = phase == self.finish[u] or not self._travels(phase)
            return self.meets_update(u, products, phase), self.ranks > 1 and at_the_end, self.longer(phase, loads)

        return min(range(least, self.finish[u] + 1), key=price)

    def _need(self, sources: Iterable[Slice], phase: int) -> None:
        """Let these be there behind a phase, and so what they are made of before it."""
        for maker in {self.makers[s] for s in sources if s in self.makers}:
            if self.latest[maker] > phase:
                self.latest[maker] = phase
                self._need(self.units[maker].sources, phase - 1)

    def _free_phase(self, u: int) -> tuple[int, int]:
        """Find the phase, and the first warp, of a unit that is not on the chain."""
        unit = self.units[u]
        phases = range(1 + self.ready(unit.sources), self.latest[u] + 1)
        warps = range(1 if unit.kind in STATEFUL else WARPS)

        def price(choice: tuple[int, int]) -> tuple[bool, tuple[int, int], tuple[int, int]]:
            phase, first = choice
            meets = self.meets_update(u, unit.products, phase)
            return meets, self.longer(phase, self.of_warps(u, unit.products, first)), choice

        return min(((phase, first) for phase in phases for first in warps), key=price)

    def visits(self) -> Iterator[Visit]:
        """Yield them in order: of a phase, what others wait for comes first."""

        def place(at: tuple[int, int]) -> tuple[int, bool, bool, int, int]:
            phase, u = at
            return phase, self._is_read(phase, u), phase != self.finish[u], self.latest[u] - self.finish[u], u

        begun: set[int] = set()
        for phase, u in sorted(self.work, key=place):
            unit, products = self.units[u], tuple(self.work[phase, u])
            finishes, begins = phase == self.finish[u], u not in begun
            begun.add(u)
            if finishes and not (unit.split and self.apart) and {p.source for p in products} & set(unit.writes):
                yield Visit(u, products, begins, False)  # all warps have read it before any overwrites it
                yield Visit(u, (), False, True)
            else:
                yield Visit(u, products, begins, finishes)


@dataclass(frozen=True)
class _Access:
    """To a place in shared memory, or in memory: by every warp, or each warp to its own tiles, which begin with this
    one."""

    place: tuple[str, Slice | int | None, int]
    writes: bool
    first_warp: int | None = None

    def conflicts(self, other: _Access) -> bool:
        own = self.first_warp is not None and self.first_warp == other.first_warp
        return self.place == other.place and (self.writes or other.writes) and not own


def _accesses(plan: KernelPlan, visit: Visit, step: int) -> Iterator[_Access]:
    unit, first_warp = plan.units[visit.unit], plan.first_warp[visit.unit]
    for p in visit.products:
        yield _Access(("operand", p.source, buffer_read(plan, p.source, step)), False)
    if visit.begins and unit.resumes:
        yield from (_Access(("held", part, 0), False, first_warp) for part in unit.sums)
    if not visit.finishes:
        return
    by_lanes = None if unit.kind in EXCHANGES else first_warp
    yield from (_Access(("held", part, 0), False, by_lanes) for part in unit.holds)
    if unit.kind in ("resample", "take"):
        yield _Access(("chosen", None, 0), unit.kind == "resample")
    if unit.normalizes is not None:
        yield from (_Access(("held", part, 0), False) for part in unit.waits)
    yield from (_Access(("memory", part, 0), False, first_warp) for part in unit.rereads)
    for part in unit.writes:
        yield _Access(("operand", part, buffer_written(plan, part, step)), True, first_warp)
        yield from (_Access((where, part, 0), True, first_warp) for where in ("held", "memory"))
    if unit.kind in (*SHARING, "total"):
        alone = first_warp if unit.sums[0].width <= TILE else None  # a lane adds up what it has shared itself
        yield _Access(("totals", unit.total, 0), unit.kind != "total", alone)


def _copied(plan: KernelPlan, visit: Visit) -> Iterator[_Access]:
    """Yield what all warps do with what other ranks have pushed into memory, before a visit and a barrier."""
    if plan.copies(visit):
        yield from (_Access(("operand", part, 0), True) for part in visit.waits)


def _with_barriers(plan: KernelPlan) -> tuple[Visit, ...]:
    """Put a barrier before each visit that would meet others in memory; steps follow each other. Ranks that exchange
    through memory have one behind each wait, and one before they publish."""
    barriers = [False] * len(plan.visits)
    since: list[_Access] = []
    for step in range(4):
        for i, visit in enumerate(plan.visits):
            own, copied = list(_accesses(plan, visit, step)), list(_copied(plan, visit))
            if copied:
                barriers[i] |= any(a.conflicts(b) for a in copied for b in since)
                since = []
            elif barriers[i] or any(a.conflicts(b) for a in own for b in since):
                barriers[i] = True
                since = []
            since = [] if plan.publishes(visit) else since + own
    return tuple(replace(v, barrier=b) for v, b in zip(plan.visits, barriers, strict=True))
