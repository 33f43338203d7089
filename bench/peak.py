"""What the machine can do at most, and when a run must be thrown away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from vrnn_fast.training.peak import measured

SHARE_LIMIT = 0.97  # nobody computes faster: whoever seems to was measured against a peak that was disturbed
FALL_LIMIT = 0.08
TRIES = 3


def measure(counts: Collection[int], seconds: float = 0.2) -> dict[int, float]:
    """Measure GFLOP/s of float32 multiply-adds on so many threads at once, by that number. Empty if nobody can tell."""
    found = {threads: measured(threads, seconds) for threads in sorted(set(counts))}
    return found if all(found.values()) else {}


def void(before: Mapping[int, float], after: Mapping[int, float], shares: Iterable[float]) -> str | None:
    """Return None, or why a run counts for nothing: the peaks around it, and the shares of the peak that its products
    had."""
    for threads, peak in before.items():
        if after[threads] < (1 - FALL_LIMIT) * peak:
            return f"the peak on {threads} threads fell from {peak:.0f} to {after[threads]:.0f} GFLOP/s meanwhile"
    best = max(shares, default=0.0)
    return f"{best:.0%} of the peak were measured" if best > SHARE_LIMIT else None
