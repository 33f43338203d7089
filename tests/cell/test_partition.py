"""A cell cut into stages: every parameter is used once, and nothing is read before it was written."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, get_args

import pytest
import torch

from vrnn_fast.cell.partition import generation, partition
from vrnn_fast.cell.spec import ACTIVATIONS, INSTEAD, SOURCES, CellSpec
from vrnn_fast.cell.stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Dense,
    Divergence,
    Draw,
    Keep,
    Likelihood,
    Normalize,
    Partition,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
)

READERS = ("encoder", "prior", "decoder", "phi_z", "cell")


def drawn(seed: int) -> CellSpec:
    """A cell of random structure."""
    chance = Random(seed)

    def widths(*depths: int) -> tuple[int, ...]:
        return tuple(chance.choice((3, 5, 16)) for _ in range(chance.choice(depths)))

    latent, cell = chance.choice((0, 1, 4)), chance.choice(("gru", "lstm", "rnn"))
    options: dict[str, Any] = {
        "cell": cell,
        "num_layers": chance.choice((1, 1, 2, 3)),
        "bias": chance.random() < 0.7,
        "phi_x": widths(0, 1, 2),
        "decoder": widths(0, 1, 2),
        "head_layers": widths(0, 0, 1),
        "packed_heads": chance.random() < 0.3,
        "activation": chance.choice(ACTIVATIONS),
        "measure": chance.choice(("kl", "log_weight", "particle_filter")),
    }
    if latent:
        options |= {"phi_z": widths(0, 1), "encoder": widths(0, 1, 2), "prior": chance.choice((None, widths(0, 1, 2)))}
        options["residual"] = options["prior"] is not None and chance.random() < 0.4
    if chance.random() < 0.5:
        readers = [name for name in READERS if latent or name in ("decoder", "cell")]
        options |= {"cond_size": 2, "cond_networks": tuple(chance.sample(readers, chance.randint(1, len(readers))))}
        options["cond_networks"] += ("cell",) * ("cell" not in options["cond_networks"])
    if chance.random() < 0.5:
        options |= {"likelihood": "gaussian", "decoder_heads": (("dec_mean", 6), ("dec_std.0", 6))}
    options["initial_state"] = chance.random() < 0.2
    options["normalized"] = tuple(n for n in ("phi_x", "phi_z", "encoder", "prior", "decoder") if chance.random() < 0.2)
    if cell == "rnn":
        options["nonlinearity"] = chance.choice(ACTIVATIONS)
    spec = CellSpec(6, chance.choice((3, 8)), latent, **options)
    orders = []
    for name in SOURCES:
        sources = list(spec.inputs(name))
        if name in INSTEAD and latent and chance.random() < 0.3:
            left_out, instead = INSTEAD[name]
            sources = [source for source in (instead if s == left_out else s for s in sources) if source]
        if sources and len(SOURCES[name]) > 1 and chance.random() < 0.3:
            orders.append((name, tuple(chance.sample(sources, len(sources)))))
    return CellSpec(6, spec.hidden_size, latent, **options, input_order=tuple(orders))


SPECS = [drawn(seed) for seed in range(150)]


def programs(spec: CellSpec) -> Iterator[Partition]:
    yield partition(spec)
    if spec.measure == "kl":
        yield generation(spec, mean=False)


def columns(*parts: Slice | None) -> set[tuple[str, int]]:
    return {(p.buffer, c) for p in parts if p is not None for c in range(p.start, p.start + p.width)}


def flow(stage: Stage) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """What a stage reads and writes, column by column."""
    match stage:
        case Bias(target):
            return set(), columns(target)
        case Dense(source, target):
            return columns(source) | (columns(target) if stage.bias is None else set()), columns(target)
        case Activate(source, target) | Normalize(source, target):
            return columns(source), columns(target)
        case Add(source, target):
            return columns(source, target), columns(target)
        case Sample():
            return columns(stage.source, Slice("eps", 0, stage.z.width)), columns(stage.std, stage.z)
        case Recur():
            state = columns(stage.gates, stage.candidate, stage.c, stage.h if stage.cell == "gru" else None)
            return state, columns(stage.output)
        case Divergence():
            return columns(stage.posterior, stage.posterior_std, stage.prior, stage.z), columns(stage.prior_std)
        case Likelihood():
            return columns(stage.source), set()
        case Begin(target):
            return columns(target), columns(target)
        case Draw():
            return columns(stage.source, stage.noise), columns(stage.x)
        case Resample():
            return set(), set()


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_nothing_is_read_before_it_is_written(spec: CellSpec) -> None:
    for program in programs(spec):
        drawn_x = any(isinstance(stage, Draw) for stage in program.stages)
        there = {
            (b.name, c)
            for b in program.buffers
            if b.name in ("eps", "cond", "noise") or b.name[:2] in ("h.", "c.") or (b.name == "x" and not drawn_x)
            for c in range(b.width)
        }
        every = {(b.name, c) for b in program.buffers for c in range(b.width)}
        for stage in program.stages:
            reads, writes = flow(stage)
            assert reads <= there, stage
            assert writes <= every, stage
            there |= writes
        assert there == every, "a buffer has columns that nobody writes"


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_every_element_of_a_parameter_is_used_once(spec: CellSpec) -> None:
    for program in programs(spec):
        uses = {p.name: torch.zeros(p.shape, dtype=torch.long) for p in spec.parameters()}
        for stage in program.stages:
            if isinstance(stage, Dense):
                for b in stage.blocks:
                    uses[b.parameter][b.row : b.row + b.rows, b.column : b.column + stage.source.width] += 1
                    assert stage.target.width >= b.at + b.rows
            if isinstance(stage, (Begin, Bias, Dense, Normalize)):
                for term in (stage.terms if isinstance(stage, (Begin, Bias, Normalize)) else stage.bias) or ():
                    uses[term.parameter][term.row : term.row + term.rows] += 1
        unused: tuple[str, ...] = ()
        if any(isinstance(stage, Draw) for stage in program.stages):
            unused = ("enc", "initial") if "phi_x" in spec.inputs("cell") else ("enc", "initial", "phi_x")
        for name, count in uses.items():
            assert (count == (0 if name.startswith(unused or "-") else 1)).all(), name


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_the_scan_holds_what_hangs_on_the_state_alone(spec: CellSpec) -> None:
    """A stage is in the scan if, and only if, what it writes leads to a later state, or it resamples. What stands
    before reads nothing of the scan."""
    program = partition(spec)
    made = {key for stage in program.scan for key in flow(stage)[1]} | {
        (b.name, c) for b in program.buffers if b.name[:2] in ("h.", "c.") for c in range(b.width)
    }
    sums = {key for stage in program.scan if isinstance(stage, Dense) and stage.bias is None for key in flow(stage)[1]}
    for stage in program.before:
        assert not flow(stage)[0] & (made - sums), stage
    needed: set[tuple[str, int]] = set()
    if spec.measure == "particle_filter":
        return  # there everything is weighed inside
    for stage in reversed(program.scan):
        reads, writes = flow(stage)
        whole = spec.residual and all(buffer.startswith("prior") for buffer, _ in writes)  # a network is not divided
        assert isinstance(stage, Recur) or writes & needed or whole, stage
        needed |= reads


def test_a_partition_is_pure_and_keeps_little() -> None:
    for spec in SPECS:
        assert partition(spec) == partition(spec)
        kept = {b.name for b in partition(spec).buffers if b.keep == Keep.ALWAYS}
        assert all(f"h.{layer}" in kept for layer in range(spec.num_layers))


def test_random_cells_are_of_many_kinds() -> None:
    kinds = {type(stage) for spec in SPECS for program in programs(spec) for stage in program.stages}
    assert kinds == set(get_args(Stage))
    assert sum(bool(spec.cond_size) for spec in SPECS) > 30
    assert sum(spec.residual for spec in SPECS) > 10
    assert sum(bool(spec.input_order) for spec in SPECS) > 30
