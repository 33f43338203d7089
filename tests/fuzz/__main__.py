"""Fuzz, and print each failure as its smallest case: ``python -m tests.fuzz --cases 10000 --seed 0``."""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.support.interpreting import patched_once
from tests.support.machine import usable_isas
from vrnn_fast import backends

from . import Refused, case_of, failure, shrink
from .programs import try_programs


def main() -> int:
    """Run the cases that are asked for. 0 if none failed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="case i of a seed is always the same")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--executor", choices=tuple(backends()), default="cpu")
    parser.add_argument("--isa", action="append", help="a build of the CPU kernels, or several; by default each one")
    parser.add_argument("--failures", type=int, default=10, help="stop after so many")
    parser.add_argument("--programs", type=int, default=0, help="damaged programs, handed to every operator first")
    parser.add_argument("--verbose", action="store_true", help="print each case first, for what ends the process")
    asked = parser.parse_args()
    if not (backend := backends()[asked.executor]).available:
        parser.error(f"--executor {asked.executor}: {backend.reason}")
    torch.set_num_threads(1)
    isas = asked.isa or usable_isas()
    if asked.programs:
        print(f"{asked.programs} damaged programs of seed {asked.seed}: {try_programs(asked.seed, asked.programs)} ran")
    ran = refused = failed = 0
    start = time.perf_counter()
    with patched_once():
        for number in range(asked.first, asked.first + asked.cases):
            case = case_of(asked.seed, number, asked.executor, isas)
            if asked.verbose:
                print(f"{number}: {case}", flush=True)
            error = failure(case)
            ran += 1
            if isinstance(error, Refused):
                refused += 1
                print(f"case {number}: refused: {error}", flush=True)
            elif error:
                failed += 1
                print(f"case {number}: {type(error).__name__}: {error}\n  {case}", flush=True)
                print(f"  {shrink(case, error)}", flush=True)
                if failed == asked.failures:
                    break
    rate = ran / (time.perf_counter() - start)
    where = f"{asked.executor} ({', '.join(isas)})" if asked.executor == "cpu" else asked.executor
    print(f"{ran} cases of seed {asked.seed} on {where}: {failed} failed, {refused} refused; {rate:.1f} a second")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
