"""The torch operators of the CPU executor: loading them, and calling them.

``vrnn_fast::forward`` runs a whole batch of sequences, ``vrnn_fast::backward`` its gradient: one launch each,
whatever T is. ``vrnn_fast::step`` runs one time step on weights that ``vrnn_fast::pack`` has laid out beforehand.
csrc/torch/operators.cpp has their schemas.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import SymInt, Tensor

from ...cell.encode import Program
from ...ops import LIBRARY, ops
from ..base import PER_STEP, Batch, Want
from . import fakes, gradients
from .gradients import apply, below_autograd, overload
from .schema import ForwardResult


@cache
def load() -> str | None:
    """Load the operators, once. Return None on success, else why there are none."""
    if not LIBRARY.exists():
        return _unbuilt(LIBRARY)
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the extension does not load: {error}"
    fakes.register()
    gradients.register()
    return None


def _unbuilt(library: Path) -> str:
    """Tell why there is no ``library``, and what to do. Python imports a checkout that it was started in before
    anything that is installed."""
    source = f"the extension is not built in {library.parent}, the folder that was imported"
    for folder in sys.path:
        built = Path(folder, library.parent.name, library.name)
        if built != library and built.exists():
            return f"{source}; {built.parent} holds a built one: start Python in another folder than {Path.cwd()}"
    return (
        f"{source} (pip install --no-build-isolation -e . builds it there, for which it needs a C++17 compiler; after "
        "an install without -e, start Python in another folder than the checkout)"
    )


def launch_counts() -> dict[str, int]:
    """Tell how often each build of the fused CPU kernels was launched in this process, counted at the launch itself.

    Keys such as ``"cpu.avx2.forward"``, for forward, backward, step and generate; empty if the extension is not loaded.
    """
    if not hasattr(ops, "launch_counts"):
        return {}
    names = [
        f"cpu.{isa}.{kind}"
        for isa in ("baseline", "avx2", "avx512")
        for kind in ("forward", "backward", "step", "generate")
    ]
    return dict(zip(names, ops.launch_counts(), strict=False))


def release_memory() -> int:
    """Give back the memory of the last large training call, which the next one would use again. Return its bytes, at
    most 512 MiB; 0 if the extension is not loaded."""
    return int(ops.release_memory()) if hasattr(ops, "release_memory") else 0


def chosen_isa() -> str:
    """Return the instruction set that the next CPU launch uses.

    Raises:
        RuntimeError: VRNN_FAST_ISA names one that this machine cannot run.
    """
    return str(ops.chosen_isa())


SLACK = 64  # elements: kernels read whole vectors, so the last row needs some room behind it
SMALL = 512 << 20  # bytes of all that backward reads, up to which nothing is computed again


def forward(
    program: Program,
    number: Number | None,
    batch: Batch,
    parameters: Sequence[Tensor],
    packed: Packed | None,
    want: Want,
) -> ForwardResult:
    """Run a batch of sequences.

    The program's ``number`` is not for traced code, ``packed`` weights not where gradients are wanted.
    """
    wants_grad = packed is None and wanted(*batch.differentiable, *parameters)
    saved: int | SymInt = 0
    if wants_grad:
        rows = batch.x.shape[0] * batch.x.shape[1]
        saved = rows * _kept(program, want, rows, batch.x.element_size()) + SLACK
    code = (program.code, program.constants) if number is None else ([number], [])
    options = (*code, saved, want.recompute, want.prior, want.raw, batch.threshold)
    sequences, state = batch.sequences, batch.state
    if torch.compiler.is_compiling():
        return ForwardResult(*ops.forward(*sequences, list(state), list(parameters), None, *options))
    if not wants_grad:
        weights = ([], packed.weights) if packed is not None else (list(parameters), None)
        return ForwardResult(*below_autograd("forward", *sequences, list(state), *weights, *options))
    flat = apply(*sequences, len(state), options, *state, *parameters)
    per_step, final, last = flat[: len(PER_STEP)], flat[len(PER_STEP) : -2], flat[-2:]
    return ForwardResult._make((*per_step, list(final), *last))


def _kept(program: Program, want: Want, rows: int | SymInt, element_size: int) -> int:
    """Count the elements that forward keeps for backward per row. Of a number of rows that is traced, the answer for
    many, or what is compiled would be for few alone."""
    if want.recompute:
        return program.saved_recompute
    small = isinstance(rows, int) and rows * program.saved_small * element_size <= SMALL
    return program.saved_small if small else program.saved


def generate(
    program: Program,
    number: Number | None,
    batch: Batch,
    parameters: Sequence[Tensor],
    packed: Packed | None,
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own, without gradients, by the noise in the place of x: x (T, B, X) and the state after
    it."""
    sequences = (batch.eps, batch.x, batch.cond, list(batch.state))
    results: tuple[Tensor, list[Tensor]]
    code = (program.code, program.constants) if number is None else ([number], [])
    if torch.compiler.is_compiling():
        results = ops.generate(*sequences, list(parameters), None, *code)
    else:
        weights = ([], packed.weights) if packed is not None else (list(parameters), None)
        results = below_autograd("generate", *sequences, *weights, *code)
    return results


def wanted(*tensors: Tensor | None) -> bool:
    """Tell whether a call that reads these tensors has to keep what their gradients need."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class Number(int):
    """The number of a program in this process: the operators keep the program as long as this object lives."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)  # a copy keeps nothing

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():
            ops.release_program(int(self))


def number_of(program: Program, parameters: int) -> Number:
    """Return the number of a program of so many parameters."""
    return Number(ops.hold_program(program.code, program.constants, parameters))


class Packed:
    """The weights of a cell in one tensor, laid out for the build of the kernels that was chosen then.

    Attributes:
        weights: for :func:`forward` and :func:`step`.
        number: of the program they belong to.

    Raises:
        RuntimeError: as :func:`chosen_isa`.
    """

    def __init__(self, number: Number, parameters: Sequence[Tensor]) -> None:
        parameters = list(parameters)
        self.number = number
        self._watch = int(below_autograd("watch", parameters))
        weakref.finalize(self, ops.unwatch.default, self._watch).atexit = False
        self.weights: Tensor = below_autograd("pack", parameters, number)

    def is_current(self, thorough: bool) -> bool:
        """Tell whether the parameters still hold the same values, by a few of each or, if ``thorough``, by all. It sees
        changes that torch does not count."""
        unchanged: bool = overload("unchanged")(self._watch, thorough)
        return unchanged


def step(packed: Packed, batch: Batch, want_raw: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Run one time step without gradients: x (B, X), noise eps (B, Z), state (1, B, H) each.

    Returns:
        nll (B,) and kl (B,); raw and predicted (B, output), the decoder's raw output for the posterior's sample
        (without elements where not wanted) and at the prior's mean; the state after this step, as it came.
    """
    results: tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]
    results = below_autograd("step", packed.weights, packed.number, batch.x, batch.eps, batch.state, want_raw)
    return results
