"""``python -m bench``: check, measure, print, record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from . import experiments
from .contest import Contest
from .record import RESULTS, Key, Record
from .table import problems, render


def left(contest: Contest, record: Record) -> tuple[str, ...]:
    """Return the passes that are still to be measured: some contender has neither a time in the present state nor a
    reason that still holds."""

    def done(name: str) -> bool:
        for contender in contest.contenders:
            row = record.find(contest.blank(name, contender).key)
            if row is None or row.problem != contest.refusal(contender):
                return False
        return True

    return tuple(name for name in contest.passes if not done(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and after every pass write its rows into the record, where the others stay, and into the
    machine's history."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--all", action="store_true", help="everything, in an hour or two; continues where it stopped")
    parser.add_argument("--again", action="store_true", help="with --all or --only: repeat what the record holds")
    names = sorted({contest.experiment for contest in experiments.full()})
    parser.add_argument("--only", choices=names, action="append", help="this experiment alone (may be repeated)")
    parser.add_argument("--shape", action="append", help="this shape, by name (may be repeated)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each shape and pass (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch and of every contender (default: torch's own)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the records' folder (default: bench/results)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    everything = options.all or options.only
    contests = experiments.full() if everything else experiments.short()
    record, console = Record.resume(options.results), Console(width=max(130, Console().width), soft_wrap=True)
    known: set[Key] = set()
    console.print(f"{record.processor}, {record.threads} threads, kernels: {record.kernel_build}")
    for contest in contests:
        if options.only and contest.experiment not in options.only:
            continue
        if options.shape and contest.shape.name not in options.shape:
            continue
        known |= {contest.blank(name, contender).key for name in contest.passes for contender in contest.contenders}
        passes = left(contest, record) if everything and not options.again else contest.passes
        for rows in contest.measure(passes, options.seconds) if passes else ():
            record.put(rows)
            record.save(options.results)
            record.append(rows, options.results)
            console.print(render(rows))
            for problem in problems(rows):
                console.print(f"no result for {problem}")
    if everything and not options.shape:  # of whole experiments, what nobody measures any more would stay for ever
        others = {row.key for row in record.rows if options.only and row.experiment not in options.only}
        record.keep(known | others)
        record.save(options.results)
    console.print(f"recorded in {options.results / record.file_name}")


if __name__ == "__main__":
    main()
