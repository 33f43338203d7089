"""The CUDA executor: kernels written by hand, folded over a cell's stages. Nothing of it has run on a GPU yet.

Read csrc/cuda/device/device.h (what a kernel may know of the machine) and csrc/cuda/scan/program.h (the words of a
program); then plan.py (units), forward.py, reverse.py and passes.py (those of a cell), order.py (a step), memory.py
(tiers), cluster.py and exchange.py (several blocks to a tile), header.py (all of it as C++), weights.py and pack.py
(tables), crew.py (one launch), kernels.py and launch.py; nvrtc.py and driver.py for a GPU, build.py and emulator.py for
a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from ...cell.spec import CellSpec
from ...ops import ops
from .. import operators, reference
from ..base import Batch, SequenceResult, StepResult, Want
from ..reference import step_of_run
from . import build, chip, cluster, crew, launch, nvrtc
from .driver import DriverError
from .forward import forward
from .memory import ROWS, Operand, memory
from .plan import TOTALS
from .steps import WORDS, are_cublas, chosen, generation_steps, missing, training

name = "cuda"
verified = "in an emulator and, as compiled, in an interpreter of PTX; not yet on a GPU, where it tries itself first"

KINDS: tuple[Operand, ...] = ("bf16", "f16", "tf32", "f32")

BATCHES = tuple(ROWS << i for i in range(11))  # of which explain() says whose weight gradients are

emulated = os.environ.get("VRNN_FAST_CUDA") == "emulate"
device = "cpu" if emulated else "cuda"
trusted = emulated


def unavailable() -> str | None:
    """Return None if there is one of NVIDIA's GPUs and a compiler for it, or the emulator was asked for and can be
    built; else the reason why not."""
    if emulated:
        return build.unavailable()
    if torch.version.hip:
        return "it is made for NVIDIA's GPUs"
    if torch.cuda.device_count() == 0:
        return "there is no GPU (VRNN_FAST_CUDA=emulate runs its kernels on CPU tensors, slowly)"
    return nvrtc.unavailable()


def refuses(spec: CellSpec, x: Tensor, particles: int = 1) -> str | None:
    """Return None, or why a call with this x cannot run here."""
    if x.device.type != device:
        runs = "its emulator runs on CPU" if emulated else "it runs on GPU"
        return f"{runs} tensors, and x is on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 or float16, and x is {x.dtype}"
    if particles > ROWS:
        return launch.too_many(particles)
    return operators.refuses() or spec.constant(spec.key, _misfit, x.dtype, x.device, _precision())


def launches(spec: CellSpec) -> str:
    """List the launches of a training step, and say where its weights are."""
    steps = training(spec)
    counted = "; ".join(f"{i}. {name}: {WORDS[name]}" for i, name in enumerate(steps, 1))
    where = torch.device(device)
    apart = crew.apart(1, chip.multiprocessors(where), chip.cooperates(where), 0)
    how = f"a training step is {len(steps)} launches, whatever T is, for {apart}"
    alone = 1 + len(generation_steps(spec, mean=False))
    if apart is None:
        how, alone = f"a training step is 2 launches, one each way, whatever T is, {_together(spec, where)}", 1
        how = f"{how}; else it is {len(steps)}"
    places = ", ".join(f"{_weights(spec, kind)} in {kind}" for kind in KINDS)
    if spec.likelihood == "external":
        outside, others = "; the likelihood is torch's", "generate and fivo step by step"
    else:
        filtered = f"fivo of up to {ROWS} particles, the likelihood then inside the scan"
        outside, others = "", f"generate {alone}; every bound as forward, {filtered}"
    multiplied = _multiplied(spec, where)
    but = " but weight gradients of large batches, by cuBLAS" if "cuBLAS" in multiplied else ""
    return (
        f"{how}: {counted}. torch copies what is not contiguous, and "
        f"computes nothing{but}{outside}; {others}; {multiplied}; {_taken(spec, where)}; "
        f"weights of the forward scan: {places}{_not_clustered(spec, where)}"
    )


def _together(spec: CellSpec, where: torch.device) -> str:
    """Say by whom and of which batches a training step is one launch each way."""
    most = {kind: chip.rows_together(spec, kind, where) for kind in KINDS}
    found = (
        f"{rows} rows in {', '.join(kind for kind in KINDS if most[kind] == rows)}"
        for rows in sorted({*most.values()} - {0}, reverse=True)
    )
    ways = {own.through for kind in KINDS for own in chosen(spec, kind, chip.room(where)).clusters if own is not None}
    words = {"peers": ", or clusters of them,", "memory": ", or several to a tile that meet in memory,"}
    by = "blocks" + "".join(text for way, text in words.items() if way in ways).replace(",,", ",")
    return f"by {by} that scan and workers, of up to {' and '.join(found) or 'no rows'}"


def _multiplied(spec: CellSpec, where: torch.device) -> str:
    """Say of which batches cuBLAS multiplies weight gradients."""
    losses = frozenset(TOTALS if spec.likelihood != "external" else ("kl", "raw"))
    room, steps, least = chip.room(where), 64, dict[Operand, int]()
    for kind, rows in product(KINDS, reversed(BATCHES)):
        if are_cublas(spec, losses, kind, room, steps, rows):
            least[kind] = rows
    ours = "weight gradients are multiplied by kernels of ours"
    if not least:
        return ours
    theirs = "those of a batch without padding by cuBLAS, behind the launch of backward and with a launch of sums"
    return f"{ours}; {theirs}, of {steps} steps from {_by_rows(least)}"


def _taken(spec: CellSpec, where: torch.device) -> str:
    """Say of which batches a step of a pass takes 32 rows."""
    room, least = chip.room(where), dict[Operand, int]()
    for kind, rows in product(KINDS, reversed(BATCHES)):
        if any(way.stacked > 1 for way in chosen(spec, kind, room, rows)):
            least[kind] = rows
    more = f", and {2 * ROWS} from about {_by_rows(least)}" if least else ""
    return f"passes take {ROWS} rows at a time{more}"


def _by_rows(least: Mapping[Operand, int]) -> str:
    """Say from how many rows on something is so, by operands."""
    return " and ".join(
        f"{rows} rows on in {', '.join(kind for kind in least if least[kind] == rows)}"
        for rows in sorted({*least.values()})
    )


def _clustered(spec: CellSpec, where: torch.device) -> bool:
    """Tell whether clusters scan a few rows of a cell, in some operands."""
    return any(any(chosen(spec, kind, chip.room(where)).clusters) for kind in KINDS)


def _not_clustered(spec: CellSpec, where: torch.device) -> str:
    """Say which scans are not by the clusters that the others have, or would have, and why."""
    room = chip.room(where)
    reasons = ((kind, missing(spec, kind, room)) for kind in KINDS)
    found = [f"in {kind} {reason}" for kind, reason in reasons if reason is not None]
    plain = replace(spec, measure="kl")
    if (reason := cluster.refuses(plain)) is not None and _clustered(replace(plain, normalized=()), where):
        found.append(f"single blocks scan, as {reason}")
    elif spec.likelihood != "external" and _clustered(plain, where):
        reason = cluster.refuses(replace(spec, measure="particle_filter"))
        found.append(f"single blocks scan for fivo, as {reason}")
    return "".join(f"; {text}" for text in found)


def _weights(spec: CellSpec, kind: Operand) -> str:
    """Say where the weights of a forward scan are while it runs."""
    room = chip.room(torch.device(device))
    if launch.misfit(spec, kind, room) is not None:
        return "no kernel"
    own = chosen(spec, kind, room).forward.cluster
    found = memory(forward(spec, own), kind, room.shared)
    assert found is not None
    places = list(found.place.values())
    words = {"shared": "in shared memory", "registers": "in registers", "memory": "from the second-level cache"}
    counted = (f"{places.count(place)} of {len(places)} weights {where}" for place, where in words.items())  # type: ignore[arg-type]
    meet = "of a cluster" if own is None or own.through == "peers" else "that meet in memory"
    by = "" if own is None else f" of each of {own.ranks} blocks {meet}"
    return " and ".join(text for text in counted if not text.startswith("0 ")) + by


def source(spec: CellSpec, x: Tensor) -> str:
    """Return the programs of a training step on the loss alone; csrc/cuda/scan/kernel.h is what folds over them."""
    kind = launch.operand(x.dtype, _precision())
    return "\n".join(launch.sources(spec, kind, chip.room(x.device), x.shape[1], x.dtype))


def run(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> SequenceResult:
    """See :class:`vrnn_fast.executors.Executor`. States and sums are float32 in every dtype.

    float32 operands are rounded to TF32 where ``torch.set_float32_matmul_precision`` allows it, and nowhere else.
    """
    return operators.run(name, spec, spec.constant(spec.key, _encoded), parameters, batch, want, _precision())


def step(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> StepResult:
    """See :class:`vrnn_fast.executors.Executor`: a sequence of one step."""
    return step_of_run(run, spec, parameters, batch, want)


def generate(
    spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, *, mean: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See :class:`vrnn_fast.executors.Executor`. Where the whole cell does not fit into one kernel, step by step."""
    eps = batch.eps
    if spec.constant(spec.key, _misfit, eps.dtype, eps.device, _precision(), mean) is not None:
        return reference.generate(spec, parameters, batch, mean=mean)
    tensors = eps, batch.x.to(eps.dtype), batch.cond, list(batch.state), list(parameters)
    options = spec.constant(spec.key, _encoded), _precision(), mean
    x, after = ops.cuda_generate(*tensors, *options)
    return x, tuple(after)


def _encoded(spec: CellSpec) -> str:
    return operators.encode(spec)


def _misfit(
    spec: CellSpec, dtype: torch.dtype, where: torch.device, precision: str, mean: bool | None = None
) -> str | None:
    try:
        old = chip.too_old(where)
        return old or launch.misfit(spec, launch.operand(dtype, precision), chip.room(where), mean)
    except DriverError as error:
        return str(error)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


operators.register(name, launch.make, launch.generate)
