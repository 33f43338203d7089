"""The Triton executor: generated kernels, of the scan and of what is before and after it, forward and backward.

A kernel comes about so: plan.py cuts a program into tiles; emit.py lowers its stages to a flat list of operations on
tiles (operations.py); the passes of order.py say what of it is read, kept and written, where and in which order;
writer.py prints it. scan.py does so for a scan, over_rows.py for all that is not sequential, in as many passes as
passes.py cuts it into (../rows.py where a stage does not fit into one). What is printed calls functions.py and
memory.py. phases.py makes several of them one launch, pack.py and accumulate.py are for weights and their gradients,
launch.py runs it all.
Only kernels.py, functions.py, memory.py and versions.py import triton, at the first call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from ...cell.spec import CellSpec
from ...ops import ops
from .. import operators, reference
from ..base import Batch, SequenceResult, StepResult, Want
from ..reference import step_of_run
from . import launch, phases, tuning

name = "triton"
device = "cuda"
trusted = False
verified = "in triton's interpreter and, as compiled, in one of PTX; not yet on a GPU, where it tries itself first"

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_OLDEST = (3, 6)
_DISTRIBUTIONS = (
    "triton",
    "pytorch-triton-rocm",
    "triton-rocm",
    "pytorch-triton",
    "pytorch-triton-xpu",
    "triton-windows",
)


def unavailable() -> str | None:
    """Return None if triton is there and so is a GPU, or triton's interpreter in its place; else the reason why not."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # a folder of that name in the way has no origin
        return 'triton is not installed (pip install "vrnn-fast[triton]")'
    found = _version()
    if tuple(map(int, found.split(".")[:2])) < _OLDEST:
        return f"it needs triton 3.6 or later, and {found} is installed"
    if not _INTERPRETED and torch.cuda.device_count() == 0:
        return "there is no GPU (TRITON_INTERPRET=1 runs it in triton's interpreter, slowly)"
    return None


def _version() -> str:
    """Return the version of triton, whatever name it was installed by; read it without importing it, if the name is
    known."""
    for distribution in _DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            return version(distribution)
    return str(import_module("triton").__version__)


def refuses(spec: CellSpec, x: Tensor, particles: int = 1) -> str | None:
    """Return None, or why a call with this x cannot run here."""
    if x.device.type != "cuda" and not _INTERPRETED:
        return f"it runs on GPU tensors, and x is on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 or float16, and x is {x.dtype}"
    given = x.dtype.itemsize, x.device, _precision(), None, particles
    return operators.refuses() or spec.constant(spec.key, _misfit, *given)


def launches(spec: CellSpec) -> str:
    """Tell how many launches a batch of sequences takes, in words."""
    chip = tuning.chip_of(torch.device("cpu" if _INTERPRETED else "cuda"))
    kinds = {"16 bits": (2, "ieee"), "TF32": (4, "tf32"), "float32": (4, "ieee")}
    places = ", ".join(
        f"{_weights(spec, size, chip, precision)} in {kind}" for kind, (size, precision) in kinds.items()
    )

    def wide(cell: CellSpec, mean: bool | None = None) -> str:
        found = (kind for kind, (size, precision) in kinds.items() if tuning.misfit(cell, size, chip, precision, mean))
        return " and ".join(found)

    if spec.likelihood == "external":
        alone = "generate and fivo go step by step, for the likelihood is outside of the launch"
    else:
        played, filtered = wide(spec, True), wide(replace(spec, measure="particle_filter"))
        alone = f"generate 1, in {played} step by step" if played else "generate 1"
        alone += f"; every bound as forward, but no fivo in {filtered}" if filtered else "; every bound as forward"
    steps: dict[launch.StepLaunches, list[str]] = {}
    for kind, (size, precision) in kinds.items():
        steps.setdefault(_step(spec, size, chip, precision), []).append(kind)
    told = [step for step in steps if step]
    if not told:
        calls = "the scan is 1 launch forward and 1 backward, all else dense torch operations, whatever T is"
    else:
        calls = f"a training step is, whatever T is, {_named(told[0])}"
        calls += "".join(f" (in {' and '.join(steps[step])} {_named(step)})" for step in told[1:])
        calls += (
            f" (in {' and '.join(steps[()])}: forward, backward, and dense torch operations)" if () in steps else ""
        )
    return f"{calls}; {alone}; {places}"


def _step(spec: CellSpec, itemsize: int, chip: tuning.Chip, precision: str) -> launch.StepLaunches:
    """Return the launches of a training step, none where torch does what is around the scan."""
    for config in tuning.candidates(spec, itemsize, chip, precision)[:1]:
        both = (tuning.around(spec, config, itemsize, precision, chip, reverse=reverse) for reverse in (False, True))
        there, back = both
        if there is not None and back is not None:
            return launch.of_a_step(there, back)
    return ()


def _named(step: launch.StepLaunches) -> str:
    """Name launches, with their phases."""
    named = (f"{way} ({', '.join(phases)})" if phases else way for way, phases in step)
    return f"{len(step)} launches: {', '.join(named)}"


def source(spec: CellSpec, x: Tensor) -> str:
    """Return the kernels of a training step on the loss alone and, where it is one launch, of generation."""
    from . import kernels

    size, precision = x.dtype.itemsize, _precision()
    config = tuning.choose(spec, x.dtype, x.device, precision)
    found = [text for _, text in launch.training_sources(spec, config, x.dtype, precision)]
    if spec.likelihood != "external" and _misfit(spec, size, x.device, precision, False) is None:
        config = tuning.choose(spec, x.dtype, x.device, precision, False)
        packed = config.plan(spec, False)
        weights, scan = kernels.packing(spec, (packed,))[0], kernels.forward(spec, config, size, ("x",), False)
        found += [phases.source(way, (phase,)) for way, phase in (("weights", weights), ("generate", scan))]
    return "\n\n".join(found)


def _weights(spec: CellSpec, itemsize: int, chip: tuning.Chip, precision: str) -> str:
    """Tell where the weights of the scan are while it runs, in words."""
    found = tuning.candidates(spec, itemsize, chip, precision)
    if not found:
        return "no configuration fits"
    cut = found[0].plan(spec)
    loaded = tuning.resident(cut, found[0], itemsize)
    sizes = {m.number: tuning.weight_bytes(cut, m, itemsize) for m in cut.matrices}
    streamed = sum(size for number, size in sizes.items() if number not in loaded)
    if not streamed:
        return "all weights stay on the chip"
    return f"{streamed >> 10} of {sum(sizes.values()) >> 10} KB of weights are read from the L2 cache in every step"


def run(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> SequenceResult:
    """See :class:`vrnn_fast.executors.Executor`. States and sums are float32 in every dtype.

    float32 operands are rounded to TF32 where ``torch.set_float32_matmul_precision`` allows it, and nowhere else.
    """
    return operators.run(name, spec, spec.constant(spec.key, _text), parameters, batch, want, _precision())


def step(spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> StepResult:
    """See :class:`vrnn_fast.executors.Executor`: a sequence of one step."""
    return step_of_run(run, spec, parameters, batch, want)


def generate(
    spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, *, mean: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See :class:`vrnn_fast.executors.Executor`. Where the whole cell does not fit into one kernel, step by step, which
    :func:`launches` tells."""
    eps = batch.eps
    if spec.constant(spec.key, _misfit, eps.dtype.itemsize, eps.device, _precision(), mean) is not None:
        return reference.generate(spec, parameters, batch, mean=mean)
    tensors = eps, batch.x.to(eps.dtype), batch.cond, list(batch.state), list(parameters)
    options = spec.constant(spec.key, _text), _precision(), mean
    x, after = ops.triton_generate(*tensors, *options)
    return x, tuple(after)


def _text(spec: CellSpec) -> str:
    return operators.encode(spec)


def _misfit(
    spec: CellSpec,
    itemsize: int,
    device: torch.device,
    precision: str,
    mean: bool | None = None,
    particles: int = 1,
) -> str | None:
    return tuning.misfit(spec, itemsize, tuning.chip_of(device), precision, mean, particles)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


operators.register(name, launch.make, launch.generate)
