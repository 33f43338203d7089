"""Every tuning decision, and the arithmetic behind it in plain functions. Nothing here imports triton.

A choice belongs to a structure (cell, dtype, chip), never to T or B. Untuned, the first candidate runs; :func:`tune`
measures them all on a GPU and writes the fastest to disk, where the next process finds it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ...cell.spec import CellSpec
from ...replacing import replacing
from ..cache import cache_directory
from .passes import Passes, Room, passes
from .plan import BESIDE, LEAST, Matrix, Plan, plan

SCANS = "forward", "backward", "generate"  # launches with a scan
MOST_REGISTERS = 255  # of a thread
MOST_BY_THREADS = 320  # by an estimate that is large for what threads multiply: beyond 255 if nothing else fits
MOST_ON_AMD = 150  # of 16 bits, by an estimate that counts half of them: its compiler gives all columns to every warp
MOST_IN_TF32 = 180  # of a scan, where operands are large
MOST_AHEAD = {"16 bits": (200, 262), "tf32": (160, 180), "threads": (200, 200)}  # where a step reads ahead of the next
# one, both ways, or forward alone: nothing should spill for that, and of 16 bits two wait in a register
MOST_COLUMNS = 1024  # of a buffer, beyond which the launch's other phases leave no register for that
MOST_MULTIPLY_ADDS = 3600  # of a thread in a step, where they are not the tensor cores': beyond, it spills
MOST_OVER_ROWS_IN_TF32 = {False: 125, True: 180}  # by an estimate, forward and in reverse
MOST_APART_IN_TF32 = 130  # of one of several passes in reverse
MOST_PRODUCTS = 100  # of a kernel's step: beyond, it takes minutes to compile
NARROW = 32  # columns of a tile whose operands threads can hold where it is they that multiply
MOST_NARROW_PRODUCTS = 150  # of such tiles, which are smaller
ROWS = (16, 32, 64, 128)  # of a tile
FEWEST_ROWS = 8  # of a tile that threads multiply: tensor cores would pad it


@dataclass(frozen=True)
class Chip:
    """A GPU: bytes of shared memory that one program may use, and threads of a warp."""

    name: str
    shared: int
    lanes: int = 32

    @property
    def amd(self) -> bool:
        """Whether its warps are of 64, and its threads have up to 512 registers."""
        return self.lanes == 64


CHIPS = {chip.name: chip for chip in (Chip("sm_80", 166912), Chip("sm_90", 232448), Chip("gfx942", 65536, 64))}


@dataclass(frozen=True)
class Config:
    """How a kernel is written.

    Attributes:
        rows: of the batch in one program, a power of two from 16 on.
        warps: of one program.
        widest: columns of the widest tile, a power of two from 16 on.
        ahead: whether a step reads what the next one needs from memory, into registers that are then not free.
        forward_only: whether steps of the reverse scan do not.
        beside: columns that a tile has at least beside wider ones, and over rows.
        shared: bytes that the weights loaded once, and what passes through shared memory beside them, may take.
        late: whether registers hold operands rather than sums. Then forward adds up a tile where it is needed, and a
            reverse step begins with all that it reads; where operands are large, neither.
    """

    rows: int
    warps: int
    widest: int
    ahead: bool
    shared: int
    late: bool = True
    forward_only: bool = False
    beside: int = LEAST

    def plan(self, spec: CellSpec, mean: bool | None = None, *, reverse: bool = False) -> Plan:
        """Cut a cell's scan; see :func:`.plan.plan`."""
        return plan(spec, self.widest, mean, reverse=reverse, beside=self.beside)


def weight_bytes(cut: Plan, matrix: Matrix, itemsize: int) -> int:
    """Count the bytes of one matrix on the chip, padded."""
    return matrix.size * itemsize


def staging_bytes(cut: Plan, matrices: Iterable[Matrix], rows: int, itemsize: int) -> int:
    """Bound what passes through shared memory at a time: a tile of streamed weights, and four of values, or five
    narrow ones."""
    widest = max(t.padded for of in cut.tiles.values() for t in of)
    streamed = [
        target.padded * source.padded * itemsize
        for m in matrices
        for target, source in product(cut.tiles_of(m.stage.target), cut.tiles_of(m.stage.source))
    ]
    return (5 if widest <= NARROW else 4) * rows * widest * 4 + max(streamed, default=0)


@lru_cache(maxsize=1024)
def resident(cut: Plan, config: Config, itemsize: int) -> frozenset[int]:
    """Return the numbers of the matrices that are loaded once: from the first on, as many as fit beside the staging."""
    found: frozenset[int] = frozenset()
    for matrix in cut.matrices:
        more = found | {matrix.number}
        if shared_bytes(cut, config.rows, itemsize, more) <= config.shared:
            found = more
    return found


def shared_bytes(cut: Plan, rows: int, itemsize: int, loaded: frozenset[int]) -> int:
    """Bound the shared memory of a program whose ``loaded`` matrices stay there."""
    weights = sum(weight_bytes(cut, m, itemsize) for m in cut.matrices if m.number in loaded)
    streamed = (m for m in cut.matrices if m.number not in loaded)
    return weights + staging_bytes(cut, streamed, rows, itemsize)


def multiply_adds(cut: Plan, config: Config, chip: Chip) -> int:
    """Count the multiply-adds of one thread in a step, where it is threads that multiply."""
    return sum(weight_bytes(cut, m, 1) for m in cut.matrices) * config.rows // (chip.lanes * config.warps)


def height(config: Config, itemsize: int, precision: str) -> int:
    """Tell how many rows a program over rows has: it holds more tiles than a scan, so that threads multiply few."""
    return FEWEST_ROWS if itemsize == 4 and precision == "ieee" else config.rows


def room(config: Config, itemsize: int, precision: str, chip: Chip, *, reverse: bool) -> Room:
    """Estimate what a program over rows can hold: a register of each thread for each of its elements. Where operands
    are large, the compiler spills of less, and with a scan in the same launch of all."""
    by_threads = itemsize == 4 and precision == "ieee"
    most = MOST_REGISTERS - (operand_registers(config, chip) if by_threads else 0)
    wanted = apart = most
    if precision == "tf32" and itemsize == 4:
        wanted, apart = MOST_OVER_ROWS_IN_TF32[reverse], MOST_APART_IN_TF32

    def columns(registers: int) -> int:
        return (registers - 80) * chip.lanes * config.warps // height(config, itemsize, precision)

    return Room(columns(wanted), columns(apart), columns(most), MOST_NARROW_PRODUCTS if by_threads else MOST_PRODUCTS)


def around(
    spec: CellSpec, config: Config, itemsize: int, precision: str, chip: Chip, *, reverse: bool
) -> Passes | None:
    """Return the passes over rows around a scan; None where torch must do their work, for they do not fit."""
    found = room(config, itemsize, precision, chip, reverse=reverse)
    return passes(spec, config.widest, found, reverse=reverse, beside=config.beside)


def registers(cut: Plan, config: Config, chip: Chip) -> int:
    """Estimate a thread's registers: states and what a step reads are held, each in about two places."""

    def columns_of(*names: str) -> int:
        return sum(t.padded for name in names for t in cut.tiles.get(name, ()))

    columns = columns_of(*cut.states) + columns_of(*cut.given) * (2 if config.ahead else 1)
    return 80 + 2 * columns * config.rows // (chip.lanes * config.warps)


def told(way: str, itemsize: int, chip: Chip) -> int | None:
    """Return how many registers the compiler is told that a thread of a launch may have; None where it chooses. Of a
    scan in float32 it would spill for a second program beside, for which there is no shared memory."""
    return MOST_REGISTERS if way in SCANS and itemsize == 4 and not chip.amd else None


def most_registers(itemsize: int, chip: Chip, widest: int, *, by_threads: bool = False) -> int:
    """Return the most that an estimate may be: beyond, the compiler spills."""
    if chip.amd and itemsize == 2 and widest > NARROW:
        return MOST_ON_AMD
    if itemsize == 4 and not by_threads:
        return MOST_IN_TF32
    return MOST_BY_THREADS if by_threads and not chip.amd else MOST_REGISTERS


def _most_ahead(cut: Plan, config: Config, itemsize: int, chip: Chip, *, by_threads: bool) -> tuple[int, int]:
    """Return the most registers, by the estimate, where steps read ahead both ways, and where they do so forward."""
    if chip.amd and itemsize == 2:
        return MOST_ON_AMD, MOST_ON_AMD
    both, forward = MOST_AHEAD["threads" if by_threads else "tf32" if itemsize == 4 else "16 bits"]
    widest = max(buffer.width for buffer in cut.program.buffers)
    return both, forward if itemsize == 4 or (config.late and widest <= MOST_COLUMNS) else both


def operand_registers(config: Config, chip: Chip) -> int:
    """Count the registers for the operands of one product of a thread that multiplies: some rows of one, and a column
    of the other. AMD's threads have twice as many as the estimates are of."""
    count = config.widest * (min(4, max(1, config.rows // config.warps)) + 1)
    return count // 2 if chip.amd else count


def candidates(
    spec: CellSpec,
    itemsize: int,
    chip: Chip,
    precision: str = "ieee",
    mean: bool | None = None,
    particles: int = 1,
) -> tuple[Config, ...]:
    """List the configurations that a cell may be run in, the best guess first; empty where none fits. None of them
    should spill, by the estimate.

    ``precision`` is that of float32, ``"ieee"`` or ``"tf32"``; ``mean`` as in :func:`plan`; all ``particles`` of a
    sequence are in one tile. Here and below.
    """
    found: list[tuple[bool, Config]] = []
    rows_of = [rows for rows in ROWS if rows >= particles][:2]
    warps_of = (256 // chip.lanes, 128 // chip.lanes)
    by_threads = itemsize == 4 and precision == "ieee"
    if by_threads and particles <= FEWEST_ROWS and not chip.amd:  # whose compiler spills then
        rows_of.append(FEWEST_ROWS)
    uneven = itemsize == 4 and plan(spec, 64, mean, beside=BESIDE).uneven  # tiles of TF32: beside wider ones they spill
    widest_of: tuple[int, ...] = (64, 128, NARROW) if chip.amd and itemsize == 2 else (64, 128)
    if by_threads or uneven:
        widest_of = (NARROW,)
    for rows, warps, widest, ahead in product(rows_of, warps_of, widest_of, (True, False)):
        late = itemsize < 4 and widest <= 64 and not chip.amd  # else operands take more registers than sums
        beside = LEAST if by_threads or (chip.amd and widest == NARROW) else BESIDE  # threads have what is their own
        config = Config(rows, warps, widest, ahead, chip.shared, late, beside=beside)
        cut = config.plan(spec, mean)
        products = MOST_NARROW_PRODUCTS if widest == NARROW else MOST_PRODUCTS
        if cut.products > products or shared_bytes(cut, rows, itemsize, frozenset()) > chip.shared:
            continue
        if by_threads and multiply_adds(cut, config, chip) > MOST_MULTIPLY_ADDS:
            continue
        wanted = registers(cut, config, chip) + (operand_registers(config, chip) if by_threads else 0)
        both, forward = _most_ahead(cut, config, itemsize, chip, by_threads=by_threads)
        if wanted <= (forward if ahead else most_registers(itemsize, chip, widest, by_threads=by_threads)):
            tight = by_threads and wanted > MOST_REGISTERS
            found.append((tight, replace(config, forward_only=ahead and wanted > both)))
    return tuple(config for tight, config in found if not tight or all(other for other, _ in found))


def misfit(
    spec: CellSpec,
    itemsize: int,
    chip: Chip,
    precision: str = "ieee",
    mean: bool | None = None,
    particles: int = 1,
) -> str | None:
    """Return None, or why no configuration fits this cell."""
    if particles > ROWS[-1]:
        return f"a tile holds all particles of a sequence, at most {ROWS[-1]}, and there are {particles}"
    if candidates(spec, itemsize, chip, precision, mean, particles):
        return None
    if candidates(spec, itemsize, chip, precision, mean):
        return f"a tile that holds {particles} particles of this cell would spill registers"
    if itemsize == 4 and precision == "ieee" and candidates(spec, itemsize, chip, "tf32", mean):
        return (
            "a step of this cell in full float32, without tensor cores, would spill registers; "
            'torch.set_float32_matmul_precision("high") allows TF32, and bfloat16 fits as well'
        )
    cut = plan(spec, 128, mean)
    most = MOST_ON_AMD if chip.amd and itemsize == 2 else MOST_IN_TF32 if itemsize == 4 else MOST_REGISTERS
    fits = "; bfloat16 fits" if itemsize == 4 and candidates(spec, 2, chip, mean=mean, particles=particles) else ""
    least = registers(cut, Config(16, 256 // chip.lanes, 128, False, chip.shared), chip)
    return (
        f"the scan of this cell has {cut.products} products of tiles in a step and would want about {least} registers "
        f"a thread; at most {MOST_PRODUCTS} and {most} are compiled{fits}"
    )


def choose(
    spec: CellSpec,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "ieee",
    mean: bool | None = None,
    particles: int = 1,
) -> Config:
    """Return the tuned configuration if there is one (none is for cells that run on their own), else the first
    candidate.

    Raises:
        ValueError: no configuration fits.
    """
    return _chosen(spec, dtype, chip_of(device), precision, mean, particles)


@lru_cache(maxsize=256)
def _chosen(
    spec: CellSpec, dtype: torch.dtype, chip: Chip, precision: str, mean: bool | None, particles: int
) -> Config:
    found = candidates(spec, dtype.itemsize, chip, precision, mean, particles)
    if not found:
        raise ValueError(misfit(spec, dtype.itemsize, chip, precision, mean, particles))
    tuned = _read(spec, dtype, chip, precision) if mean is None else None
    return tuned if tuned in found else found[0]


def _progress(line: str) -> None:
    print(f"\r{line}", end="", file=sys.stderr, flush=True)


def tune(
    spec: CellSpec,
    dtype: torch.dtype,
    device: torch.device,
    seconds: Callable[[Config], float],
    precision: str = "ieee",
    *,
    at_most: float = 300.0,
    say: Callable[[str], None] = _progress,
) -> Config:
    """Measure the candidates, remember the fastest on disk, and use it from now on.

    Args:
        seconds: of one that is run (:func:`.launch.scan_seconds`). Where the device has no room for it, it is left out.
        at_most: seconds after which no other one is begun, the best guess being the first; it may take a minute to
            compile one.
        say: takes a line before each, of what is measured.

    Raises:
        RuntimeError: the device has no room for any.
    """
    from .versions import NO_ROOM

    chip, begun = chip_of(device), perf_counter()
    found, measured = candidates(spec, dtype.itemsize, chip, precision), dict[Config, float]()
    for number, config in enumerate(found, 1):
        spent = perf_counter() - begun
        if spent > at_most and measured:
            break
        say(f"way {number} of {len(found)} to write the kernels, {spent:.0f} of at most {at_most:.0f} s: {config}")
        with suppress(*NO_ROOM):
            measured[config] = seconds(config)
    if not measured:
        raise RuntimeError(f"the device has no room for any of {len(found)} ways to write this cell's kernels")
    best = min(measured, key=measured.__getitem__)
    with replacing(_record(spec, dtype, chip, precision)) as file:
        file.write(json.dumps(asdict(best)).encode())
    _chosen.cache_clear()
    return best


def _record(spec: CellSpec, dtype: torch.dtype, chip: Chip, precision: str) -> Path:
    key = hashlib.sha256(f"{spec} {dtype} {chip} {precision}".encode()).hexdigest()[:16]
    return cache_directory() / f"tuned_{key}.json"


def _read(spec: CellSpec, dtype: torch.dtype, chip: Chip, precision: str) -> Config | None:
    try:
        return Config(**json.loads(_record(spec, dtype, chip, precision).read_text()))
    except (OSError, ValueError, TypeError):  # none, or one of another version
        return None


@cache
def chip_of(device: torch.device) -> Chip:
    """Return the chip of a device; where there is none, in the interpreter, that of an H100."""
    if device.type != "cuda":
        return CHIPS["sm_90"]
    properties: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Chip(properties.gcnArchName.partition(":")[0], properties.shared_memory_per_block, properties.warp_size)
    return Chip(f"sm_{properties.major}{properties.minor}", properties.shared_memory_per_block_optin)
