"""A whole batch of sequences, forward and backward, all of it kernels of ours.

Forward: the weights packed, the pass before the scan, the scan, the pass after it. Backward: the weights packed, the
pass before the reverse scan, that scan, the pass back to x, the gradients of all weights, and their sums. Each is a
launch, or all of a direction are one: crew.py.
"""

from __future__ import annotations

import ctypes
import struct
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cell.partition import partition
from ...cell.spec import CellSpec
from ...cell.stages import Keep
from ..base import Batch, Want
from ..call import Gradients, Outputs, Remembered, kept, on, particles
from ..cut import Cut
from ..rows import aligned, allocate
from . import chip, crew, driver, emulator, pack, products, weights
from .cluster import ranks_of
from .driver import Kernel
from .forward import alone, forward
from .kernels import PlannedKernel, fixed, program, together
from .memory import ROWS, Operand, memory
from .passes import OF_STATES
from .plan import TOTALS
from .steps import (
    BACKWARD,
    FORWARD,
    GENERATE,
    RESULTS,
    PlannedLaunch,
    ScanRoom,
    are_cublas,
    backward_steps,
    chosen,
    forward_steps,
    generation_steps,
    missing,
    plans,
)

MOST_BLOCKS = 4  # of a pass on one multiprocessor: 32 warps hide what one waits for
RESERVED = 1024  # bytes of shared memory that the driver takes of each block
launches: Counter[str] = Counter()  # of kernels of ours in this process, by what they do
States = tuple[Sequence[Tensor | None], Sequence[Tensor]]  # before the first step, and where those after the last go
NO_STATES: States = (), ()
_OPERANDS: dict[Operand, torch.dtype] = {
    "f32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}


def operand(dtype: torch.dtype, precision: str) -> Operand:
    """Tell what products read of tensors of a dtype; ``precision`` is that of float32, ``"ieee"`` or ``"tf32"``."""
    if dtype == torch.float32:
        return "tf32" if precision == "tf32" else "f32"
    return "bf16" if dtype == torch.bfloat16 else "f16"


@cache
def announce(reason: str) -> None:
    """Say this as a warning, once."""
    warnings.warn(reason, stacklevel=2)


def too_many(particles: int) -> str:
    """Say that no tile has so many particles."""
    return f"a tile holds all particles of a sequence, at most {ROWS}, and there are {particles}"


class KernelWeights(NamedTuple):
    """A kernel's weights as it reads them: those for shared memory, those in the order of lanes, the biases."""

    shared: Tensor
    streamed: Tensor
    biases: Tensor


class Argument(NamedTuple):
    """A kernel's struct Call: pointers, and the numbers behind them."""

    tensors: list[Tensor | None]
    numbers: tuple[int, ...]

    @property
    def size(self) -> int:
        """Of the struct, in bytes."""
        return 8 * len(self.tensors) + -(-len(self.numbers) // 2) * 8


class Prepared(NamedTuple):
    """A launch that has all it needs: a kernel, its program in C++, blocks, its argument, what is cleared before it; of
    a pass rows of a tile, and microseconds of it by the clock on paper."""

    kernel: Kernel
    body: str
    blocks: int
    argument: Argument
    cleared: tuple[Tensor, ...] = ()
    rows: int = ROWS
    late: float = crew.LATE


class KernelCall:
    """One call: its sizes, its buffers, its precision. Where the cell runs on its own, the noise of its outputs is in
    the place of x, and ``mean`` says whether it feeds back their means or samples."""

    def __init__(
        self,
        spec: CellSpec,
        given: Batch,
        parameters: Sequence[Tensor],
        precision: str,
        mean: bool | None = None,
    ) -> None:
        self.spec, self.given, self.mean = spec, given, mean
        x = given.x
        self.device, self.dtype = x.device, x.dtype
        self.particles = particles(given, self.cut)
        if self.particles > ROWS:
            raise ValueError(too_many(self.particles))
        self.kind, self.most = operand(x.dtype, precision), chip.limit(x.device)
        self.steps, self.batch = x.shape[0], x.shape[1]
        self.ways = chosen(spec, self.kind, chip.room(x.device), self.batch)
        if (lacking := missing(spec, self.kind, chip.room(x.device), self.batch)) is not None:
            announce(f"{x.device} scans in {self.kind} otherwise than a whole chip: {lacking}")
        self.parameters = [aligned(p.detach()) for p in parameters]
        self.lengths = None if given.lengths is None else aligned(given.lengths.to(x.device))
        self.order = None if self.lengths is None else allocate(x, (self.batch,), None, torch.int64)
        self.uniforms = None if given.uniforms is None else aligned(given.uniforms.float())
        self.ancestors = x.new_empty((0, 0, 0), dtype=torch.int64)
        self.value: dict[str, Tensor] = {}
        for name, tensor in (("x" if mean is None else "noise", x), ("eps", given.eps), ("cond", given.cond)):
            if tensor is not None:
                self.value[name] = self.flat(tensor)

    # ---- memory

    def flat(self, tensor: Tensor) -> Tensor:
        """Return (T, B, ...) as (rows, ...)."""
        return aligned(tensor.detach().reshape(self.steps * self.batch, *tensor.shape[2:]))

    def flags(self, tensor: Tensor | None) -> Tensor | None:
        """Turn bool into what kernels read."""
        return None if tensor is None else self.flat(tensor).view(torch.int8)

    @cached_property
    def widths(self) -> dict[str, int]:
        found = {b.name: b.width for b in self.cut.program.buffers}
        return found | {"mean": self.spec.latent_size, "prior_mean": self.spec.latent_size}

    @cached_property
    def cut(self) -> Cut:
        return (forward(self.spec) if self.mean is None else alone(self.spec, mean=self.mean)).cut

    def buffer(self, name: str) -> Tensor:
        """Return the (rows, width) of a value or, with ``d``, of a gradient."""
        if name not in self.value:
            width = self.widths[name.removeprefix("d ")]
            self.value[name] = allocate(self.given.x, (self.steps * self.batch, width))
        return self.value[name]

    def result(self, name: str, width: int, wanted: bool = True) -> Tensor:
        """Return (T, B, width), or nothing of it."""
        if not wanted:
            return self.given.x.new_empty((0, 0, width))
        return self.buffer(name).view(self.steps, self.batch, width)

    # ---- launches

    def pack(self, programs: Sequence[PlannedKernel]) -> tuple[Prepared, list[KernelWeights]]:
        """Lay out what writes every program's weights as its kernel reads them, and the order of a ragged batch."""
        found = pack.packing(self.spec, tuple(p.memory for p in programs))
        operands, biases = _tables(found, self.device)
        to = allocate(self.given.x, (max(1, found.operands.size),), None, _OPERANDS[self.kind])
        biases_to = allocate(self.given.x, (max(1, found.biases.shape[1]),), None, torch.float32)
        tensors = [*self.parameters, operands, biases, to, biases_to, self.lengths, self.order]
        work = max(found.operands.size, found.biases.shape[1], self.batch)
        blocks = max(1, min(-(-work // driver.THREADS), 4 * chip.multiprocessors(self.device)))
        sizes = (found.operands.size, found.biases.shape[1], found.biases.shape[0], self.batch, self.particles)
        packed = [
            KernelWeights(to[a // found.size :], to[b // found.size :], biases_to[c:]) for a, b, c in found.starts
        ]
        return self.fixed("pack", len(self.parameters), blocks, tensors, sizes), packed

    def fixed(
        self,
        name: str,
        pointers: int,
        blocks: int,
        tensors: list[Tensor | None],
        sizes: tuple[int, ...],
        side: int = weights.SIDES[0],
    ) -> Prepared:
        """Lay out a launch of a kernel of csrc/cuda/rows."""
        found = fixed(name, self.kind, self.dtype, pointers, side)
        return Prepared(found.kernel, found.body, blocks, Argument(tensors, (blocks, *sizes)))

    def run(
        self,
        own: PlannedKernel,
        packed: KernelWeights,
        states: States = NO_STATES,
        totals: Mapping[str, Tensor] | None = None,
        upstream: Mapping[str, Tensor] | None = None,
    ) -> Prepared:
        """Lay out a scan over all tiles of the batch, or a pass over those of all rows, by struct Call of
        csrc/cuda/scan/access.h. ``totals`` and ``upstream`` are those of TOTALS, by name."""
        of, none = own.memory.plan, [None]
        gradients = [None if upstream is None else upstream.get(name) for name in TOTALS]
        per_row = [None if totals is None else totals.get(name) for name in TOTALS]
        strides = [s for g in gradients for s in ((0, 0) if g is None else g.stride())]
        blocks = of.ranks * self.tiles
        if of.is_pass:  # which takes its weights along from tile to tile
            side_by_side = max(1, min(MOST_BLOCKS, self.most // (own.kernel.shared + RESERVED)))
            tiles = -(-self.steps * self.batch // (ROWS * of.stacked))
            blocks = min(tiles, side_by_side * chip.multiprocessors(self.device))
        pushed = flags = None
        if own.memory.pushed_bytes:
            pushed = allocate(self.given.x, (self.tiles, own.memory.pushed_bytes), None, torch.uint8)
            flags = allocate(self.given.x, (self.tiles, of.ranks), None, torch.int32)
        ends = [self.lengths, self.order, self.flags(self.given.resets), self.flags(self.given.mask)]
        tensors = [
            *(self.buffer(name) for name in own.buffers),
            *(*none, *states[0], *none, *states[1], *none),
            *(*packed, *per_row, *gradients, *ends, self.uniforms, self.ancestors, pushed, flags),
        ]
        enough = struct.unpack("i", struct.pack("f", self.given.threshold * self.particles))
        sizes = blocks, self.steps, self.batch, *strides, self.particles, *enough
        cleared = () if flags is None else (flags,)
        of_a_tile = ROWS * of.stacked, own.microseconds
        return Prepared(own.kernel, own.body, blocks, Argument(tensors, sizes), cleared, *of_a_tile)

    @property
    def tiles(self) -> int:
        """Of rows, that blocks scan."""
        return -(-self.batch // (ROWS // self.particles * self.particles))

    def launch(self, prepared: Sequence[Prepared]) -> None:
        """Launch all of these one after the other, or as one where that is known to end."""
        index, arguments = chip.gpu(self.device), [each.argument for each in prepared]
        size = crew.COUNTERS + sum(argument.size for argument in arguments)
        scan = next((each.kernel.name for each in prepared if each.kernel.name in crew.SCANS), None)
        cluster = None if scan is None else self.ways.of(scan).cluster
        ranks, blocks, tiles = ranks_of(cluster), chip.at_once(self.device, cluster), 0 if scan is None else self.tiles
        shared = max(each.kernel.shared for each in prepared)
        if not crew.apart(tiles, blocks, chip.cooperates(self.device), size, ranks) and shared <= self.most:
            programs = tuple(crew.JoinedProgram(p.kernel.name, p.body, p.kernel.shared) for p in prepared)
            kernel = together(programs, self.most, cluster)
            if index is None or driver.resident(index, kernel) >= blocks:
                beside = blocks - tiles * ranks
                counters = allocate(self.given.x, (blocks,), None, torch.int32)
                packs = max(1, min(blocks, -(-arguments[0].numbers[1] // crew.PACKED)))
                own: list[Tensor | None] = [counters, counters[beside:]]
                names = [each.kernel.name for each in prepared]
                last = prepared[min(names.index(str(scan)) + 1, len(names) - 1)]  # what comes behind the scan
                looks = crew.looks(self.steps, self.batch / last.rows, beside, last.late)
                first = Argument(own, (blocks, tiles, packs, looks))
                cleared = [counters, *(flags for each in prepared for flags in each.cleared)]
                self._launch(kernel, blocks, [first, *arguments], cleared)
                return
        if index is not None:
            driver.compile_ahead(index, [each.kernel for each in prepared])
        for each in prepared:
            self._launch(each.kernel, each.blocks, [each.argument], each.cleared)

    def _launch(
        self, kernel: Kernel, blocks: int, arguments: Sequence[Argument], cleared: Sequence[Tensor] = ()
    ) -> None:
        """Launch a kernel; what is ``cleared`` is zeros when it begins."""
        launches[kernel.name] += 1
        index = chip.gpu(self.device)
        if index is not None:
            driver.launch(index, kernel, blocks, driver.structs(arguments), cleared)
            return
        for each in cleared:
            ctypes.memset(each.data_ptr(), 0, each.nbytes)
        emulator.launch(kernel.text, *arguments[0], arguments[1:])

    def states(self) -> list[Tensor]:
        return [aligned(s.detach()) for s in self.given.state]

    # ---- forward

    def programs(self, steps: Sequence[PlannedLaunch]) -> list[PlannedKernel]:
        return [program(step, self.kind, self.most, self.dtype) for step in steps]

    def forward(self, keep: Keep | None, want: Want) -> Outputs:
        """Run the batch; ``keep`` is the least of the buffers that a backward pass wants, None where there is none."""
        spec, like, own = self.spec, self.given.x, self.cut
        totals = {
            "kl": self.per_row(own.divergence is not None),
            "nll": self.per_row(own.likelihood.kind != "external"),
        }
        final = [allocate(like, tuple(s.shape)) for s in self.given.state]
        if own.resamples:
            self.ancestors = allocate(
                like, (self.steps, self.batch // self.particles, self.particles), None, torch.int64
            )
        programs = self.programs(forward_steps(spec, keep, want, self.ways))
        with on(self.device):
            first, weights = self.pack(programs)
            found = [first]
            for each, packed in zip(programs, weights, strict=True):
                scan = each.step.name == FORWARD
                found.append(self.run(each, packed, (self.states(), final) if scan else NO_STATES, totals))
            self.launch(found)
        latent, raw = spec.latent_size, own.likelihood.source
        shown = [like.new_empty((self.steps, self.batch, 0)) for _ in range(5)]
        if own.sample is not None and own.divergence is not None:
            shown = [self.result(name, latent) for name in (own.sample.z.buffer, "mean", own.sample.std.buffer)]
            prior = "prior_mean", own.divergence.prior_std.buffer
            shown += [self.result(name, latent, want.prior) for name in prior]
        shown.append(self.result(raw.buffer, raw.width, want.raw))
        saved = [self.buffer(name) for name in kept(partition(spec), keep)]
        return Outputs._make((totals["nll"], totals["kl"], *shown, final, saved, self.ancestors))

    def per_row(self, computed: bool) -> Tensor:
        """Return (T, B), zeros where no kernel writes it."""
        return allocate(self.given.x, (self.steps, self.batch), None if computed else 0.0)

    # ---- backward

    def backward(self, upstream: Mapping[str, Tensor], remembered: Remembered, wanted: set[str]) -> Gradients:
        """Compute the gradients of the batch; see :func:`vrnn_fast.executors.call.backward`."""
        z, std, self.ancestors, saved, keep = remembered
        spec, sample = self.spec, self.cut.sample
        self.value.update(zip(kept(partition(spec), keep), saved, strict=True))
        if sample is not None:
            self.value |= {sample.z.buffer: self.flat(z), sample.std.buffer: self.flat(std)}
        self.value |= {f"u {name}": self.flat(upstream[name]) for name in RESULTS if name in upstream}
        names = frozenset(OF_STATES if name.startswith("state") else name for name in upstream)
        d_state = [allocate(self.given.x, tuple(s.shape)) for s in self.given.state]
        d_final = [None if d is None else aligned(d) for d in (upstream.get(f"state{i}") for i in range(len(d_state)))]
        programs = self.programs(backward_steps(spec, names, frozenset(wanted), keep, self.ways))
        with on(self.device):
            first, packed = self.pack(programs)
            found = [first]
            for each, own in zip(programs, packed, strict=True):
                scan = each.step.name == BACKWARD
                found.append(self.run(each, own, (d_final, d_state) if scan else NO_STATES, upstream=upstream))
            rows = self.steps, self.batch
            if self.lengths is None and are_cublas(spec, names, self.kind, chip.room(self.device), *rows):
                self.launch(found)
                d_parameters = self.weight_gradients_by_cublas(names)
            else:
                more, d_parameters = self.weight_gradients(names)
                self.launch([*found, *more])

        def of(name: str, tensor: Tensor | None) -> Tensor | None:
            if tensor is None or name not in wanted:
                return None
            found = self.value.get(f"d {name}")  # nobody has written one that no gradient reaches
            return allocate(tensor, tuple(tensor.shape), 0.0) if found is None else found.view(tensor.shape)

        sequences = of("x", self.given.x), of("eps", self.given.eps), of("cond", self.given.cond)
        return Gradients(*sequences, d_state, d_parameters)

    def weight_gradients(self, upstream: frozenset[str]) -> tuple[list[Prepared], list[Tensor]]:
        """Lay out shares of products over all rows, and their sums."""
        found = weights.jobs(self.spec, upstream, self.kind)
        jobs, tiles, _, _ = _jobs(found, self.device)
        parts = weights.shares(self.steps * self.batch)
        space = allocate(self.given.x, (parts, found.elements), None, torch.float32)
        grid, launched = len(found.tiles) * parts, []
        if grid:
            tensors = [*(self.buffer(name) for name in found.buffers), space, jobs, tiles, self.lengths]
            sizes = self.steps, self.batch, found.elements, len(found.tiles), parts
            launched.append(self.fixed("weights", len(found.buffers), grid, tensors, sizes, found.side))
        sums, d_parameters = self.sums(found, space)
        return [*launched, sums], d_parameters

    def weight_gradients_by_cublas(self, upstream: frozenset[str]) -> list[Tensor]:
        """Compute products over all rows, as one share, and launch its sums."""
        found = weights.jobs(self.spec, upstream, self.kind)
        space = allocate(self.given.x, (1, found.elements), None, torch.float32)
        products.multiply(found, self.buffer, space[0])
        sums, d_parameters = self.sums(found, space)
        self.launch([sums])
        return d_parameters

    def sums(self, found: weights.Jobs, space: Tensor) -> tuple[Prepared, list[Tensor]]:
        """Lay out what adds up shares (shares, elements) into the gradients of parameters."""
        _, _, blocks, places = _jobs(found, self.device)
        d_parameters = [allocate(self.given.x, tuple(p.shape)) for p in self.parameters]
        tensors: list[Tensor | None] = [*d_parameters, space, blocks, places]
        sizes = found.elements, len(space)
        return self.fixed("sums", len(self.parameters), len(found.places), tensors, sizes), d_parameters

    # ---- a cell that runs on its own

    def generate(self) -> tuple[Tensor, list[Tensor]]:
        """Return x (T, B, X) and the state after it."""
        assert self.mean is not None
        state = [allocate(self.given.x, tuple(s.shape)) for s in self.given.state]
        programs = self.programs(generation_steps(self.spec, self.ways, mean=self.mean))
        with on(self.device):
            first, weights = self.pack(programs)
            found = [first]
            for each, packed in zip(programs, weights, strict=True):
                found.append(
                    self.run(each, packed, (self.states(), state) if each.step.name == GENERATE else NO_STATES)
                )
            self.launch(found)
        return self.result("x", self.spec.input_size), state


@lru_cache(maxsize=256)
def _tables(found: pack.Packing, device: torch.device) -> tuple[Tensor, Tensor]:
    return _on(found.operands, device), _on(found.biases, device)


@lru_cache(maxsize=256)
def _jobs(found: weights.Jobs, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(_on(table, device) for table in (found.jobs, found.tiles, found.blocks, found.places))


def _on(table: NDArray[Any], device: torch.device) -> Tensor:
    index = chip.gpu(device)
    if index is not None:
        driver.refuse_capture(driver.stream(index), "the tables of this cell are")
    return torch.from_numpy(np.ascontiguousarray(table).view(np.int32)).to(device)


def make(spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, reverse: bool) -> KernelCall:
    """Make a call; see :class:`KernelCall`."""
    return KernelCall(spec, batch, parameters, precision)


def generate(
    spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, mean: bool
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own, with noise (T, B, X) in the place of x: x (T, B, X) and the state."""
    return KernelCall(spec, batch, parameters, precision, mean).generate()


def misfit(spec: CellSpec, kind: Operand, room: ScanRoom, mean: bool | None = None) -> str | None:
    """Return None, or why there is no kernel of this cell for these operands on such a chip."""
    most, batches = room.shared, (ROWS * tiles for tiles in range(1, room.multiprocessors + 2))
    ways = {chosen(spec, kind, room, batch) for batch in batches}  # of all batches, the last of which takes turns
    if all(memory(p, kind, most) is not None for way in ways for p in plans(spec, way, mean)):
        return pack.misfit(spec)
    return f"what a block keeps of 16 rows of this cell in {kind} does not fit into {most >> 10} KB of shared memory"


def sources(spec: CellSpec, kind: Operand, room: ScanRoom, batch: int, dtype: torch.dtype) -> list[str]:
    """Return the programs of a training step on the loss alone."""
    external = spec.likelihood == "external"
    losses = frozenset(("kl", "raw") if external else TOTALS)
    ways = chosen(spec, kind, room, batch)
    steps = forward_steps(spec, Keep.STORED, Want(raw=external), ways)
    steps += backward_steps(spec, losses, frozenset(), Keep.STORED, ways)
    return [program(step, kind, room.shared, dtype).kernel.text for step in steps]
