"""``python -m bench``: check, measure, print, record."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from rich.console import Console

from vrnn_fast import VRNN

from .contenders import CONTENDERS, PASSES, Run, prepare_eager
from .measure import Timed, disagreement, take_turns
from .record import Record, Row
from .shapes import SHAPES, Shape, forward_flops
from .table import problems, render


def rows(shape: Shape, seconds: float) -> Iterator[Row]:
    """All passes of all contenders at one shape; ``seconds`` for each pass."""
    torch.manual_seed(0)
    model = VRNN(**shape.model, backend="reference")
    parameters = model.state_dict()
    flops = forward_flops(model, shape)
    exact = prepare_eager(shape, {name: p.double() for name, p in parameters.items()}).results()
    eager = prepare_eager(shape, parameters).results()
    problems: dict[str, str | None] = {}
    runs: dict[str, Run] = {}
    for contender in CONTENDERS:
        problem = contender.unavailable()
        if problem is None:
            run = contender.prepare(shape, parameters)
            problem = disagreement(run.results(), eager, exact)
            if problem is None:
                runs[contender.name] = run
        problems[contender.name] = problem
    threads = {contender.name: contender.threads or torch.get_num_threads() for contender in CONTENDERS}
    for name, share in PASSES.items():
        times = take_turns({who: Timed(run.passes[name], threads[who]) for who, run in runs.items()}, seconds)
        yardstick = min(times[contender.name].median for contender in CONTENDERS if contender.yardstick)
        for who, problem in problems.items():
            common = (shape.name, shape.steps, shape.batch, name, who, threads[who])
            if who in times:
                lower, median, upper = times[who]
                yield Row(
                    *common,
                    milliseconds=1e3 * median,
                    quartiles=(1e3 * lower, 1e3 * upper),
                    gflops=1e-9 * share * flops / median,
                    speedup=yardstick / median,
                )
            else:
                yield Row(*common, problem=problem)


def main() -> None:
    """Measure, and leave the record in bench/results unless only some shapes were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = sorted({shape.name for shape in SHAPES})
    parser.add_argument("--shape", choices=names, action="append", help="only this one (may be repeated)")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each shape and pass (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch and of every contender (default: torch's own)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    record, console = Record.begin(), Console(width=max(120, Console().width), soft_wrap=True)
    for shape in SHAPES:
        if arguments.shape is None or shape.name in arguments.shape:
            with console.status(f"{shape.name}, T = {shape.steps}, B = {shape.batch}"):
                record.rows.extend(rows(shape, arguments.seconds))
    console.print(render(record.rows, f"{record.processor}, {record.threads} threads, kernels: {record.kernel_build}"))
    for problem in problems(record.rows):
        console.print(f"no result for {problem}")
    if arguments.shape is None:
        console.print(f"recorded in {record.save()}")


if __name__ == "__main__":
    main()
