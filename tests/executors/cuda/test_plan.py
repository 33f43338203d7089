"""The CUDA executor's plans: units, order, barriers, tiers and weights, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch

from bench import cycles as clock
from tests.support.family import DEEP, FAMILY
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Slice
from vrnn_fast.executors.cuda import steps, weights
from vrnn_fast.executors.cuda.crew import looks
from vrnn_fast.executors.cuda.cycles import paper_step
from vrnn_fast.executors.cuda.forward import alone, forward
from vrnn_fast.executors.cuda.memory import (
    CHIPS,
    FILTER,
    ROW_PADDING,
    ROWS,
    Memory,
    Operand,
    by_lanes,
    columns,
    image,
    in_pairs,
    memory,
    operand_bytes,
    row_bytes,
    shared_weight_bytes,
)
from vrnn_fast.executors.cuda.plan import EXCHANGES, STACKS, UPDATES, WARPS, KernelPlan
from vrnn_fast.executors.cuda.reverse import reverse

KINDS: tuple[Operand, ...] = ("f32", "tf32", "bf16", "f16")
H100 = CHIPS["sm_90"]


def square(width: int, **options: Any) -> CellSpec:
    """A GRU cell with one hidden layer as wide as the state in every network, and 16 latent variables."""
    nets = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (width,))
    return CellSpec(28, width, 16, **{**nets, **options})


def family() -> Iterator[CellSpec]:
    for options, kind in product(FAMILY.values(), ("gru", "lstm", "rnn")):
        sizes = {"input_size": 5, "hidden_size": 19, "latent_size": 3, "cell": kind}
        yield CellSpec(**{**sizes, **DEEP, **options})
    for options in ({"prior": None}, {"measure": "log_weight"}, {"phi_z": (), "encoder": (), "prior": ()}):
        yield CellSpec(5, 19, 3, **{**DEEP, **options})
    for kind in ("gru", "lstm", "rnn"):
        yield CellSpec(5, 19, 3, kind, num_layers=2, measure="particle_filter", **DEEP)


def plans(spec: CellSpec) -> Iterator[KernelPlan]:
    yield forward(spec)
    yield from (reverse(spec, on_z=on, on_eps=on) for on in (False, True))
    yield from (alone(spec, mean=mean) for mean in (False, True) if spec.likelihood != "external")
    for stacked in STACKS:
        yield from (plan for plan in steps.plans(spec, steps.all_by(None, stacked)) if plan.is_pass)


def test_the_family_is_large() -> None:
    assert sum(1 for spec in family() for _ in plans(spec)) > 200


@pytest.mark.parametrize("way", [0, 1], ids=["forward", "backward"])
def test_a_gru_step_has_four_barriers(way: int) -> None:
    """h to the encoder's layer, to z, to phi_z, to h; what is beside this chain waits for no barrier of its own."""
    plan = (forward(square(64)), reverse(square(64), on_z=True, on_eps=False))[way]
    assert sum(v.barrier for v in plan.visits) == 4


def test_off_the_chain_work_fills_idle_warps() -> None:
    """The state's own products run where two of eight warps have the posterior; and the prior, of a particle filter."""
    plan = forward(square(64))
    kinds = [(plan.units[v.unit].kind, plan.units[v.unit].sums[0].buffer, v.barrier) for v in plan.visits]
    assert kinds == [
        ("layer", "pre", True),
        ("sample", "posterior", True),
        ("gru", "pre", False),
        ("layer", "phi_z.0", True),
        ("gru", "pre", True),
    ]
    plan = forward(square(64, measure="particle_filter"))
    kinds = [(plan.units[v.unit].kind, plan.units[v.unit].sums[0].buffer, v.barrier) for v in plan.visits]
    assert ("layer", "prior.0", False) in kinds
    assert ("divergence", "prior", False) in kinds


def test_every_product_is_made_once_between_beginning_and_end() -> None:
    for spec in family():
        for plan in plans(spec):
            for u, unit in enumerate(plan.units):
                visits = [v for v in plan.visits if v.unit == u]
                assert sorted(map(repr, (p for v in visits for p in v.products))) == sorted(map(repr, unit.products))
                assert [v.begins for v in visits] == [i == 0 for i in range(len(visits))]
                assert [v.finishes for v in visits] == [i == len(visits) - 1 for i in range(len(visits))]


def test_barriers_stand_between_what_warps_hand_to_each_other() -> None:
    """Checked without the accesses that order.py lists: by who made what, over two steps."""
    for spec in family():
        for plan in plans(spec):
            phase, written, read = 0, dict[Slice, int](), dict[Slice, int]()
            operands, states = set(plan.operands), {u.others[0] for u in plan.units if u.kind in (*UPDATES, "take")}
            written |= {state: 0 for state in states if state is not None}  # before the loop, and a barrier
            phase = 1
            for visit in (*plan.visits, *plan.visits):
                unit, phase = plan.units[visit.unit], phase + visit.barrier
                for p in visit.products:
                    assert written[p.source] < phase, f"{p.source} is read too early in {spec}"
                    read[p.source] = phase
                if visit.finishes:
                    for part in operands & set(unit.writes):
                        assert read.get(part, -1) < phase, f"{part} is overwritten too early in {spec}"
                        written[part] = phase


def test_no_state_is_read_after_its_update() -> None:
    """A step reads h_{t-1}, wherever its readers stand."""
    cells = [*family(), CellSpec(1, 1, 1, phi_z=(2,), phi_x=(), encoder=(), prior=(), decoder=())]
    for spec in cells:
        for plan in plans(spec):
            updated: set[Slice | None] = set()
            for visit in plan.visits:
                unit = plan.units[visit.unit]
                assert not updated & {p.source for p in visit.products}, f"{unit} of {spec}"
                if visit.finishes and unit.kind in (*UPDATES, "take"):
                    updated.add(unit.others[0])


def test_what_is_held_is_there_before_it_is_read() -> None:
    """By the same lanes, or behind a barrier; what rows give back, from the step before."""
    checked = 0
    for spec in family():
        for plan in plans(spec):
            order = {v.unit: i for i, v in enumerate(plan.visits) if v.finishes}
            for u, unit in enumerate(plan.units):
                for part in unit.holds:
                    maker = next(m for m, other in enumerate(plan.units) if part in other.writes)
                    between = plan.visits[order[maker] + 1 : order[u] + 1]
                    if unit.kind == "give_back":
                        between = (*plan.visits[order[maker] + 1 :], *plan.visits[: order[u] + 1])
                    assert between
                    by_the_same = plan.first_warp[maker] == plan.first_warp[u] and unit.kind not in EXCHANGES
                    assert by_the_same or any(v.barrier for v in between)
                    checked += 1
    assert checked > 100


# ---- memory


TIERS = {  # of the 10 products of a forward scan, those with weights in shared memory and in registers
    (32, "sm_80"): (10, 0),
    (64, "sm_80"): (10, 0),
    (96, "sm_80"): (10, 0),
    (64, "sm_90"): (10, 0),
    (96, "sm_90"): (10, 0),
    (128, "sm_90"): (7, 3),
    (256, "sm_90"): (4, 0),
}


@pytest.mark.parametrize(("size", "chip"), TIERS)
def test_tiers(size: int, chip: str) -> None:
    found = memory(forward(square(size)), "bf16", CHIPS[chip])
    assert found is not None
    places = list(found.place.values())
    assert len(places) == 10
    assert (places.count("shared"), places.count("registers")) == TIERS[size, chip]


def test_what_no_state_waits_for_is_streamed_first() -> None:
    plan = forward(square(256, measure="particle_filter"))
    found = memory(plan, "bf16", H100)
    assert found is not None
    streamed = {p.target.buffer for p, place in found.place.items() if place == "memory"}
    assert "prior.0" in streamed
    assert next(p for p, place in found.place.items() if place == "shared").target.buffer != "prior"


def test_nothing_fits_into_nothing() -> None:
    assert memory(forward(square(2048)), "f32", CHIPS["sm_80"]) is None


def regions(found: Memory) -> Iterator[tuple[int, int]]:
    """All that lies in shared memory, as beginnings and ends; of 32 rows, of each 16."""
    yield from _of_all(found)
    for first in range(0, found.plan.stacked * found.stacked_bytes, max(1, found.stacked_bytes)):
        yield from ((first + start, first + end) for start, end in _of_rows(found))


def _of_all(found: Memory) -> Iterator[tuple[int, int]]:
    kind = found.kind
    for p, at in found.weights.items():
        if found.place[p] == "shared":
            yield at, at + shared_weight_bytes(found.plan, p, kind)
    yield from (
        (found.shared_biases + 4 * at, found.shared_biases + 4 * (at + columns(part, kind)))
        for part, at in found.bias.items()
    )


def _of_rows(found: Memory) -> Iterator[tuple[int, int]]:
    kind = found.kind
    yield from ((at, at + ROWS * (row_bytes(part, kind) + ROW_PADDING)) for part, at in found.operand.items())
    yield from ((at, at + ROWS * columns(part, kind) * 4) for part, at in found.held.items())
    yield from ((at, at + ROWS * row_bytes(part, kind)) for part, at in found.ahead.items())
    for unit in found.plan.units:
        if unit.kind == "total" and unit.total is not None:
            at = found.totals[unit.total]
            yield at, at + 4 * ROWS * columns(unit.sums[0], kind) // 8
    if found.filter >= 0:
        yield found.filter, found.filter + FILTER


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_overlaps_and_all_is_aligned(kind: Operand) -> None:
    specs = [*family(), square(64), square(128), square(256)]
    for found in (memory(plan, kind, H100) for spec in specs for plan in plans(spec)):
        assert found is not None
        own = sorted(regions(found))
        assert all(start % 16 == 0 for start, _ in own)
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
        assert own[-1][1] <= found.shared <= H100


def test_no_pair_reaches_into_what_the_same_kernel_writes() -> None:
    """A copy of the last column of an odd part would read the next one while its warp writes it."""
    odd = 0
    for spec in family():
        for plan in plans(spec):
            found = memory(plan, "f32", H100)
            assert found is not None
            written = {(p.buffer, p.start + i) for unit in plan.units for p in unit.writes for i in range(p.width)}
            for part in found.ahead:
                if part.width % 2 and in_pairs(plan, part):
                    assert (part.buffer, part.start + part.width) not in written
                odd += part.width % 2
    assert odd > 100


def test_the_clock_on_paper_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    clock.main([])
    told = capsys.readouterr().out
    assert "| 64 | bf16 | sm_90 | forward | 248 |" in told
    assert "| 64 | bf16 | sm_90 | before, backward |" in told
    full = memory(forward(square(8)), "f32", H100)
    assert full is not None
    with pytest.raises(ValueError, match="products of full float32 are not those of tensor cores"):
        paper_step(full)


def lanes_of_ldmatrix(rows: Any, size: int) -> Any:
    """(32, 4, elements of a register): what ldmatrix gives to lanes of 8 rows of 64 bytes, by the PTX manual."""
    per = 4 // size
    return np.array(
        [
            [rows[lane // 4, (i * 4 + lane % 4) * per : (i * 4 + lane % 4 + 1) * per] for i in range(4)]
            for lane in range(32)
        ]
    )


@pytest.mark.parametrize("kind", ["tf32", "bf16"])
def test_streamed_weights_are_what_ldmatrix_would_load(kind: Operand) -> None:
    size, depth = operand_bytes(kind), 3 * 32 // operand_bytes(kind)
    full = 1 + np.arange(16 * depth).reshape(16, depth)
    found = by_lanes(full, kind, 0).reshape(2, 2, 32, 4, -1)  # tiles, chunks, lanes, registers, elements
    padded = np.pad(full, ((0, 0), (0, 32 // size)))
    for tile, chunk in product(range(2), range(2)):
        rows = padded[8 * tile : 8 * tile + 8, chunk * 64 // size : (chunk + 1) * 64 // size]
        np.testing.assert_array_equal(found[tile, chunk], lanes_of_ldmatrix(rows, size))


def test_weights_are_where_kernels_look_for_them() -> None:
    """Each product's block of the stacked weights, from two parameters and with padding."""
    spec = CellSpec(5, 19, 3, **DEEP)
    shapes = {p.name: p.shape for p in spec.parameters()}
    flat = np.arange(1, 1 + sum(int(np.prod(s)) for s in shapes.values()))
    starts = dict(zip(shapes, np.cumsum([0, *(np.prod(s) for s in shapes.values())]), strict=False))
    weight = {n: flat[starts[n] : starts[n] + np.prod(s)].reshape(s) for n, s in shapes.items()}
    for plan in (forward(spec), reverse(spec, on_z=True, on_eps=True)):
        found = memory(plan, "bf16", H100)
        assert found is not None
        values = np.append(flat, 0)[image(spec, found).shared]
        checked = 0
        for p, at in found.weights.items():
            rows, stride = columns(p.target, "bf16"), columns(p.source, "bf16") + ROW_PADDING // 2
            own = values[at // 2 : at // 2 + rows * stride].reshape(rows, stride)
            block = np.zeros((p.target.width, p.source.width), int)
            whole = np.concatenate(
                [
                    weight[b.parameter][b.row : b.row + b.rows, b.column : b.column + p.stage.source.width]
                    for b in p.stage.blocks
                ]
            )
            target, source = (p.source, p.target) if p.transposed else (p.target, p.source)
            row, column = target.start - p.stage.target.start, source.start - p.stage.source.start
            block = whole[row : row + target.width, column : column + source.width]
            block = block.T if p.transposed else block
            np.testing.assert_array_equal(own[: p.target.width, : p.source.width], block)
            assert own.sum() == block.sum(), "padding is zero"
            checked += 1
        assert checked > 8


def test_a_bias_is_the_sum_of_its_terms() -> None:
    spec = CellSpec(5, 19, 3, **{**DEEP, "num_layers": 2})
    plan = forward(spec)
    found = memory(plan, "f32", H100)
    assert found is not None
    torch.manual_seed(0)
    named = {p.name: torch.randn(p.shape) for p in spec.parameters()}
    flat = torch.cat([*(t.flatten() for t in named.values()), torch.zeros(1)])
    floats = flat[torch.from_numpy(image(spec, found).biases)].sum(0)
    assert found.bias
    for part, at in found.bias.items():
        stage = plan.biases[part]
        whole = torch.zeros(stage.target.width)
        for t in stage.bias or ():
            whole[t.at : t.at + t.rows] += named[t.parameter][t.row : t.row + t.rows]
        start = part.start - stage.target.start
        torch.testing.assert_close(floats[at : at + part.width], whole[start : start + part.width])


def test_registers_hold_as_many_words_as_the_kernel_indexes() -> None:
    found = memory(forward(square(128)), "bf16", H100)
    assert found is not None
    rounds, chunks = 128 // 8 // WARPS, 128 * 2 // 64
    assert found.resident_words == 3 * rounds * chunks
    assert sorted(found.resident.values()) == [0, rounds * chunks, 2 * rounds * chunks]


def test_a_plan_belongs_to_a_structure() -> None:
    assert forward(square(8)) is forward(replace(square(8)))


# ---- tables of weight gradients


@pytest.mark.parametrize("upstream", [("nll", "kl"), ("state",)])
def test_every_element_of_a_parameter_has_one_gradient(upstream: tuple[str, ...]) -> None:
    for spec in family():
        found = weights.jobs(spec, frozenset(upstream), "bf16")
        counts = [np.zeros(p.shape, np.int64) for p in spec.parameters()]
        for number, at, stride, rows, width, first in found.blocks.tolist():
            places = at + np.arange(rows)[:, None] * stride + np.arange(width)
            np.add.at(counts[number].reshape(-1), places.ravel(), 1)
            assert first == -1 or 0 <= first <= found.elements - rows * width
        assert all((count == 1).all() for count in counts)
        covered = {(b, i) for b, i in found.places.tolist()}
        threads = weights.THREADS
        assert covered == {
            (b, i) for b, (_, _, _, r, c, _) in enumerate(found.blocks.tolist()) for i in range(-(-r * c // threads))
        }


def test_shares_depend_on_the_number_of_rows_alone() -> None:
    assert [weights.shares(rows) for rows in (1, 512, 513, 5120, 10**6)] == [1, 1, 2, 10, weights.MOST_SHARES]


def test_a_longer_scan_looks_at_others_less_often() -> None:
    assert looks(28, 8, 124, 1.5) == 8
    assert looks(256, 8, 124, 1.5) == 64
    assert looks(256, 1, 131, 1.5) == 64
    assert looks(28, 66, 66, 1.5) == 4
    assert looks(256, 4, 64, 13.5) == 16
