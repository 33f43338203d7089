"""Results first, then time: medians of contenders that take turns in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from statistics import quantiles
from time import perf_counter
from typing import NamedTuple

import torch

from vrnn_fast.agreement import Errors

from .contender import NamedTensors

PATIENCE = 60  # seconds, after which three rounds are enough, and so is a call that takes longer for a warm-up


class Timed(NamedTuple):
    """What to call, and the numbers of torch's threads to choose from."""

    call: Callable[[], object]
    threads: tuple[int, ...]


class Timing(NamedTuple):
    """Quartiles of the seconds that one call took, on the number of threads that was fastest."""

    lower: float
    median: float
    upper: float
    threads: int


def disagreements(
    results: NamedTensors, eager: NamedTensors, exact: NamedTensors, times: float = 2.0
) -> dict[str, str]:
    """Tell what is wrong, by tensor, by the law of :mod:`vrnn_fast.agreement`: the eager loop is plain torch there."""
    missing = {name: f"{name} is missing" for name in exact if name not in results}
    known = [name for name in exact if name not in missing]
    errors = Errors(next(iter(eager.values())).dtype, times=times)
    errors.add(*({name: found[name] for name in known} for found in (results, eager, exact)))
    return missing | errors.violations()


def take_turns(timed: Mapping[str, Timed], seconds: float, block: float = 0.05) -> dict[str, Timing]:
    """Time the calls for about ``seconds`` in all, one block of calls after another's, after a warm-up.

    A block is as many calls of one kind as fill ``block`` seconds, so that each runs with its own data in cache, as
    in training; its value is the mean. Slow drifts of the machine meet all contenders alike.
    """

    def mean_seconds(call: Callable[[], object], threads: int, repeats: int) -> float:
        torch.set_num_threads(threads)
        start = perf_counter()
        for _ in range(repeats):
            call()
        return (perf_counter() - start) / repeats

    def repeats(once: float) -> int:
        return max(1, ceil(block / once))

    def warm_up(call: Callable[[], object], choices: tuple[int, ...]) -> tuple[int, int]:
        once = mean_seconds(call, choices[0], 1)
        if once < PATIENCE:
            once = mean_seconds(call, choices[0], 1)
        if len(choices) == 1:
            return choices[0], repeats(once)
        means = {n: mean_seconds(call, n, repeats(once)) for n in choices}
        best = min(means, key=means.__getitem__)
        return best, repeats(means[best])

    before = torch.get_num_threads()
    try:
        plan = {name: warm_up(*what) for name, what in timed.items()}
        values: dict[str, list[float]] = {name: [] for name in timed}
        start, rounds = perf_counter(), 0
        while (spent := perf_counter() - start) < seconds or rounds < (5 if spent < PATIENCE else 3):
            for name, what in timed.items():
                values[name].append(mean_seconds(what.call, *plan[name]))
            rounds += 1
    finally:
        torch.set_num_threads(before)
    result = {}
    for name, times in values.items():
        lower, median, upper = quantiles(times, n=4, method="inclusive")
        result[name] = Timing(lower, median, upper, plan[name][0])
    return result
