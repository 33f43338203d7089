"""How far the kernels' elementary functions are from the exact ones, in every build that this machine can run.

``python -m bench.functions`` writes the table of docs/pages/functions.md, in a few minutes. ``--every 1`` tries all
floats.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.special import erfc

from .record import ROOT, Record
from .table import markdown, put

Floats: TypeAlias = NDArray[Any]

PAGE = ROOT / "docs" / "pages" / "functions.md"
EVERY, AT_ONCE = 7, 1 << 20


class Function(NamedTuple):
    """An elementary function: what it is in float64, the floats that it is measured on, and the largest error that the
    tests allow, in ulp."""

    exact: Callable[[Floats], Floats]
    low: float
    high: float
    bound: float


FUNCTIONS: dict[str, Function] = {
    "exp": Function(np.exp, -87.3, 89.0, 2),
    "log": Function(np.log, 0.0, 3.4e38, 2),
    "sigmoid": Function(lambda x: 1 / (1 + np.exp(-x)), -87.3, 3.4e38, 3),
    "tanh": Function(np.tanh, -3.4e38, 3.4e38, 3),
    "softplus": Function(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), -87.3, 3.4e38, 3),
    "expm1": Function(np.expm1, -3.4e38, 88.7, 3),
    "normal_cdf": Function(lambda x: erfc(torch.from_numpy(x) * -(0.5**0.5)).numpy() / 2, -1.25, 3.4e38, 6),
}


@dataclass
class Worst:
    """The largest error that was seen, in ulp, and where."""

    error: float = 0.0
    at: float = 0.0

    def see(self, errors: Floats, x: Floats) -> None:
        i = int(errors.argmax())
        if not errors[i] <= self.error:  # NaN too
            self.error, self.at = float(errors[i]), float(x[i])


def ulps(found: Floats, right: Floats) -> Floats:
    """Compute the distance in units in the last place of float32; equal infinities are 0 apart."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = right.astype(np.float32)
        unit = np.spacing(np.maximum(np.abs(rounded), np.float32(np.finfo(np.float32).tiny))).astype(np.float64)
        apart = np.abs(found.astype(np.float64) - right) / unit
    distance: Floats = np.where(found == rounded, np.minimum(np.nan_to_num(apart, posinf=0.0), 0.5), apart)
    return distance


def floats(low: float, high: float, every: int) -> Iterator[Floats]:
    """Yield every so many of the float32 numbers in [low, high], some at a time: all exponents and both signs."""
    for start in range(0, 1 << 32, every * AT_ONCE):
        x = np.arange(start, min(start + every * AT_ONCE, 1 << 32), every, dtype=np.uint32).view(np.float32)
        x = x[np.isfinite(x) & (x >= low) & (x <= high)]
        if x.size:
            yield x


def measure(name: str, builds: Sequence[str], every: int) -> dict[str, Worst]:
    """Measure the worst of a function in each build. It sets ``VRNN_FAST_ISA``."""
    native = importlib.import_module("vrnn_fast._native")
    function, worst = FUNCTIONS[name], {build: Worst() for build in builds}
    for x in floats(function.low, function.high, every):
        with np.errstate(over="ignore", divide="ignore", under="ignore"):
            right = function.exact(x.astype(np.float64))
        for build in builds:
            os.environ["VRNN_FAST_ISA"] = build
            worst[build].see(ulps(native.apply(name, x), right), x)
    return worst


def table(found: dict[str, dict[str, Worst]]) -> str:
    """Write a line for each function."""
    builds = list(dict.fromkeys(build for worst in found.values() for build in worst))
    header = ["function", "allowed", *(text for build in builds for text in (build, f"at x = ({build})"))]
    lines = [
        [f"`{name}`", f"{FUNCTIONS[name].bound:g}"]
        + [text for worst in each.values() for text in (f"{worst.error:.2f}", f"{worst.at:.6g}")]
        for name, each in found.items()
    ]
    return markdown(header, lines)


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> None:
    """Measure all functions in all builds, and replace what stands between the page's two markers."""
    parser = argparse.ArgumentParser(prog="python -m bench.functions", description=__doc__)
    parser.add_argument("--every", type=int, default=EVERY, help="which share of all floats (default: %(default)s)")
    options = parser.parse_args(arguments)
    builds = importlib.import_module("vrnn_fast._native").usable_isas()
    record = Record.begin()
    found = {name: measure(name, builds, options.every) for name in FUNCTIONS}
    share = f"one in {options.every}" if options.every > 1 else "all"
    about = f"**{record.processor}**, {share} of the floats, numpy {record.state.versions['numpy']}; {record.state}"
    put(page, [about, table(found)])


if __name__ == "__main__":
    main()
