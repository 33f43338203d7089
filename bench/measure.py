"""Results first, then time: medians of contenders that take turns in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from statistics import quantiles
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

Results = Mapping[str, Tensor]


class Timing(NamedTuple):
    """Quartiles of the seconds that one call took."""

    lower: float
    median: float
    upper: float


def disagreement(results: Results, eager: Results, exact: Results) -> str | None:
    """None, or what is wrong: an error may be twice that of the eager loop in the same precision, both against float64.

    Errors are the largest over a tensor. Where the eager loop happens to be exact, one rounding of the largest
    element counts as its error.
    """
    for name, truth in exact.items():
        if name not in results:
            return f"{name} is missing"
        error, eager_error = ((r[name].double() - truth).abs().max().item() for r in (results, eager))
        rounding = torch.finfo(eager[name].dtype).eps * truth.abs().max().item()
        if not error <= 2 * max(eager_error, rounding):  # so that NaN disagrees
            return f"{name} is off by {error:.2e}, the eager loop by {eager_error:.2e}"
    return None


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float, block: float = 0.05) -> dict[str, Timing]:
    """Time the calls for about ``seconds`` in all, one block of calls after another's, after a warm-up.

    A block is as many calls of one kind as fill ``block`` seconds, so that each runs with its own data in cache, as
    in training; its value is the mean. Slow drifts of the machine meet all contenders alike.
    """
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        start = perf_counter()
        call()
        repeats[name] = max(1, ceil(block / (perf_counter() - start)))
    values: dict[str, list[float]] = {name: [] for name in calls}
    end = perf_counter() + seconds
    while perf_counter() < end or len(next(iter(values.values()))) < 5:
        for name, call in calls.items():
            start = perf_counter()
            for _ in range(repeats[name]):
                call()
            values[name].append((perf_counter() - start) / repeats[name])
    return {name: Timing(*quantiles(v, n=4, method="inclusive")) for name, v in values.items()}
