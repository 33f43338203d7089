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

    Errors are Euclidean norms over a tensor: the largest element's is a matter of luck. Where the eager loop happens to
    be exact, one rounding of every element counts as its error.
    """
    for name, truth in exact.items():
        if name not in results:
            return f"{name} is missing"
        error, eager_error = ((r[name].double() - truth).norm().item() for r in (results, eager))
        rounding = torch.finfo(eager[name].dtype).eps * truth.norm().item()
        if not error <= 2 * max(eager_error, rounding):  # so that NaN disagrees
            return f"{name} is off by {error:.2e}, the eager loop by {eager_error:.2e}"
    return None


class Timed(NamedTuple):
    """What to call, and torch's number of threads meanwhile."""

    call: Callable[[], object]
    threads: int


def take_turns(timed: Mapping[str, Timed], seconds: float, block: float = 0.05) -> dict[str, Timing]:
    """Time the calls for about ``seconds`` in all, one block of calls after another's, after a warm-up.

    A block is as many calls of one kind as fill ``block`` seconds, so that each runs with its own data in cache, as
    in training; its value is the mean. Slow drifts of the machine meet all contenders alike.
    """

    def mean_seconds(what: Timed, repeats: int) -> float:
        torch.set_num_threads(what.threads)
        start = perf_counter()
        for _ in range(repeats):
            what.call()
        return (perf_counter() - start) / repeats

    threads = torch.get_num_threads()
    try:
        for what in timed.values():
            mean_seconds(what, 1)
        repeats = {name: max(1, ceil(block / mean_seconds(what, 1))) for name, what in timed.items()}
        values: dict[str, list[float]] = {name: [] for name in timed}
        end = perf_counter() + seconds
        while perf_counter() < end or min(map(len, values.values())) < 5:
            for name, what in timed.items():
                values[name].append(mean_seconds(what, repeats[name]))
    finally:
        torch.set_num_threads(threads)
    return {name: Timing(*quantiles(v, n=4, method="inclusive")) for name, v in values.items()}
