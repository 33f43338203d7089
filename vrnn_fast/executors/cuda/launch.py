"""A whole batch of sequences: dense passes over all rows by torch, and one launch of a kernel for the scan."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...cell.partition import partition
from ...cell.spec import CellSpec
from ..base import Batch
from ..call import Call
from ..cut import cut
from ..rows import aligned, allocate
from . import driver, emulator, plan
from .driver import Kernel
from .forward import alone, forward
from .header import header
from .memory import CHIPS, ROWS, Image, Memory, Operand, image, memory
from .plan import Plan
from .reverse import reverse

OLDEST = 8, 0  # compute capability: what copy_async and mma of bf16 need
launches: Counter[str] = Counter()  # of kernels of ours in this process: "forward", "backward", "generate"
_OPERANDS: dict[Operand, torch.dtype] = {
    "f32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}


def operand(dtype: torch.dtype, precision: str) -> Operand:
    """What products read of tensors of a dtype; ``precision`` is that of float32, ``"ieee"`` or ``"tf32"``."""
    if dtype == torch.float32:
        return "tf32" if precision == "tf32" else "f32"
    return "bf16" if dtype == torch.bfloat16 else "f16"


def gpu(device: torch.device) -> int | None:
    """The number of a GPU; None for a CPU, where the emulator is."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def limit(device: torch.device) -> int:
    """Bytes of shared memory of a block; in the emulator, those of an H100."""
    index = gpu(device)
    return CHIPS["sm_90"] if index is None else driver.chip(index).shared


def too_old(device: torch.device) -> str | None:
    """None, or why kernels do not run on this device whatever the cell is."""
    index = gpu(device)
    found = OLDEST if index is None else driver.chip(index).capability
    if found >= OLDEST:
        return None
    return f"its kernels need compute capability {OLDEST[0]}.{OLDEST[1]}, and {device} has {found[0]}.{found[1]}"


@lru_cache(maxsize=256)
def kernel(way: str, found: Memory, buffers: tuple[str, ...], stored: tuple[str, ...], dtype: torch.dtype) -> Kernel:
    """The kernel of a program that reads and writes these buffers."""
    text = header(found, buffers, stored, str(dtype).partition(".")[2])
    return Kernel(way, text, found.shared)


class Launch(Call):
    """One call: its sizes, its rows, its precision. Where the cell runs on its own, the noise of its outputs is in the
    place of x, and ``mean`` says whether it feeds back their means or samples."""

    def __init__(
        self,
        spec: CellSpec,
        given: Batch,
        parameters: Sequence[Tensor],
        precision: str,
        mean: bool | None = None,
        *,
        reverse: bool = False,
    ) -> None:
        self.operand = operand(given.x.dtype, precision)
        self.limit = limit(given.x.device)
        ahead = forward(spec) if mean is None else alone(spec, mean=mean)
        super().__init__(
            spec, given, parameters, cut(partition(spec)) if reverse else ahead.cut, noise=mean is not None
        )

    def forward_scan(self, stored: tuple[str, ...], final: Sequence[Tensor], ancestors: Tensor) -> None:
        """See :class:`Call`. The kernel leaves the divergence, and the prior's standard deviation with the prior."""
        rows, divergence = self.rows, self.cut.divergence
        if divergence is not None:
            rows.kl = allocate(self.given.x, (rows.count,), 0.0, torch.float32)
            if divergence.prior.buffer in stored:
                stored = (*stored, divergence.prior_std.buffer)
        buffers = {name: rows.buffer(rows.value, name) for name in (*self.cut.given, *stored)}
        start = [aligned(state) for state in self.given.state]
        self.launch("forward", forward(self.spec), buffers, stored, start, final)

    def backward_scan(
        self,
        given: tuple[str, ...],
        d_final: Sequence[Tensor],
        d_start: Sequence[Tensor],
        ancestors: Tensor,
        *,
        on_z: bool,
        on_eps: bool,
    ) -> None:
        """See :class:`Call`."""
        rows, values = self.rows, (*self.cut.values, *(["eps"] if self.cut.sample else []))
        buffers = {name: rows.value[name] for name in values}
        buffers |= {f"d {name}": rows.buffer(rows.gradient, name) for name in given}
        stored = tuple(f"d {name}" for name in (*self.cut.summed, *(["eps"] if on_eps else [])))
        self.launch("backward", reverse(self.spec, on_z=on_z, on_eps=on_eps), buffers, stored, d_final, d_start)

    def launch(
        self,
        way: str,
        program: Plan,
        buffers: Mapping[str, Tensor],
        stored: tuple[str, ...],
        start: Sequence[Tensor],
        last: Sequence[Tensor],
    ) -> None:
        """One launch over all tiles of the batch, by struct Call of csrc/cuda/scan/access.h."""
        launches[way] += 1
        found = memory(program, self.operand, self.limit)
        if found is None:
            raise ValueError(f"no kernel of this cell fits into {self.limit >> 10} KB of shared memory")
        made = kernel(way, found, tuple(buffers), stored, self.given.x.dtype)
        none: list[Tensor | None] = [None]
        resets = self.flags(self.given.resets)
        ends = [*images(self.spec, found, tuple(self.rows.parameters.values())), self.rows.kl, self.lengths, self.order]
        tensors = [*buffers.values(), *none, *start, *none, *last, *none, *ends, resets]
        run(self.given.x.device, made, -(-self.batch // ROWS), tensors, (self.steps, self.batch))


def run(
    device: torch.device, made: Kernel, blocks: int, tensors: Sequence[Tensor | None], numbers: Sequence[int]
) -> None:
    """Launch a kernel on the device of its tensors, which are its arguments' pointers; then come the numbers."""
    index = gpu(device)
    if index is None:
        emulator.launch(made.text, tensors, numbers)
        return
    pointers = [0 if t is None else t.data_ptr() for t in tensors]
    driver.launch(index, made, blocks, struct.pack(f"{len(pointers)}P{len(numbers)}i", *pointers, *numbers))


def make(spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, reverse: bool) -> Launch:
    """A call without or with a reverse scan; see :class:`Launch`."""
    return Launch(spec, batch, parameters, precision, reverse=reverse)


def generate(
    spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, mean: bool
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own in one launch, with noise (T, B, X) in the place of x: x (T, B, X) and the state."""
    call = Launch(spec, batch, parameters, precision, mean)
    cut, rows = call.cut, call.rows
    rows.run(cut.program.before)
    buffers = {name: rows.value[name] for name in cut.given} | {"x": rows.buffer(rows.value, "x")}
    state = [allocate(batch.x, tuple(start.shape)) for start in batch.state]
    start = [aligned(s) for s in batch.state]
    call.launch("generate", alone(spec, mean=mean), buffers, ("x",), start, state)
    return call.result(rows.value["x"]), state


def misfit(spec: CellSpec, kind: Operand, most: int, mean: bool | None = None) -> str | None:
    """None, or why there is no kernel of this cell for these operands and so many bytes of shared memory."""
    reason = plan.misfit(spec)
    if reason is not None:
        return reason
    plans = (forward(spec), reverse(spec, on_z=True, on_eps=True)) if mean is None else (alone(spec, mean=mean),)
    if all(memory(p, kind, most) is not None for p in plans):
        return None
    return f"what a block keeps of 16 rows of this cell in {kind} does not fit into {most >> 10} KB of shared memory"


def images(spec: CellSpec, found: Memory, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights as shared memory holds them, those in the order of lanes, and biases in float32."""
    like = parameters[0]
    flat = torch.cat([*(p.detach().reshape(-1) for p in parameters), like.new_zeros(1)])
    index = _indices(image(spec, found), like.device)

    def operands(places: Tensor) -> Tensor:
        chosen = flat[places].to(_OPERANDS[found.kind])
        if found.kind == "tf32":  # the hardware cuts off what it does not read; to the nearest is half as wrong
            chosen = ((chosen.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        return aligned(chosen)

    shared, streamed, biases = index
    return operands(shared), operands(streamed), aligned(flat[biases].float().sum(0))


@lru_cache(maxsize=64)
def _indices(found: Image, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.from_numpy(i).to(device) for i in (found.shared, found.streamed, found.biases))  # type: ignore[return-value]
