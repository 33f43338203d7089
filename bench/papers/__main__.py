"""``python -m bench.papers``: train, measure, record. A name asks for another study: one of :data:`NAMED`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from vrnn_fast.data import DataError

from ..record import RESULTS
from . import anomalies, evidence, exchange, linear_gaussian, narendra_li
from .chorales import KINDS, SEEDS, Hyperparameters, Result, read, run
from .chung import handwriting, speech
from .page import page

DATA = "VRNN_FAST_JSB"
STUDIES = (linear_gaussian.STUDY, narendra_li.STUDY, anomalies.STUDY, exchange.STUDY)


def _asking(study: evidence.Study) -> Callable[[Sequence[str]], None]:
    return lambda given: evidence.main(study, given)


NAMED = {"speech": speech.main, "handwriting": handwriting.main, **{study.name: _asking(study) for study in STUDIES}}


def results_in(folder: Path) -> list[Result]:
    """Read what runs left there, in the order of bounds and seeds."""
    found = [Result.of_json(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda r: (KINDS.index(r.setting.kind), r.setting.seed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and write the page of all that there is."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in NAMED:
        return NAMED[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m bench.papers", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA), help=f"JSB_Chorales.mat (default: ${DATA})")
    parser.add_argument("--bound", choices=KINDS, action="append", help="train with it (may be repeated; default: all)")
    parser.add_argument("--seed", type=int, action="append", help="(may be repeated; default: 0, 1 and 2)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s; the model is small)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page (default: bench/results)")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error(f"name JSB_Chorales.mat with --data or in {DATA}")
    torch.set_num_threads(options.threads)
    try:
        data = read(Path(options.data))
    except DataError as error:
        parser.error(str(error))
    console, folder = Console(soft_wrap=True), options.results / "papers"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in options.bound or KINDS:
        for seed in options.seed or SEEDS:
            result = run(Hyperparameters(kind, seed), data, console)
            (folder / f"{result.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
            (options.results / "papers.md").write_text(page(results_in(folder)))


if __name__ == "__main__":
    main()
