"""What is done on a GPU, in order; and ``python -m bench.gpu.parts PART SETTING ITEM...``, which does it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import children, parity, primitives, sanitizer, times
from .children import Row
from .setting import Setting


@dataclass(frozen=True)
class GpuPart:
    """A part of a run.

    Attributes:
        title: in words.
        seconds: that it may take.
        silence: seconds that one item may take.
        items: those of a setting, by name.
        run: the rows of one item. What it raises is what went wrong.
    """

    title: str
    seconds: float
    silence: float
    items: Callable[[Setting], list[str]]
    run: Callable[[Setting, str], Iterable[Row]]


PARTS: dict[str, GpuPart] = {
    "primitives": GpuPart("Primitives of the device layer", 60, 60, primitives.items, primitives.run),
    "parity": GpuPart("Parity by the law of errors", 120, 40, parity.items, parity.run),
    "sanitizer": GpuPart("compute-sanitizer", 90, 60, sanitizer.items, sanitizer.run),
    "compilation": GpuPart("Compilation of what is timed, on all cores", 60, 60, times.compilations, times.compile_all),
    "tuning": GpuPart("Tuning", 60, 30, times.tunings, times.tune),
    "times": GpuPart("Microseconds a time step, medians of contenders in turn", 240, 90, times.items, times.run),
}


def main(part: str, setting: str, *items: str) -> None:
    """Run items of a part. A process whose device may be in any state ends with the first one that fails."""
    asked = Setting.of_json(setting)
    for item in items:
        try:
            rows = list(PARTS[part].run(asked, item))
        except Exception as error:
            children.answer(item, (), f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}")
            return
        children.answer(item, rows, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
