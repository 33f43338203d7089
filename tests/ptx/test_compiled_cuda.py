"""The CUDA executor's kernels as NVRTC compiles them, executed on the CPU: the inline assembly, with lane maps that are
nobody's of this package. ``make ptx`` has more cells (VRNN_FAST_PTX=sweep)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch

from bench.cuda_resources import spec_of
from tests.executors.cuda.cells import FILTER, GRU, LSTM, NORMALISED, cell
from tests.support.family import FAMILY
from tests.support.oracle import Problem, assert_obeys_the_law
from tests.support.ptx import nvrtc
from tests.support.ptx.cycles import between
from tests.support.ptx.report import Report
from tests.support.sweep import SWEPT
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors import cuda, reference
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.cuda import chip, emulator, launch
from vrnn_fast.executors.cuda import nvrtc as compiler
from vrnn_fast.executors.cuda.cluster import Cluster
from vrnn_fast.executors.cuda.cycles import FACTOR, paper_step
from vrnn_fast.executors.cuda.memory import CHIPS, ROWS, memory
from vrnn_fast.executors.cuda.passes import OF_STATES
from vrnn_fast.executors.cuda.plan import STACKS
from vrnn_fast.executors.cuda.steps import all_by, backward_steps, forward_steps, training

pytestmark = pytest.mark.skipif(
    compiler.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)"
)


IN_MEMORY = Cluster(2, alike=False, through="memory")


@dataclass(frozen=True)
class Case:
    name: str
    spec: CellSpec
    dtype: torch.dtype = torch.bfloat16
    batch: int = 5
    chip: str = "sm_90"
    stacked: int = 1
    options: dict[str, Any] = field(default_factory=dict, hash=False)


CASES = [
    Case("gru in bfloat16, ragged", GRU, options={"lengths": [3, 1, 0, 2, 3]}),
    Case("gru in bfloat16, ragged, 32 rows at a time", GRU, batch=18, stacked=2, options={"lengths": [3, 1, 0] * 6}),
    Case("lstm of two layers in float16", LSTM, torch.float16, chip="sm_80"),
    Case("rnn without a latent variable", cell(cell="rnn", **FAMILY["no z, the rest"]), torch.float32),
    Case("normalised", NORMALISED, chip="sm_80"),
    Case("weights of the sample", cell(measure="log_weight", prior=None, cell="rnn", nonlinearity="identity")),
    Case("particles", FILTER, torch.float32, batch=20, options={"particles": 4}),
    Case("gru of 64", cell(hidden_size=64), chip="sm_80"),
]
if SWEPT:
    CASES += [
        Case("gru in float32, several blocks", GRU, torch.float32, batch=18, options={"resets": True, "mask": True}),
        Case(
            "all at once",
            cell(**FAMILY["all at once"], initial_state=True),
            torch.float32,
            options={"resets": True, "recompute": True},
        ),
        Case(
            "smooth activations", cell(**FAMILY["smooth activations"], cell="rnn", nonlinearity="gelu"), torch.float32
        ),
        Case("lstm of 100 in float16", cell(cell="lstm", hidden_size=100), torch.float16),
    ]


@pytest.fixture(autouse=True, scope="module")
def launches_apart() -> Iterator[None]:
    """One block alone has no workers beside it; so each launch has a report."""
    with mock.patch.multiple(chip, EMULATED_MULTIPROCESSORS=1):
        yield


def assert_clean(report: Report) -> None:
    """No race, and no read of what nobody wrote, but of tiles that lanes have to themselves: a lane loads its four
    values at once, of which those of a row that is not there, or does not run in this step, were never fetched. Shared
    memory begins as NaN, so that results would tell if it used one of them."""
    assert not report.races
    assert not report.overlaps
    others = [(name, line) for name, line in report.unwritten if "ld.shared.v4" not in line]
    assert not others


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiled_kernels_obey_the_law(case: Case) -> None:
    ways = mock.patch.object(launch, "chosen", return_value=all_by(None, case.stacked))
    with ways, nvrtc.executed(case.chip) as reports:
        assert_obeys_the_law(case.spec, 3, case.batch, executor=cuda, dtype=case.dtype, draws=1, **case.options)
    again = ("before", "again") if case.options.get("recompute") else ()
    assert len(reports) == len((*training(case.spec), *again))
    for report in reports:
        assert_clean(report)
        assert report.conflicts <= 1.3, report.worst_lines()


def by(cluster: Cluster) -> Any:
    """All scans by this cluster."""
    return mock.patch.object(launch, "chosen", return_value=all_by(cluster))


def test_compiled_clusters_obey_the_law() -> None:
    """Blocks that store into each other's shared memory."""
    with by(Cluster(2)), nvrtc.executed() as reports:
        assert_obeys_the_law(GRU, 3, 5, [3, 1, 0, 2, 3], executor=cuda, dtype=torch.bfloat16, draws=1)
    assert sum(report.issued["mapa"] > 0 for report in reports) == 2
    for report in reports:
        assert_clean(report)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_compiled_blocks_that_meet_in_memory_obey_the_law(target: str) -> None:
    """Of plain stores, released and acquired, on a chip without clusters and on one with them."""
    with by(IN_MEMORY), nvrtc.executed(target) as reports:
        assert_obeys_the_law(GRU, 3, 5, [3, 1, 0, 2, 3], executor=cuda, dtype=torch.bfloat16, draws=1)
    assert not any(report.issued["mapa"] for report in reports)
    for report in reports:
        assert_clean(report)


def test_one_buffer_of_an_exchange_is_a_race() -> None:
    """A peer stores h where this block may still multiply by it."""

    def planted(text: str, *rest: Any) -> None:
        execute(re.sub(r"(exchange|operand)_buffers = 2;", r"\1_buffers = 1;", text), *rest)

    inputs = {name: t.bfloat16() for name, t in Problem.draw(GRU, 3, 5).inputs.items()}
    batch = Batch(inputs["x"], inputs["eps"], (inputs["state0"],))
    with by(Cluster(2)), torch.no_grad(), nvrtc.executed() as reports:
        execute = emulator.launch
        with mock.patch.object(emulator, "launch", planted):
            cuda.run(GRU, [inputs[p.name] for p in GRU.parameters()], batch, Want())
    assert next(report for report in reports if report.issued["mapa"]).races


@pytest.mark.parametrize(("order", "without"), [("ld.acquire", "ld.relaxed"), ("st.release", "st.relaxed")])
def test_a_flag_that_orders_nothing_is_a_race(order: str, without: str) -> None:
    """Of ranks that meet in memory: whoever sees it may not see what was stored before it."""
    with by(IN_MEMORY):
        _, report = forward(lambda text: text.replace(f"{order}.gpu", f"{without}.gpu"))
    assert report.races


@pytest.mark.parametrize("stacked", STACKS if SWEPT else STACKS[:1])
def test_one_launch_each_way_as_compiled(stacked: int) -> None:
    """Blocks by turns: one that scans, and two that work beside it."""
    ways = mock.patch.object(launch, "chosen", return_value=all_by(None, stacked))
    with ways, mock.patch.multiple(chip, EMULATED_MULTIPROCESSORS=3), nvrtc.executed() as reports:
        found = Problem.draw(GRU, 3, 5, [3, 1, 0, 2, 3]).run(cuda, torch.bfloat16)
    assert len(reports) == 2
    right = Problem.draw(GRU, 3, 5, [3, 1, 0, 2, 3]).run(cuda, torch.bfloat16)
    for name, t in found.items():
        torch.testing.assert_close(t, right[name], rtol=0.02, atol=0.02, msg=name)
    for report in reports:
        assert_clean(report)


@pytest.mark.parametrize("own", [Cluster(2, alike=False), IN_MEMORY], ids=lambda own: own.through)
def test_one_launch_each_way_by_a_cluster_as_compiled(own: Cluster) -> None:
    """Two blocks that scan a tile, and two that work beside them, in clusters or not."""
    problem = Problem.draw(GRU, 3, 5, [3, 1, 0, 2, 3])
    with by(own), mock.patch.multiple(chip, EMULATED_MULTIPROCESSORS=4):
        with nvrtc.executed() as reports:
            found = problem.run(cuda, torch.bfloat16)
        right = problem.run(cuda, torch.bfloat16)
    assert len(reports) == 2
    for name, t in found.items():
        torch.testing.assert_close(t, right[name], rtol=0.02, atol=0.02, msg=name)
    for report in reports:
        assert bool(report.issued["mapa"]) == (own.through == "peers")
        assert_clean(report)


def test_generation_as_compiled() -> None:
    problem = Problem.draw(GRU, 3, 2)
    eps, state = problem.inputs["eps"].float(), (problem.inputs["state0"].float(),)
    noise = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0)).logit()
    parameters = [problem.inputs[p.name].float() for p in GRU.parameters()]
    batch = Batch(noise, eps, state)
    with nvrtc.executed() as reports:
        x, after = cuda.generate(GRU, parameters, batch, mean=False)
    right, right_after = reference.generate(GRU, parameters, batch, mean=False)
    assert len(reports) == 3
    for report in reports:
        assert_clean(report)
    assert torch.equal(x, right)
    torch.testing.assert_close(after[0], right_after[0])


def forward(edit: Any = str) -> tuple[torch.Tensor, Report]:
    """h of the last step, from an edited program, and what that was seen to do."""
    inputs = {name: t.bfloat16() for name, t in Problem.draw(GRU, 3, 5).inputs.items()}
    batch = Batch(inputs["x"], inputs["eps"], (inputs["state0"],))
    with torch.no_grad(), nvrtc.executed(edit=edit) as reports:
        result = cuda.run(GRU, [inputs[p.name] for p in GRU.parameters()], batch, Want())
    return result.state[0].float(), reports[2]  # behind the weights packed, and the pass before the scan


def test_each_barrier_that_is_taken_out_is_a_race() -> None:
    texts: list[str] = []
    right, _ = forward(lambda text: texts.append(text) or text)
    scan = texts[2]
    barriers = list(re.finditer(r"bar\.sync[^;]*;", scan))
    assert len(barriers) >= 3
    unnoticed = []
    for barrier in barriers:
        without = scan[: barrier.start()] + scan[barrier.end() :]
        found, report = forward(lambda text, edited=without: edited if text == scan else text)
        if not report.races and torch.equal(found, right):
            unnoticed.append(barrier[0])
    assert not unnoticed


@pytest.mark.parametrize("stacked", STACKS)
def test_the_clock_on_paper_counts_what_is_executed(stacked: int) -> None:
    """Of scans, and of passes that take 16 rows at a time or 32: products and barriers to the last one, wavefronts of
    shared memory and instructions by what the clock says of itself."""
    spec, ways, found = spec_of(32), all_by(None, stacked), []
    problem = [Problem.draw(spec, count, ROWS * stacked) for count in (1, 2)]
    whole = mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", 1), mock.patch.object(launch, "MOST_BLOCKS", 1)
    with whole[0], whole[1], mock.patch.object(launch, "chosen", return_value=ways):
        for own in problem:
            with nvrtc.executed() as reports:
                own.run(cuda, torch.bfloat16)
            found.append(dict(zip(training(spec), reports, strict=True)))
    upstream = frozenset(OF_STATES if name.startswith("final") else name for name in problem[0].upstream)
    there = forward_steps(spec, Keep.STORED, Want(prior=True, raw=True), ways)
    back = backward_steps(spec, upstream, frozenset(("x", "eps")), Keep.STORED, ways)
    for step in (*there, *back):
        if step.plan.stacked < stacked:
            continue  # a scan, by a block for each 16 rows
        laid = memory(step.plan, "bf16", CHIPS["sm_90"])
        assert laid is not None
        paper, seen = paper_step(laid, step.stored).total, between(*(reports[step.name] for reports in found)).work
        assert (paper.mma, paper.barriers) == (seen.mma, seen.barriers)
        for name in ("wavefronts", "instructions"):
            ratio = getattr(paper, name) / getattr(seen, name)
            assert 1 / FACTOR < ratio < FACTOR, f"{name} of {step.name}: {ratio}"


def test_a_wrong_lane_map_is_a_wrong_number() -> None:
    right, _ = forward()
    product = r"(mma\.sync\S+\s*\{[^}]*\},\s*\{\s*)(%r\d+), (%r\d+)"
    wrong, _ = forward(lambda text: re.sub(product, r"\1\3, \2", text))
    assert not torch.allclose(right, wrong, atol=0.05)
