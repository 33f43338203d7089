"""What the compiler makes of the CPU kernel's inner loop, in every build: its instructions, as objdump reads them.

``python -m bench.inner_loop`` writes bench/results/cpu-inner-loop.md. valgrind's instruction counts know no AVX-512.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vrnn_fast.ops import LIBRARY

from .record import RESULTS

TILES = {"avx512": (12, 2), "avx2": (6, 2), "baseline": (4, 2)}  # rows and vectors of csrc/cpu/tuning.h
_FUSED, _MULTIPLY = re.compile(r"vfmadd\d+ps"), re.compile(r"v?mulps")
_LINE = re.compile(r"^\s*(?P<address>[0-9a-f]+):\s+(?P<text>\S[^<]*?)\s*(<.*)?$")  # jumps end in a symbol's name
_JUMP = re.compile(r"^j\w+\s+(?P<target>[0-9a-f]+)")

ABOUT = """\
# What the compiler makes of the inner loop

The tile of csrc/cpu/gemm.h in float32, which every product runs through: one step of k, by every build. A tile of M
rows and V vectors wants M V multiplications and additions, V vectors of B and M elements of A.
A processor with two units for them and two loads a cycle needs at least half as many cycles as there are of the more
frequent kind. How near a whole training step comes to that is the share of peak in the tables of each machine.
`python -m bench.inner_loop` writes this.

| build | rows x vectors | multiply-adds | loads | other | of the stack | cycles at least |
| --- | --- | --: | --: | --: | --: | --: |
"""


@dataclass(frozen=True)
class Loop:
    """The instructions of one pass, and how many of them are what."""

    instructions: tuple[str, ...]

    @property
    def products(self) -> int:
        """Multiplications with an addition; without fused ones, multiplications."""
        fused = self._count(_FUSED)
        return fused or self._count(_MULTIPLY)

    @property
    def loads(self) -> int:
        return sum("(" in text and not text.startswith(("prefetch", "lea", "nop")) for text in self.instructions)

    @property
    def spills(self) -> int:
        return sum("(%rsp" in text or "(%rbp" in text for text in self.instructions)

    @property
    def cycles(self) -> float:
        """At least, with two units for products and two for loads."""
        return max(self.products, self.loads) / 2

    def _count(self, kind: re.Pattern[str]) -> int:
        return sum(kind.match(text) is not None for text in self.instructions)


def innermost(listing: Iterable[str]) -> Loop:
    """Find in a function's disassembly the loop without another one inside that multiplies most.

    Raises:
        ValueError: there is no loop.
    """
    code = [(int(m["address"], 16), m["text"]) for m in map(_LINE.match, listing) if m]
    places = {address: i for i, (address, _) in enumerate(code)}
    jumps = ((i, _JUMP.match(text)) for i, (_, text) in enumerate(code))
    targets = ((places.get(int(m["target"], 16)), i) for i, m in jumps if m)
    loops = [(start, end) for start, end in targets if start is not None and start <= end]
    inner = [own for own in loops if not any(o != own and own[0] <= o[0] and o[1] <= own[1] for o in loops)]
    if not inner:
        raise ValueError("there is no loop in this listing")
    found = (Loop(tuple(text for _, text in code[start : end + 1])) for start, end in inner)
    return max(found, key=lambda loop: loop.products)


def disassembled(library: Path, isa: str, rows: int, vectors: int) -> Iterator[str]:
    """Disassemble the lines of one tile's function.

    Raises:
        FileNotFoundError: there is no objdump (binutils).
    """
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name = f"<void vrnn::{isa}::tiles<float, {rows}, {vectors}>("
    here = False
    for line in text.splitlines():
        if line.endswith(">:"):
            here = name in line
        elif here:
            yield line


def main() -> None:
    """Write the table and the loops."""
    loops = {isa: innermost(disassembled(LIBRARY, isa, *tile)) for isa, tile in TILES.items()}
    text = ABOUT
    for isa, loop in loops.items():
        rows, vectors = TILES[isa]
        other = len(loop.instructions) - loop.products - loop.loads
        text += f"| {isa} | {rows} x {vectors} | {loop.products} | {loop.loads} | {other} | {loop.spills} |"
        text += f" {loop.cycles:g} |\n"
    for isa, loop in loops.items():
        text += f"\n## {isa}\n\n```\n" + "\n".join(re.sub(r"\s+", " ", line) for line in loop.instructions) + "\n```\n"
    (RESULTS / "cpu-inner-loop.md").write_text(text)


if __name__ == "__main__":
    main()
