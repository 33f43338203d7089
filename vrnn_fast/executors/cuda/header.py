"""A plan and its memory as the header that csrc/cuda/scan folds over. Pure: the same plan gives the same text."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...cell.spec import Std
from ...cell.stages import Slice
from .exchange import BUFFERS, operand_buffers
from .memory import Memory, in_pairs, in_two, operand_bytes
from .plan import EXCHANGES, STATEFUL, TILE, WARPS, Kind, Unit, moments, slopes

VALUES = {"float32": "float", "bfloat16": "Bf16", "float16": "F16"}
FROM_STATE: tuple[Kind, ...] = ("gru_back", "lstm_back", "rnn_back", "state_back")
SUMS, OTHERS = 4, 16  # of csrc/cuda/scan/program.h


def source(body: str, ranks: int = 1) -> str:
    """Write a kernel of one program, whose blocks are clusters of so many."""
    return f'{clustered(ranks)}#include "scan/base.h"\n{body}VRNN_ENTRY\n'


def clustered(ranks: int) -> str:
    """Write that a kernel's blocks are clusters of so many: before all else."""
    return f"#define VRNN_RANKS {ranks}\n" if ranks > 1 else ""


def header(
    memory: Memory, buffers: tuple[str, ...], stored: tuple[str, ...], value: str, results: tuple[str, ...] = ()
) -> str:
    """Write the program of a scan or of a pass as C++, which a kernel includes.

    Args:
        buffers: all that it reads and writes in memory, in the order of its arguments.
        stored: those that it writes.
        value: the dtype of memory, one of VALUES.
        results: those of the stored that have zeros at padding.
    """
    plan = memory.plan
    writer = _Writer(memory, buffers, stored, results)
    units = [writer.unit(u) for u in range(len(plan.units))]  # which number the parts
    products = [
        _braced(
            (
                *(writer.part(p.source), plan.units[v.unit].sums.index(p.target), f"Place::{memory.place[p]}"),
                *(memory.weights[p], memory.resident.get(p, -1), v.unit, in_two(p.source, memory.kind)),
            )
        )
        for v in plan.visits
        for p in v.products
    ]
    visits, first, waited = [], 0, 0
    for v in plan.visits:
        fields = v.unit, first, len(v.products), v.begins, v.finishes, v.barrier, waited, len(v.waits)
        visits.append(_braced((*fields, plan.publishes(v))))
        first, waited = first + len(v.products), waited + len(v.waits)
    waits = [str(writer.part(part)) for v in plan.visits for part in v.waits]
    constants = {
        "warps": WARPS,
        "blocks": memory.blocks,
        "operand_bytes": operand_bytes(memory.kind),
        "buffers": len(buffers),
        "states": len(plan.cut.states),
        "state_tiles": writer.state_tiles,
        "kept_tiles": writer.kept_tiles,
        "resident_words": memory.resident_words,
        "biases": memory.biases,
        "shared_weights": memory.shared_weights,
        "streamed_bytes": memory.streamed,
        "shared_biases": memory.shared_biases,
        "filter": memory.filter,
        "ranks": plan.ranks,
        "gates": memory.gates,
        "exchange_buffers": BUFFERS,
        "operand_buffers": max((operand_buffers(plan, part) for part in plan.exchanged), default=1),
        "pushed_bytes": memory.pushed_bytes,
        "stacked": plan.stacked,
        "stacked_bytes": memory.stacked_bytes,
        "shared_bytes": memory.shared,
        "shared_limit": memory.limit,
        "products_in_all": len(products),
        "parts_in_all": len(writer.parts),
        "units_in_all": len(units),
        "visits_in_all": len(visits),
        "waits_in_all": len(waits),
    }
    flags = {"reverse": plan.reverse, "pass": plan.is_pass, "barrier_first": plan.barrier_first}
    flags["through_memory"] = plan.through == "memory"
    lines = [
        "// Written by vrnn_fast/executors/cuda/header.py.",
        "namespace vrnn::program {",
        f"using Value = {VALUES[value]};",
        f"constexpr Operand operand = Operand::{memory.kind};",
        *(f"constexpr bool {name} = {_constant(value)};" for name, value in flags.items()),
        *(f"inline constexpr int {name} = {number};" for name, number in constants.items()),
        *_table("Part", "parts", writer.parts),
        *_table("Product", "products", products),
        *_table("Unit", "units", units),
        *_table("Visit", "visits", visits),
        *_table("int", "waits", waits),
        "}  // namespace vrnn::program",
        '#include "scan/kernel.h"',
    ]
    return "\n".join(lines) + "\n"


def _table(kind: str, name: str, entries: list[str]) -> list[str]:
    empty = [] if entries else ["{}"]  # C++ knows no array of nothing
    return [f"constexpr {kind} {name}[] = {{", *(f"    {entry}," for entry in (*entries, *empty)), "};"]


class _Writer:
    """Numbers parts as units name them."""

    def __init__(
        self, memory: Memory, buffers: tuple[str, ...], stored: tuple[str, ...], results: tuple[str, ...]
    ) -> None:
        self.memory, self.plan = memory, memory.plan
        self.buffers, self.stored, self.results = buffers, stored, results
        self.numbers: dict[Slice, int] = {}
        self.parts: list[str] = []
        self.states: dict[Slice, int] = {}
        self.state_tiles = self.kept_tiles = 0

    def part(self, part: Slice | None) -> int:
        """Return the number of a part; -1 of none."""
        if part is None:
            return -1
        if part not in self.numbers:
            self.numbers[part] = len(self.parts)
            self.parts.append(self._part(part))
        return self.numbers[part]

    def _part(self, part: Slice) -> str:
        plan, memory, name = self.plan, self.memory, part.buffer
        place: tuple[object, ...] = (-1, 0, 0)
        if name in self.buffers:
            place = self.buffers.index(name), part.start, plan.width(name)
        state = plan.state(part)
        fields = (
            *(part.width, memory.tiles(part), *place, part in plan.given, name in self.stored, name in self.results),
            -1 if state is None else state,
            *(of.get(part, -1) for of in (memory.bias, memory.operand, memory.ahead)),
            *(name in self.buffers and in_pairs(plan, part), memory.held.get(part, -1)),
            *(part in plan.split, memory.share(part)),
            plan.exchanged.index(part) if part in plan.exchanged else -1,
            *(plan.is_for_next(part), plan.maker(part) if part in plan.exchanged else -1, memory.pushed.get(part, -1)),
        )
        return f"/* {len(self.parts)}: {name}, {part.start} to {part.start + part.width - 1} */ {_braced(fields)}"

    def state(self, unit: Unit, rounds: int) -> int:
        """Return the first tile of a unit's state: h of a GRU, c of an LSTM, or their gradients; -1 where an update
        needs none. In a reverse scan, and in a particle filter, units share one."""
        shared = unit.waits[0] if unit.kind in ("state_back", *EXCHANGES) else unit.writes[0]
        if shared not in self.states:
            count = {"rnn": 0, "lstm_back": 2}.get(unit.kind, 1)
            self.states[shared] = self.state_tiles if count else -1
            self.state_tiles += rounds * count
        return self.states[shared]

    def unit(self, number: int) -> str:
        unit, plan, memory = self.plan.units[number], self.plan, self.memory
        tiles = memory.tiles(unit.sums[0])
        if unit.kind == "total":
            tiles = -(-unit.sums[0].width // TILE)  # padding has no share
        share = plan.share(tiles, unit.split)
        rounds = -(-share // WARPS)
        kept = state = -1
        if unit.kind != "total" and plan.kept(number):
            kept, self.kept_tiles = self.kept_tiles, self.kept_tiles + rounds * len(unit.sums)
        if unit.kind in STATEFUL:
            state = self.state(unit, rounds)
        fields = (
            *(f"Kind::{unit.kind}", tiles, unit.split, share, memory.every(unit), memory.abreast(unit)),
            *(plan.first_warp[number], len(unit.sums)),
            *(_padded(map(self.part, unit.sums), SUMS), _padded(map(self.part, unit.others), OTHERS)),
            *(unit.resumes, kept, state, unit.kind in FROM_STATE, unit.means),
            *((-1, -1) if unit.total is None else (unit.total, memory.totals.get(unit.total, -1))),
            f"Activation::{unit.activation}",
            *map(_deviation, (unit.transform or Std(), unit.posterior or Std())),
            *self.normalization(unit),
        )
        return _braced(fields)

    def normalization(self, unit: Unit) -> tuple[object, ...]:
        """Say which part a unit normalises, and where moments and slopes of its rows are."""
        sums = unit.normalizes
        if sums is None:
            return -1, -1, -1, 0.0
        places = (self.memory.row_sums.get(of(sums), -1) for of in (moments, slopes))
        return self.part(sums), *places, unit.eps


def _padded(numbers: Iterable[int], count: int) -> str:
    found = list(numbers)
    return _braced(found + [-1] * (count - len(found)))


def _deviation(std: Std) -> str:
    """Write the constants of a standard deviation, those that are not infinite as floats."""
    scale = 0.5 if std.kind == "log_variance" else std.sharpness
    least = std.min_std if not std.plain and std.min_std > 0 else math.inf
    bounds = ((math.isfinite(b), b if math.isfinite(b) else 0.0) for b in (least, *std.clamp))
    fields = (std.kind == "softplus", std.offset, scale, std.floor, *(field for pair in bounds for field in pair))
    return _braced((*fields, not std.plain))


def _braced(fields: Iterable[object]) -> str:
    """Write an initialiser of C++."""
    return "{" + ", ".join(map(_constant, fields)) + "}"


def _constant(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value!r}f" if isinstance(value, float) else str(value)
