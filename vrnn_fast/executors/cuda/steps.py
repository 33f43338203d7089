"""Which programs a call runs, one after the other, and what each leaves in memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

from ...cell.partition import partition
from ...cell.spec import CellSpec
from ...cell.stages import Keep, Normalize, Slice
from ..base import Want
from ..call import kept
from ..cut import cut, learned
from . import passes
from .cluster import (
    GROUP,
    Beside,
    Cluster,
    Prices,
    ScanWay,
    at_once,
    clocked,
    fastest,
    priced,
    ranks_of,
    refuses,
    through_of,
    workers,
)
from .cycles import PAPER_CHIPS, cublas, square, squares
from .forward import alone, forward
from .memory import CHIPS, ROWS, Operand, memory, operand_bytes
from .passes import OF_STATES, Pass
from .plan import STACKS, TOTALS, KernelPlan, Through, gradient, scaled, stacked
from .reverse import reverse
from .weights import DEPTH, jobs, shares

INPUTS = ("x", "eps", "cond")
RESULTS = ("z", "mean", "std", "prior_mean", "prior_std", "raw")  # of each row, that may have a gradient from outside
FORWARD, BACKWARD, GENERATE = "forward", "backward", "generate"  # the scans
WORDS = {
    "pack": "the weights as kernels read them",
    "before": "phi_x, and what x gives to encoder and cell",
    FORWARD: "the scan: posterior, sample, phi_z and update",
    "after": "prior and divergence, decoder and likelihood",
    "again": "what was not kept of the scan",
    "after, backward": "gradients of likelihood, decoder, divergence and prior",
    BACKWARD: "the reverse scan",
    "before, backward": "gradients of phi_x",
    "weight gradients": "products over all rows",
    "their sums": "of these, in a fixed order",
}


class PlannedLaunch(NamedTuple):
    """One launch: of which name, what it does, which buffers it writes, and which of these have zeros at padding."""

    name: str
    plan: KernelPlan
    stored: tuple[str, ...]
    results: tuple[str, ...] = ()


def _step(name: str, found: Pass, way: ScanWay, results: tuple[str, ...] = ()) -> PlannedLaunch:
    return PlannedLaunch(name, stacked(found.plan, way.stacked), found.stored, results)


class ScanWays(NamedTuple):
    """How the scans of a cell run, and the passes beside them."""

    forward: ScanWay = ScanWay()
    backward: ScanWay = ScanWay()
    generate: ScanWay = ScanWay()

    def of(self, scan: str) -> ScanWay:
        """Return that of a scan, by its name."""
        return dict(zip((FORWARD, BACKWARD, GENERATE), self, strict=True))[scan]

    @property
    def clusters(self) -> tuple[Cluster | None, ...]:
        """The blocks to a tile of rows."""
        return tuple(way.cluster for way in self)


def all_by(cluster: Cluster | None, stacked: int = 1) -> ScanWays:
    """Let every scan run by the same blocks, and take as many rows beside it."""
    return ScanWays(*(ScanWay(cluster, stacked) for _ in ScanWays._fields))


BLOCKS = ScanWays()


class ScanRoom(NamedTuple):
    """What a chip has for scans.

    Attributes:
        shared: bytes of shared memory of a block.
        multiprocessors: how many.
        clusters: tells how many of so many blocks it runs at once; None where it knows no clusters.
        together: blocks of one launch that it promises to run at once, each with a multiprocessor to itself.
    """

    shared: int
    multiprocessors: int
    clusters: Callable[[int], int] | None = None
    together: int = 0

    @property
    def through(self) -> tuple[Through, ...]:
        """How several blocks may exchange operands."""
        found: dict[Through, object] = {"peers": self.clusters, "memory": self.together}
        return tuple(way for way, there in found.items() if there)

    def blocks(self, ranks: int, through: Through = "peers") -> int:
        """Count those that it runs at once, each with a multiprocessor to itself, so many to a tile of rows."""
        if ranks == 1:
            return self.multiprocessors
        if through == "memory":
            return self.together // ranks * ranks
        return 0 if self.clusters is None else ranks * self.clusters(ranks)


H100 = ScanRoom(CHIPS["sm_90"], 132, partial(at_once, 132), 132)
A100 = ScanRoom(CHIPS["sm_80"], 108, None, 108)


GAIN = 1.25  # times what cuBLAS takes for weight gradients, ours may


class ScanPrices(NamedTuple):
    """What the ways cost in which a scan can run, and cycles of all that a tile of rows needs besides in each step, of
    which these are weight gradients."""

    ways: Prices
    beside: Beside
    products: int


@lru_cache(maxsize=256)
def _prices(
    spec: CellSpec, kind: Operand, shared: int, through: tuple[Through, ...]
) -> tuple[ScanPrices, ScanPrices, ScanPrices]:
    """Find what the scans cost forward, backward, and of generation."""
    scans: tuple[Callable[[Cluster | None], KernelPlan], ...] = (
        lambda own: forward(spec, own),
        lambda own: reverse(spec, own, on_z=True, on_eps=False),
        lambda own: alone(spec, own, mean=False),
    )
    external = spec.likelihood == "external"
    losses = frozenset(("kl", "raw") if external else TOTALS)
    own = jobs(spec, losses, kind)
    products = len(own.tiles) * square(own.side).cycles * ROWS // DEPTH

    def beside(launches: Callable[[ScanWays], Iterable[PlannedLaunch]], more: int = 0) -> Beside:
        return tuple((n, _cycles(launches(all_by(None, n)), kind, shared) + more) for n in STACKS)

    every = (
        beside(lambda ways: forward_steps(spec, Keep.STORED, Want(raw=external), ways)),
        beside(lambda ways: backward_steps(spec, losses, frozenset(), Keep.STORED, ways), products),
        ((1, 0),) if external else beside(lambda ways: generation_steps(spec, ways, mean=False)),
    )
    ways = (() if scan is scans[2] and external else priced(scan, kind, shared, through) for scan in scans)
    there, back, generated = map(ScanPrices, ways, every, (0, products, 0))
    return there, back, generated


def _cycles(steps: Iterable[PlannedLaunch], kind: Operand, shared: int) -> int:
    """Count those of 16 rows of all passes."""
    laid = (memory(step.plan, kind, shared) for step in steps if step.plan.is_pass)
    return sum(clocked(found).cycles // found.plan.stacked for found in laid if found is not None)


@lru_cache(maxsize=1024)
def chosen(spec: CellSpec, kind: Operand, room: ScanRoom, batch: int = 1) -> ScanWays:
    """Choose how a cell's scans run for these operands, and so many rows."""
    if not room.through or refuses(spec) is not None:
        return BLOCKS
    tiles, prices = -(-batch // ROWS), _prices(spec, kind, room.shared, room.through)
    return ScanWays(*(fastest(p.ways, tiles, room.blocks, p.beside) for p in prices))


@lru_cache(maxsize=1024)
def are_cublas(spec: CellSpec, upstream: frozenset[str], kind: Operand, room: ScanRoom, steps: int, batch: int) -> bool:
    """Tell whether cuBLAS multiplies weight gradients of results of these names: where ours would cost more by GAIN, on
    workers what they end later. Chips without clusters, and operands of 32 bits, have no faster products than mma.sync,
    as far as the clock on paper knows."""
    if room.clusters is None or operand_bytes(kind) != 2:
        return False
    own, prices = jobs(spec, upstream, kind), _prices(spec, kind, room.shared, room.through)[1]
    (cluster, stacked), tiles, rows = chosen(spec, kind, room, batch).backward, -(-batch // ROWS), steps * batch
    ours = squares(len(own.tiles), own.side, rows, shares(rows), "sm_90")
    ranks = ranks_of(cluster)
    if meanwhile := workers(tiles, ranks, room.blocks(ranks, through_of(cluster))):
        chain, beside = dict(prices.ways).get(cluster, 0), dict(prices.beside)[stacked]
        later = max(chain, tiles * beside / meanwhile)
        later -= max(chain, tiles * (beside - prices.products) / meanwhile)
        ours = steps * later / PAPER_CHIPS["sm_90"].clock / 1e3
    return ours > GAIN * cublas(((int(job[6]), int(job[7])) for job in own.jobs if job[7]), rows)


@lru_cache(maxsize=1024)
def missing(spec: CellSpec, kind: Operand, room: ScanRoom, batch: int = 1) -> str | None:
    """Return None, or which blocks would share a tile if the chip had a place for them, and what scans instead."""
    clusters = None if room.clusters is None else partial(at_once, max(GROUP, room.multiprocessors))
    whole = room._replace(clusters=clusters, together=room.multiprocessors)
    wanted = {own for own in chosen(spec, kind, whole, batch).clusters if own is not None}
    lacking = {own.ranks: own.through for own in wanted if not room.blocks(own.ranks, own.through)}
    if not lacking:
        return None
    reason = "it does not run all blocks of a launch at once"
    if clustered := sorted(ranks for ranks, through in lacking.items() if through == "peers"):
        reason = f"it has no place for a cluster of {' or of '.join(map(str, clustered))} blocks"
    most = max(chosen(spec, kind, room, batch).clusters, key=ranks_of)
    who = "single blocks scan"
    if most is not None:
        meet = "clusters of up to {} scan" if most.through == "peers" else "up to {} blocks scan that meet in memory"
        who = meet.format(most.ranks)
    return f"{reason}, so that {who}"


@lru_cache(maxsize=256)
def forward_steps(spec: CellSpec, keep: Keep | None, want: Want, ways: ScanWays = BLOCKS) -> tuple[PlannedLaunch, ...]:
    """List the launches of a batch that is given x; ``keep`` is the least of the buffers that backward wants, None
    without one."""
    plan = forward(spec, ways.forward.cluster)
    own = plan.cut
    results: tuple[str, ...] = ()
    if own.sample is not None:
        results = own.sample.z.buffer, own.sample.std.buffer, "mean"
    of_prior: tuple[str, ...] = ()
    if want.prior and own.divergence is not None:
        of_prior = "prior_mean", own.divergence.prior_std.buffer
    if own.resamples:  # whose rows are weighed by them
        results = (*results, *of_prior, *([own.likelihood.source.buffer] if want.raw else []))
    made = {*own.states, *own.made, *results}
    wanted = (*(part.buffer for part in own.read_after), *kept(partition(spec), keep), *results)
    stored = tuple(dict.fromkeys(name for name in wanted if name in made))
    found = _step("before", passes.before(spec), ways.forward), PlannedLaunch(FORWARD, plan, stored, results)
    if own.resamples or (own.likelihood.kind == "external" and not want.raw and own.divergence is None):
        return found
    after = passes.after(spec)
    shown = (*(after.stored if want.raw else ()), *of_prior)
    return (*found, PlannedLaunch("after", stacked(after.plan, ways.forward.stacked), shown, shown))


@lru_cache(maxsize=256)
def backward_steps(
    spec: CellSpec,
    upstream: frozenset[str],
    wanted: frozenset[str],
    keep: Keep,
    ways: ScanWays = BLOCKS,
) -> tuple[PlannedLaunch, ...]:
    """List the launches from results of these names (OF_STATES for any final state) to the INPUTS that are
    ``wanted``."""
    whole, results, own = cut(learned(spec)), tuple(f"d {name}" for name in INPUTS), ways.backward
    after = passes.after_back(spec, upstream, wanted)
    left = () if after is None else after.gradients
    begun = frozenset(part.buffer for part in left) & set(INPUTS)
    given = {gradient(part) for made in left for part in whole.parts_of(made)}
    on_eps = "eps" in wanted and whole.sample is not None
    if "eps" in begun and whole.sample is not None:
        given.add(Slice("d eps", 0, whole.sample.z.width))
    back = reverse(spec, own.cluster, on_z=False, on_eps=on_eps, given=frozenset(given))
    before = passes.before_back(spec, wanted - {"eps"}, begun - {"eps"})
    scales = (scaled(s.target).buffer for s in whole.program.scan if isinstance(s, Normalize))
    stored = tuple(f"d {name}" for name in (*whole.summed, *scales, *(["eps"] if on_eps else [])))
    found = [] if after is None else [_step("after, backward", after, own, results)]
    found.append(PlannedLaunch(BACKWARD, back, stored, results))
    found += [] if before is None else [_step("before, backward", before, own, results)]
    if keep == Keep.ALWAYS:
        found = [_step("before", passes.before(spec), own), _step("again", passes.again(spec), own), *found]
    return tuple(found)


@lru_cache(maxsize=256)
def generation_steps(spec: CellSpec, ways: ScanWays = BLOCKS, *, mean: bool) -> tuple[PlannedLaunch, ...]:
    """List the launches of a cell that runs on its own."""
    before = passes.alone_before(spec, mean=mean)
    found = () if before is None else (_step("before", before, ways.generate),)
    return (*found, PlannedLaunch(GENERATE, alone(spec, ways.generate.cluster, mean=mean), ("x",), ("x",)))


def training(spec: CellSpec) -> tuple[str, ...]:
    """Name the launches of a training step, in their order."""
    losses = frozenset(TOTALS if spec.likelihood != "external" else ("kl", "raw"))
    there = forward_steps(spec, Keep.STORED, Want(raw=spec.likelihood == "external"))
    back = backward_steps(spec, losses, frozenset(), Keep.STORED)
    names = [["pack", *(step.name for step in steps)] for steps in (there, back)]
    return (*names[0], *names[1], "weight gradients", "their sums")


def plans(spec: CellSpec, ways: ScanWays = BLOCKS, mean: bool | None = None) -> Iterator[KernelPlan]:
    """Yield all that calls may launch."""
    if mean is not None:
        yield from (step.plan for step in generation_steps(spec, ways, mean=mean))
        return
    everything = frozenset((*TOTALS, *RESULTS, OF_STATES))
    yield from (step.plan for step in forward_steps(spec, Keep.STORED, Want(prior=True, raw=True), ways))
    yield from (step.plan for step in backward_steps(spec, everything, frozenset(INPUTS), Keep.ALWAYS, ways))
