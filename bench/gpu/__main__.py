"""``python -m bench.gpu``: every part, each with its time limit, and a record after every item."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..record import RESULTS
from . import children
from .children import Clock
from .parts import PARTS
from .record import GpuRecord
from .setting import BACKENDS, DTYPES, TINY, Setting, known_shapes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, record. 0 if nothing went wrong."""
    options = _parser().parse_args(arguments)
    if options.emulate and options.results is None:
        raise SystemExit("--emulate needs --results FOLDER: a rehearsal is no record")
    if not options.emulate and not torch.cuda.is_available():
        raise SystemExit("there is no GPU; --emulate --results FOLDER rehearses on a CPU")
    given = {name: tuple(getattr(options, name)) for name in ("shapes", "dtypes", "backends") if getattr(options, name)}
    if options.emulate:
        given.setdefault("shapes", (TINY.name,))
    setting = Setting(options.emulate, seconds=options.seconds, compiled=tuple(options.compiled), **given)
    record, clock = GpuRecord.begin(setting), Clock(60 * options.minutes)
    print(", ".join(f"{name} {value}" for name, value in record.where.items()), flush=True)
    for name in options.parts or PARTS:
        part = PARTS[name]
        own = Clock(min(part.seconds * options.patience, max(clock.left, 0.0)))
        print(f"\n{part.title}, {own.seconds:.0f} s at most", flush=True)
        command = ["-m", "bench.gpu.parts", name, setting.as_json()]
        items = [item for item in part.items(setting) if not options.items or item in options.items]
        limits = own, part.silence * options.patience
        for found in children.run(name, items, command, setting.environment, *limits):
            answer = found.problem or "; ".join(" ".join(map(str, row.values())) for row in found.rows)
            print(f"{found.item}, {found.seconds:.1f} s: {answer}", flush=True)
            record.found.append(found)
            record.write(options.results or RESULTS)
    print(f"\n{len(record.found)} items, {len(record.problems)} problems", flush=True)
    return min(len(record.problems), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    several: Any = {"action": "append", "default": []}
    parser.add_argument("--part", dest="parts", choices=PARTS, **several, help="this part (may be repeated)")
    parser.add_argument("--item", dest="items", **several, help="this item (may be repeated)")
    parser.add_argument("--shape", dest="shapes", choices=known_shapes(), **several, help="this shape")
    parser.add_argument("--dtype", dest="dtypes", choices=sorted(DTYPES), **several, help="this dtype")
    parser.add_argument("--backend", dest="backends", choices=BACKENDS, **several, help="this backend")
    parser.add_argument("--compiled", choices=("default", "reduce-overhead"), **several, help="of torch.compile")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies every limit (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="the records' folder (default: bench/results)")
    parser.add_argument("--emulate", action="store_true", help="rehearse on a CPU, slowly")
    return parser


if __name__ == "__main__":
    sys.exit(main())
