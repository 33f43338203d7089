"""What the machine can do at most, and when a run must be thrown away."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from vrnn_fast.executors.cpu import operators

SHARE_LIMIT = 0.97  # nobody computes faster: whoever seems to was measured against a peak that was disturbed
FALL_LIMIT = 0.08
TRIES = 3


def measure(counts: Collection[int], seconds: float = 0.2) -> dict[int, float]:
    """Measure GFLOP/s of float32 multiply-adds on so many threads at once, by that number. Empty if nobody can tell."""
    try:
        native = importlib.import_module("vrnn_fast._native")
    except ImportError:
        return {}
    isa = operators.chosen_isa() if operators.load() is None else native.usable_isas()[-1]

    def together(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            return float(sum(pool.map(lambda _: native.fma_peak(isa, seconds), range(threads))))

    return {threads: together(threads) for threads in sorted(set(counts))}


def void(before: Mapping[int, float], after: Mapping[int, float], shares: Iterable[float]) -> str | None:
    """Return None, or why a run counts for nothing: the peaks around it, and the shares of the peak that its products
    had."""
    for threads, peak in before.items():
        if after[threads] < (1 - FALL_LIMIT) * peak:
            return f"the peak on {threads} threads fell from {peak:.0f} to {after[threads]:.0f} GFLOP/s meanwhile"
    best = max(shares, default=0.0)
    return f"{best:.0%} of the peak were measured" if best > SHARE_LIMIT else None
