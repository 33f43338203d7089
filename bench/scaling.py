"""How time grows with T, B and h on each number of threads; what a second process gains; what many cores and GPUs
would."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vrnn_fast import VRNN

from .record import RESULTS, Measurement, Record
from .shapes import REAL_SHAPES, REFERENCE, SIX_SHAPES, forward_flops

EXPERIMENT = "scaling"
VARIED: dict[str, Callable[[Measurement], int]] = {
    "T": lambda row: row.steps,
    "B": lambda row: row.batch,
    "h": lambda row: row.sizes[1],
}


@dataclass(frozen=True)
class Curve:
    """Forward and backward passes by the number of threads, then by the size that was varied."""

    varied: str
    fixed: str
    rows: Mapping[int, Mapping[int, Measurement]]

    @property
    def milliseconds(self) -> dict[int, dict[int, float]]:
        """Of the passes, in the same order."""
        return {n: {size: row.milliseconds or math.nan for size, row in by.items()} for n, by in self.rows.items()}

    @property
    def sizes(self) -> list[int]:
        """What was measured, ascending."""
        return sorted({size for times in self.milliseconds.values() for size in times})

    def fastest(self, size: int) -> int:
        """Return the number of threads that took the least time."""
        return min((t[size], n) for n, t in self.milliseconds.items() if size in t)[1]

    def exponent(self, threads: int) -> float:
        """Compute the power of the size that time grows with."""
        times = self.milliseconds[threads]
        return exponent(list(times), list(times.values()))


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Compute the slope of a least-squares line through the logarithms. NaN for fewer than two sizes."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def curves(rows: Sequence[Measurement]) -> list[Curve]:
    """Find the curves that were measured, out of all rows of a record."""
    found = []
    for varied, size in VARIED.items():
        mine = [r for r in rows if r.experiment == EXPERIMENT and r.shape == varied and r.milliseconds]
        if mine:
            others = {"T": mine[0].steps, "B": mine[0].batch, "h": mine[0].sizes[1]}
            fixed = ", ".join(f"{name} = {value}" for name, value in others.items() if name != varied)
            by_threads: dict[int, dict[int, Measurement]] = {}
            for row in sorted(mine, key=size):
                by_threads.setdefault(row.threads, {})[size(row)] = row
            found.append(Curve(varied, fixed, dict(sorted(by_threads.items()))))
    return found


CORES = 2, 16, 64
ADDED = 10e9  # bytes a second at which a core is taken to add up gradients that lie in other cores' caches


def on_cores(curve: Curve, batch: int, cores: int, gradients: int) -> float:
    """Compute the milliseconds of a pass whose threads have a core each, by what one thread takes for its share of the
    batch alone. Each then adds its part of all their gradients, of so many bytes each; nothing else is waited for.
    """
    shards = min(cores, batch)
    return curve.milliseconds[1][-(-batch // shards)] + (1e3 * gradients / ADDED if shards > 1 else 0.0)


def by_cores(rows: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """Yield what :func:`on_cores` says of batches, of a record's rows against B, the head first; beside it what one
    thread and two were measured to take."""
    yield "batch", "1 thread", "2 threads", *(f"{n} cores, computed" for n in CORES)
    gradients = 4 * sum(p.numel() for p in VRNN(**REFERENCE.model, device="meta").parameters())
    for curve in curves(rows):
        if curve.varied == "B":
            times = curve.milliseconds
            for batch in (b for b in (16, 64, 256) if b in times[1]):
                measured = (times[n].get(batch, math.nan) if n in times else math.nan for n in (1, 2))
                computed = (on_cores(curve, batch, n, gradients) for n in CORES)
                yield f"{REFERENCE.steps} x {batch}", *(f"{ms:.1f} ms" for ms in (*measured, *computed))


@dataclass(frozen=True)
class Link:
    """What joins GPUs: bytes a second each way for each of them, and seconds until the first one is there."""

    bandwidth: float
    latency: float


NVLINK, NETWORK = Link(450e9, 2e-6), Link(50e9, 5e-6)  # NVLink 4, and 400 Gb/s for each GPU, as their makers say
NODE = 8  # GPUs


def all_reduce_seconds(size: int, gpus: int) -> float:
    """Compute how long summing ``size`` bytes over GPUs takes, in nodes of eight: around a ring in each node, then
    each GPU its eighth along a tree of nodes.
    """
    inside, nodes = min(gpus, NODE), -(-gpus // NODE)
    ring = 2 * (inside - 1) * (size / inside / NVLINK.bandwidth + NVLINK.latency)
    if nodes == 1:
        return ring
    tree = 2 * (nodes - 1) / nodes * size / inside / NETWORK.bandwidth + 2 * math.log2(nodes) * NETWORK.latency
    return ring + tree


def efficiency(step: float, size: int, gpus: int) -> float:
    """Compute the share of a step's time that remains for computing, where each GPU keeps its batch (weak scaling).

    Nothing overlaps: the backward pass is one operator, which gives all gradients at its end.
    """
    return step / (step + all_reduce_seconds(size, gpus))


FEW, MANY = NODE, 64 * NODE  # GPUs
GPU_FLOPS = 0.5 * 67e12  # half of what the maker of the H100 says of float32, which nobody has measured here


def at_scale() -> Iterator[tuple[str, ...]]:
    """Yield what :func:`efficiency` says of models, by arithmetic alone, the head first: of a step that a GPU would
    take for the products of its batch, and the shortest step of which nine tenths remain."""
    few, many = f"{FEW} GPUs", f"{MANY // NODE} nodes"
    yield (
        "model",
        "gradients",
        *(f"sum, {n}" for n in (few, many)),
        *(f"step for 90 %, {n}" for n in (few, many)),
        ("step by arithmetic"),
        few,
        many,
    )
    for shape in (REFERENCE, SIX_SHAPES[3], REAL_SHAPES[-1]):
        model = VRNN(**shape.model, device="meta")
        size = 4 * sum(p.numel() for p in model.parameters())
        sums = [all_reduce_seconds(size, n) for n in (FEW, MANY)]
        step = 3 * forward_flops(model, shape) / GPU_FLOPS
        times = (*sums, *(9 * s for s in sums), step)
        shares = (efficiency(step, size, n) for n in (FEW, MANY))
        yield (
            f"{shape.name}, {shape.steps} x {shape.batch}",
            f"{size / 1e6:.2f} MB",
            *map(_of_time, times),
            *(f"{share:.0%}" for share in shares),
        )


def _of_time(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def processes(rows: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """Yield how two processes did against one, of a record's rows, the head first: what the same batch gains, and what
    is left where each process has its own."""
    yield "model", "batch", "1 process", "2 processes", "the same batch", "a batch each"
    times = {(r.shape, r.steps, r.batch, r.contender): r.milliseconds for r in rows if r.experiment == "scale"}
    for shape, steps, batch in dict.fromkeys(key[:3] for key in times):
        one, two = (times.get((shape, steps, batch, f"{n}")) for n in ("1 process", "2 processes"))
        half = times.get((shape, steps, batch // 2, "1 process"))
        if one and two:
            weak = f"{half / two:.0%}" if half else ""
            yield shape, f"{steps} x {batch}", f"{one:.1f} ms", f"{two:.1f} ms", f"{one / two:.2f} times", weak


def main() -> None:
    """Print the tables, of this kind of machine's record and of no machine, as docs/pages/scale.md has them."""
    record = Record.resume(RESULTS)
    for lines in (processes(record.rows), by_cores(record.rows), at_scale()):
        head, *body = lines
        print(*(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *body)), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
