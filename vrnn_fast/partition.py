"""The one idea: cut the cell in three, so that only what is truly sequential runs step by step.

``before`` depends on x alone and ``after`` on x, z and h_{t-1} once they are known: both are dense passes over all
T*B rows. ``scan`` is the chain h_{t-1} -> posterior -> z -> cell -> h_t, which the prior joins where the posterior's
mean starts from its own. Each part is a list of stages over named buffers; an executor that can run a stage, and its
gradient, runs every cell that can be described.

The first layers of encoder and cell are split by columns. All that they add up, for one time step and one row,
lives side by side in the buffer ``pre``, in an order in which each of the three products writes one contiguous slice::

    GRU   [ n_h | e | r | u | n_x ]      x columns -> e r u n_x     h columns -> n_h e r u     z columns -> r u n_x
    LSTM  [ e | i | f | g | o ]          x columns -> all           h columns -> all           z columns -> i f g o
    RNN   [ e | a ]                      x columns -> all           h columns -> all           z columns -> a

with e the encoder's first layer, r and u the reset and update gates, and the candidate n = tanh(n_x + r * n_h).

A row of the buffers ``h`` and ``c`` belongs to time step t and holds the state that step starts from, h_{t-1}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from .spec import GATES, Activation, Cell, CellSpec, Fused, Layer, Std


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
    """target = activation(target), in place. Its gradient needs only the result."""

    target: Slice
    activation: Activation


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
    the stage before, for an RNN.
    """

    cell: Cell
    gates: Slice
    candidate: Slice | None


@dataclass(frozen=True)
class Divergence:
    """prior std = transform(raw), and KL(posterior || prior) of each row (eq. 5 and the KL of eq. 11)."""

    posterior: Slice
    posterior_std: Slice
    prior: Slice
    prior_std: Slice
    transform: Std


@dataclass(frozen=True)
class Likelihood:
    """-log p(x_t | z_<=t, x_<t) of each row from the decoder's raw output (eq. 6); ``external`` computes nothing."""

    source: Slice
    kind: Fused
    transform: Std


Stage: TypeAlias = Bias | Dense | Activate | Add | Sample | Recur | Divergence | Likelihood


class Keep(IntEnum):
    """Which buffers survive from the forward to the backward launch; the others are computed again.

    Given the states, no stage depends on an earlier time step. What can be had again without the scan always is: for a
    tenth more arithmetic, less than half of the memory.
    """

    NEVER = 0
    STORED = 1  # unless the user asks for recomputation
    ALWAYS = 2


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


class _Draft:
    """Collects buffers and stages while :func:`partition` writes the program down."""

    def __init__(self, spec: CellSpec) -> None:
        self.spec = spec
        self.buffers: dict[str, Buffer] = {}

    def buffer(self, name: str, width: int, keep: Keep = Keep.NEVER) -> Slice:
        self.buffers[name] = Buffer(name, width, keep)
        return Slice(name, 0, width)

    def layer(self, layers: tuple[Layer, ...], source: Slice, target: Slice) -> Dense:
        """The layers side by side, all reading the whole of ``source``."""
        return Dense(source, target, _columns(layers, 0), _biases(layers))

    def rest(
        self,
        layers: tuple[Layer, ...],
        heads: tuple[Layer, ...],
        last: Slice,
        name: str,
        keep: Keep = Keep.NEVER,
    ) -> Iterator[Stage]:
        """Activate ``last``, run the remaining hidden ``layers``, then the ``heads``, if any, into buffer ``name``."""
        yield Activate(last, self.spec.activation)
        for i, layer in enumerate(layers, start=1):
            target = self.buffer(f"{name}.{i}", layer.outputs, keep)
            yield self.layer((layer,), last, target)
            yield Activate(target, self.spec.activation)
            last = target
        if heads:
            yield self.layer(heads, last, self.buffer(name, sum(h.outputs for h in heads), keep))


def _columns(layers: tuple[Layer, ...], column: int) -> tuple[Block, ...]:
    """The weights of the layers, stacked, from input ``column`` on."""
    blocks, at = [], 0
    for layer in layers:
        blocks.append(Block(layer.weight, 0, layer.outputs, column, at))
        at += layer.outputs
    return tuple(blocks)


def _biases(layers: tuple[Layer, ...]) -> tuple[Term, ...]:
    terms, at = [], 0
    for layer in layers:
        terms.append(Term(layer.bias, 0, layer.outputs, at))
        at += layer.outputs
    return tuple(terms)


def _prior(draft: _Draft, h: Slice) -> list[Stage]:
    """The stages that fill the buffer ``prior``, [mean | raw]; with zeros if it is standard normal: std = exp(raw)."""
    network = draft.spec.network("prior")
    layers = network.hidden[:1] or network.heads
    if not layers:
        return [Bias(draft.buffer("prior", 2 * draft.spec.latent_size), ())]
    target = draft.buffer("prior.0" if network.hidden else "prior", sum(layer.outputs for layer in layers))
    stages: list[Stage] = [draft.layer(layers, h, target)]
    if network.hidden:
        stages.extend(draft.rest(network.hidden[1:], network.heads, target, "prior"))
    return stages


def partition(spec: CellSpec) -> Partition:
    """Cut a cell into the stages before, inside and after the scan. Pure: the same spec gives the same program."""
    draft = _Draft(spec)
    hidden, latent = spec.hidden_size, spec.latent_size
    x = draft.buffer("x", spec.input_size)
    draft.buffer("eps", latent)
    h = draft.buffer("h", hidden, Keep.ALWAYS)
    if spec.cell == "lstm":
        draft.buffer("c", hidden, Keep.ALWAYS)

    encoder, decoder = spec.network("encoder"), spec.network("decoder")
    first = encoder.hidden[:1] or encoder.heads
    e = sum(layer.outputs for layer in first)
    gru, gates = spec.cell == "gru", GATES[spec.cell] * hidden
    candidate = hidden if gru else 0
    draft.buffer("pre", candidate + e + gates, Keep.STORED)
    e_slice = Slice("pre", candidate, e)
    gate_slice = Slice("pre", candidate + e, gates)
    n_h = Slice("pre", 0, hidden) if gru else None

    before: list[Stage] = []
    phi_x, phi_x_layers = x, spec.network("phi_x").hidden
    if phi_x_layers:
        phi_x = draft.buffer("phi_x.0", phi_x_layers[0].outputs)
        before.append(draft.layer(phi_x_layers[:1], x, phi_x))
        before.extend(draft.rest(phi_x_layers[1:], (), phi_x, "phi_x"))
        phi_x = Slice(f"phi_x.{len(phi_x_layers) - 1}", 0, phi_x_layers[-1].outputs)
    # b_hn sits inside r * (W_hn h + b_hn); every other bias adds up in one place
    bias_ih, bias_hh = [Term("rnn.bias_ih_l0", 0, gates, e)], [Term("rnn.bias_hh_l0", 0, gates - candidate, e)]
    x_terms = _biases(first) + (tuple(bias_ih + bias_hh) if spec.bias else ())
    x_blocks = (*_columns(first, 0), Block("rnn.weight_ih_l0", 0, gates, 0, e))
    if n_h is not None:
        before.append(Bias(n_h, (Term("rnn.bias_hh_l0", 2 * hidden, hidden, 0),) if spec.bias else ()))
    before.append(Dense(phi_x, Slice("pre", candidate, e + gates), x_blocks, x_terms))

    h_blocks = [Block(b.parameter, b.row, b.rows, spec.phi_x_size, b.at + candidate) for b in _columns(first, 0)] + [
        Block("rnn.weight_hh_l0", 0, gates - candidate, 0, candidate + e)
    ]
    if n_h is not None:
        h_blocks.insert(0, Block("rnn.weight_hh_l0", 2 * hidden, hidden, 0, 0))
    scan: list[Stage] = [Dense(h, Slice("pre", 0, candidate + e + gates - candidate), tuple(h_blocks), None)]
    prior_stages = _prior(draft, h)
    if spec.residual:
        scan.extend(prior_stages)
    posterior = e_slice
    if encoder.hidden:
        scan.extend(draft.rest(encoder.hidden[1:], encoder.heads, e_slice, "posterior", Keep.STORED))
        posterior = Slice("posterior", 0, 2 * latent)
    if spec.residual:
        scan.append(Add(Slice("prior", 0, latent), Slice(posterior.buffer, posterior.start, latent)))
    posterior_std = draft.buffer("posterior_std", latent, Keep.STORED)
    z = draft.buffer("z", latent, Keep.STORED)
    scan.append(Sample(posterior, posterior_std, z, spec.std))
    phi_z, phi_z_layers = z, spec.network("phi_z").hidden
    if phi_z_layers:
        phi_z = draft.buffer("phi_z.0", phi_z_layers[0].outputs)
        scan.append(draft.layer(phi_z_layers[:1], z, phi_z))
        scan.extend(draft.rest(phi_z_layers[1:], (), phi_z, "phi_z"))
        phi_z = Slice(f"phi_z.{len(phi_z_layers) - 1}", 0, phi_z_layers[-1].outputs)
    scan.append(Dense(phi_z, gate_slice, (Block("rnn.weight_ih_l0", 0, gates, spec.phi_x_size, 0),), None))
    if spec.cell == "rnn":
        scan.append(Activate(gate_slice, spec.nonlinearity))
    scan.append(Recur(spec.cell, gate_slice, n_h))

    after: list[Stage] = [] if spec.residual else prior_stages
    transform = Std("log_std", floor=0) if spec.prior is None else spec.std
    prior_std = draft.buffer("prior_std", latent)
    after.append(Divergence(posterior, posterior_std, Slice("prior", 0, 2 * latent), prior_std, transform))
    layers = decoder.hidden[:1] or decoder.heads
    target = draft.buffer("decoder.0" if decoder.hidden else "decoder", sum(layer.outputs for layer in layers))
    after.append(draft.layer(layers, phi_z, target))
    after.append(Dense(h, target, _columns(layers, spec.phi_z_size), None))
    if decoder.hidden:
        after.extend(draft.rest(decoder.hidden[1:], decoder.heads, target, "decoder"))
    after.append(Likelihood(Slice("decoder", 0, spec.output_size), spec.likelihood, spec.output_std))
    return Partition(tuple(draft.buffers.values()), tuple(before), tuple(scan), tuple(after))
