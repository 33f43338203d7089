"""Contenders meet at one shape: results are checked, then they take turns between two looks at the machine's peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from . import peak
from .contender import TIMES_FORWARD, TRAINING, UPDATE, Contender, Entry, NamedTensors
from .measure import Timed, Timing, disagreements, take_turns
from .memory import Scales
from .record import Measurement
from .shapes import Shape

DRAWS = 5


@dataclass(frozen=True)
class Contest:
    """What is measured together.

    Attributes:
        experiment: the table that its rows belong to.
        passes: by name, as in :class:`bench.contender.Entry`; after each of them a run may be interrupted.
        oracle: in float64 it is right, in float32 it is the law of errors. Where it takes part, speed-ups are over it.
        memory: whether activations are weighed too.
    """

    experiment: str
    shape: Shape
    passes: tuple[str, ...]
    contenders: tuple[Contender, ...]
    oracle: Contender
    memory: bool = False

    def blank(self, name: str, contender: Contender, problem: str | None = None) -> Measurement:
        """Return a contender's row of one pass before anything is measured; ``problem`` says why nothing will be."""
        return Measurement(
            *(self.shape.name, self.shape.steps, self.shape.batch, name, contender.name, _threads(contender)[0]),
            problem=problem,
            experiment=self.experiment,
            sizes=self.shape.sizes,
            remark=contender.remark,
        )

    def refusal(self, contender: Contender) -> str | None:
        """Tell why a contender stays out; None if it does not."""
        return self.shape.lacks or contender.refuses(self.shape)

    def measure(self, passes: Sequence[str], seconds: float) -> Iterator[list[Measurement]]:
        """Measure the rows of each of these passes, timed for about ``seconds``, in the order of the contenders."""
        runs, problems = self._enter()
        activations = self._weigh(runs) if self.memory and {TRAINING, UPDATE} & set(passes) else {}
        for name in passes:
            rows = self._time(name, runs, seconds) if runs else {}
            if name in (TRAINING, UPDATE):
                rows = {who: replace(row, activation_bytes=activations.get(who)) for who, row in rows.items()}
            yield [rows.get(c.name) or self.blank(name, c, problems[c.name]) for c in self.contenders]

    def _enter(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """Find who may be timed, and what is wrong with the others."""
        problems = {c.name: reason for c in self.contenders if (reason := self.refusal(c)) is not None}
        runs: dict[str, Entry] = {}
        law = cache(self._law)
        for contender in self.contenders:
            if contender.name not in problems:
                run = contender.prepare(self.shape, torch.float32)
                problem = self._disagreement(contender, run, law)
                if problem is None:
                    runs[contender.name] = run
                else:
                    problems[contender.name] = problem
        return runs, problems

    def _law(self, draw: int) -> tuple[NamedTensors, NamedTensors]:
        """Compute the oracle's results in float32 and in float64."""
        shape = replace(self.shape, draw=draw)
        single, double = (self.oracle.prepare(shape, dtype).results for dtype in (torch.float32, torch.float64))
        return (single() if single else {}, double() if double else {})

    def _disagreement(
        self, contender: Contender, run: Entry, law: Callable[[int], tuple[NamedTensors, NamedTensors]]
    ) -> str | None:
        """Tell what is wrong with some tensor on every draw of the data.

        Where a ReLU's input is zero but for rounding, luck decides whether the gradient of that step passes. Among
        millions some are, so that one draw can make a tensor's error ten times another's. Defects are not luck.
        """
        wrong = disagreements(run.results(), *law(0), contender.errors) if run.results else {}
        for draw in range(1, DRAWS):
            if wrong:
                again = contender.prepare(replace(self.shape, draw=draw), torch.float32).results
                still = disagreements(again() if again else {}, *law(draw), contender.errors)
                wrong = {name: reason for name, reason in still.items() if name in wrong}
        return next(iter(wrong.values()), None)

    def _weigh(self, runs: Mapping[str, Entry]) -> dict[str, int | None]:
        """Measure bytes of activations of those who compute the same thing."""
        with Scales() as scales:
            return {
                c.name: scales.weigh(c, self.shape, _threads(c)[0])
                for c in self.contenders
                if c.name in runs and runs[c.name].results
            }

    def _time(self, name: str, runs: Mapping[str, Entry], seconds: float) -> dict[str, Measurement]:
        """Measure rows of all who may be timed. A void run is repeated, and after some tries admitted to be void."""
        contenders = [c for c in self.contenders if c.name in runs]
        timed = {c.name: Timed(runs[c.name].passes[name], _threads(c)) for c in contenders}
        cores = {self._cores(n) for what in timed.values() for n in what.threads}
        for _ in range(peak.TRIES):
            before = peak.measure(cores)
            timings = take_turns(timed, seconds)
            after = peak.measure(cores)
            peaks = {n: max(before[n], after[n]) for n in before}
            rows = {c.name: self._row(name, c, runs[c.name], timings, peaks) for c in contenders}
            reason = peak.void(before, after, [row.share for row in rows.values() if row.share])
            if reason is None:
                return rows
        return {c.name: self.blank(name, c, f"void {peak.TRIES} times: {reason}") for c in contenders}

    def _row(
        self, name: str, contender: Contender, run: Entry, timings: Mapping[str, Timing], peaks: Mapping[int, float]
    ) -> Measurement:
        """Return what one contender's timing says."""
        timing = timings[contender.name]
        oracle = timings.get(self.oracle.name) if run.results else None
        return replace(
            self.blank(name, contender),
            threads=timing.threads,
            milliseconds=1e3 * timing.median,
            quartiles=(1e3 * timing.lower, 1e3 * timing.upper),
            gflops=1e-9 * TIMES_FORWARD[name] * run.flops / timing.median if run.flops else None,
            speedup=oracle.median / timing.median if oracle else None,
            peak=peaks.get(self._cores(timing.threads)) if run.flops else None,
        )

    def _cores(self, threads: int) -> int:
        """Tell how many of the machine's cores so many threads can use: a batch of one is not split."""
        return min(threads, self.shape.batch)


def _threads(contender: Contender) -> tuple[int, ...]:
    """Return the numbers of threads to choose from."""
    return tuple(dict.fromkeys(n or torch.get_num_threads() for n in contender.threads))
