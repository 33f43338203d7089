"""What a program is made of: stages over named buffers.

An executor that can run each of them, and its gradient, runs every cell that partition.py can write down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn, TypeAlias

from .spec import Activation, Cell, Fused, Std


@dataclass(frozen=True)
class Slice:
    """The columns [start, start + width) of a buffer, for every row."""

    buffer: str
    start: int
    width: int


@dataclass(frozen=True)
class Block:
    """``parameter[row : row + rows, column : column + source width]``, filling target columns from ``at`` on."""

    parameter: str
    row: int
    rows: int
    column: int
    at: int


@dataclass(frozen=True)
class Term:
    """``parameter[row : row + rows]``, added to the target columns from ``at`` on."""

    parameter: str
    row: int
    rows: int
    at: int


@dataclass(frozen=True)
class Bias:
    """target = the sum of the terms (zero where there is none), the same for every row."""

    target: Slice
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Dense:
    """target = source @ blocks.T + bias; without bias (``None``), the product is added to what target holds."""

    source: Slice
    target: Slice
    blocks: tuple[Block, ...]
    bias: tuple[Term, ...] | None


@dataclass(frozen=True)
class Activate:
    """target = activation(source): in place where the gradient needs only the result, else from a slice of its own."""

    source: Slice
    target: Slice
    activation: Activation


@dataclass(frozen=True)
class Normalize:
    """target = (source - mean) / sqrt(variance + eps) * scale + shift, by mean and variance of each row's columns.

    The source is kept apart, for the gradient needs it; ``terms`` are [scale | shift].
    """

    source: Slice
    target: Slice
    terms: tuple[Term, ...]
    eps: float


@dataclass(frozen=True)
class Add:
    """target = target + source, in place."""

    source: Slice
    target: Slice


@dataclass(frozen=True)
class Sample:
    """std = transform(raw); z = mean + std * eps, where source holds [mean | raw] (Chung et al., eq. 9)."""

    source: Slice
    std: Slice
    z: Slice
    transform: Std


@dataclass(frozen=True)
class Recur:
    """The cell update (eq. 7): gates become their activations in place, h and c move one step on.

    ``gates`` is [r | u | n_x] with ``candidate`` n_h for a GRU, [i | f | g | o] for an LSTM, and h itself, activated by
    the stage before, for an RNN. ``output`` receives h_t for the layer above.
    """

    cell: Cell
    gates: Slice
    candidate: Slice | None
    h: Slice
    c: Slice | None
    output: Slice | None


@dataclass(frozen=True)
class Divergence:
    """prior std = transform(raw), and KL(posterior || prior) of each row (eq. 5 and the KL of eq. 11).

    With ``z`` the estimate of it that the row's own sample gives, log posterior(z) - log prior(z).
    """

    posterior: Slice
    posterior_std: Slice
    prior: Slice
    prior_std: Slice
    transform: Std
    z: Slice | None


@dataclass(frozen=True)
class Likelihood:
    """-log p(x_t | z_<=t, x_<t) of each row from the decoder's raw output (eq. 6); ``external`` computes nothing."""

    source: Slice
    kind: Fused
    transform: Std


@dataclass(frozen=True)
class Resample:
    """The rows of one sequence exchange the states that they have reached, by their weights since they last did."""


@dataclass(frozen=True)
class Begin:
    """target, a state = the sum of the terms in the rows that begin anew."""

    target: Slice
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Draw:
    """x_t ~ p(x_t | z_<=t, x_<t) from the decoder's raw output and noise (eq. 6), or its mean.

    A Bernoulli x is raw > noise, where noise is logistic; a Gaussian one mean + std * noise.
    """

    source: Slice
    noise: Slice
    x: Slice
    kind: Fused
    transform: Std
    mean: bool


Stage: TypeAlias = (
    Bias | Dense | Activate | Add | Sample | Recur | Divergence | Likelihood | Resample | Draw | Begin | Normalize
)


def forgotten(stage: NoReturn) -> NoReturn:
    """Raise AssertionError for a kind of stage that no case names; that there is none, mypy sees."""
    raise AssertionError(f"no case is of {stage!r}")


class Keep(IntEnum):
    """Which buffers survive from the forward to the backward launch; the others are computed again.

    Given the states, no stage depends on an earlier time step. What can be had again without the scan is, once it would
    be large: for a tenth more arithmetic, less than half of the memory.
    """

    NEVER = 0
    IF_SMALL = 1  # where an executor finds all of them together small
    STORED = 2  # unless the user asks for recomputation
    ALWAYS = 3


@dataclass(frozen=True)
class Buffer:
    """A row-major matrix with one row per real (time step, sequence)."""

    name: str
    width: int
    keep: Keep


@dataclass(frozen=True)
class Partition:
    """The program of a cell: its buffers and the stages of the three parts, in execution order."""

    buffers: tuple[Buffer, ...]
    before: tuple[Stage, ...]
    scan: tuple[Stage, ...]
    after: tuple[Stage, ...]

    @property
    def stages(self) -> Iterator[Stage]:
        yield from self.before
        yield from self.scan
        yield from self.after
