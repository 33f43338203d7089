"""The Triton executor's kernels as they are compiled, executed on the CPU: the law of errors, races, reads of nothing.

``make ptx`` runs more of the family on both chips (VRNN_FAST_PTX=sweep)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.oracle import Errors, Problem, assert_obeys_the_law
from tests.support.sweep import SWEPT
from vrnn_fast import Std
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import reference, triton
from vrnn_fast.executors.base import Batch, Want

pytest.importorskip("triton", reason="triton is not installed")

from tests.support.ptx.launches import compiled
from tests.support.ptx.report import Report

MOST_WAVEFRONTS = 1.3  # of shared memory, of their least number
DEEP: dict[str, Any] = {"phi_x": (9,), "phi_z": (5,), "encoder": (33, 8), "prior": (7,), "decoder": (6,)}
GAUSSIAN: dict[str, Any] = {
    "likelihood": "gaussian",
    "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5)),
    "output_std": Std(floor=1e-3),
}


@dataclass(frozen=True)
class Case:
    """A training step as compiled: forward and backward."""

    name: str
    spec: CellSpec
    dtype: torch.dtype = torch.bfloat16
    steps: int = 2
    batch: int = 3
    lengths: tuple[int, ...] | None = None
    chip: str = "sm_90"
    options: dict[str, Any] = field(default_factory=dict, hash=False)


def cell(hidden: int = 17, **options: Any) -> CellSpec:
    return CellSpec(**{"input_size": 5, "hidden_size": hidden, "latent_size": 3, **options})


RAGGED = (1, 2, 0) * 6
CASES = [
    Case("gru, several blocks, ragged", cell(initial_state=True, **DEEP), batch=18, lengths=RAGGED,
         options={"resets": True, "mask": True}),
    Case("lstm, two layers, cond, residual", cell(cell="lstm", num_layers=2, cond_size=2, residual=True, **GAUSSIAN),
         torch.float16, chip="sm_80", options={"recompute": True}),
    Case("rnn, float32", cell(cell="rnn", nonlinearity="elu", **DEEP), torch.float32),
    Case("particle filter", cell(measure="particle_filter"), steps=4, batch=8, options={"particles": 4}),
    Case("gru of 64", cell(64), steps=1),
    Case("gru of 100", cell(100), steps=1),
]  # fmt: skip
SWEEP = [
    Case(f"{kind}, {chip}, {dtype}, {name}", cell(cell=kind, **options), dtype, chip=chip)
    for chip in ("sm_80", "sm_90")
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for kind in ("gru", "lstm", "rnn")
    for name, options in {
        "plain": {},
        "deep, gaussian": DEEP | GAUSSIAN,
        "two layers": {"num_layers": 2},
        "residual, cond": {"residual": True, "cond_size": 2, "cond_networks": ("encoder", "prior", "decoder", "cell")},
        "no z": {"latent_size": 0, "phi_z": (), "encoder": (), "prior": None},
        "log weight": {"measure": "log_weight"},
    }.items()
] + [
    Case("gru of 64, float32", cell(64), torch.float32, steps=1),
    Case(
        "rnn, smooth, normalised",
        cell(cell="rnn", nonlinearity="gelu", activation="silu", normalized=tuple(DEEP), **DEEP),
        torch.float32,
    ),
]
if SWEPT:
    CASES = CASES + SWEEP


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiled_kernels_obey_the_law(case: Case) -> None:
    lengths = None if case.lengths is None else list(case.lengths)
    draws = 3 if case.dtype == torch.float32 else 1  # of float32, one draw's error is a few roundings, by chance
    with compiled(case.chip) as seen:
        assert_obeys_the_law(
            *(case.spec, case.steps, case.batch, lengths),
            executor=triton,
            dtype=case.dtype,
            draws=draws,
            **case.options,
        )
    assert seen.scans.keys() == {"forward", "backward"}
    seen.total.assert_clean()
    for way, report in seen.reports:
        assert report.conflicts <= MOST_WAVEFRONTS, (way, report.conflicts, report.worst_lines())


def test_generation_as_compiled() -> None:
    spec = cell()
    problem = Problem.draw(spec, 3, 2)
    noise, state = problem.inputs["eps"].float(), (problem.inputs["state0"].float(),)
    parameters = [problem.inputs[p.name].float() for p in spec.parameters()]
    batch = Batch(torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0)).logit(), noise, state)
    with compiled() as seen:
        x, after = triton.generate(spec, parameters, batch, mean=False)
    right, right_after = reference.generate(spec, parameters, batch, mean=False)
    assert seen.scans.keys() == {"generate"}
    seen.total.assert_clean()
    assert torch.equal(x, right)
    torch.testing.assert_close(after[0], right_after[0])


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


class _InTF32(TorchDispatchMode):
    """Torch's products with their operands rounded to TF32, as on a GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            *first, a, b = args
            args = (*first, rounded(a), rounded(b))
        return function(*args, **(kwargs or {}))


def rounded(t: torch.Tensor) -> torch.Tensor:
    """To ten bits behind the first, to the nearest."""
    return ((t.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


@pytest.mark.parametrize("hidden", [17, 64] if SWEPT else [17])
def test_operands_are_rounded_to_tf32(tf32: None, hidden: int) -> None:
    """Not cut, as tensor cores do by themselves: that is off by three times as much, and always to the same side."""
    spec, steps = cell(hidden, **DEEP if hidden == 17 else {}), 3 if hidden == 17 else 1
    errors = Errors(torch.float32)
    for seed in range(2):
        problem = Problem.draw(spec, steps, 16, seed=seed)
        with compiled() as seen:
            found = problem.run(triton, torch.float32)
        with _InTF32():
            torchs = problem.run(reference, torch.float32)
        seen.total.assert_clean()
        right = problem.run(reference, torch.float64)
        errors.add(found, torchs, right)
        off = (found["z"].double() - right["z"]).norm() / right["z"].norm()
        assert off > 2.0**-16, "it ran in full float32"
    errors.assert_at_most_twice_torchs()


# ---- faults that are planted in a program must be found

SMALL = cell(phi_x=(), decoder=())


def forward(edit: Callable[[str], str]) -> tuple[dict[str, torch.Tensor], Report]:
    """What the forward pass of an edited program gives, and what it was seen to do."""
    inputs = {name: t.bfloat16() for name, t in Problem.draw(SMALL, 3, 3).inputs.items()}
    batch = Batch(inputs["x"], inputs["eps"], (inputs["state0"],))
    with torch.no_grad(), compiled(edit=edit) as seen:
        result = triton.run(SMALL, [inputs[p.name] for p in SMALL.parameters()], batch, Want())
    return {"z": result.z, "kl": result.kl, "state": result.state[0]}, seen.total


def without(text: str, pattern: str, number: int) -> str:
    """The text without one of the places where the pattern is."""
    found = list(re.finditer(pattern, text))[number]
    return text[: found.start()] + text[found.end() :]


def test_a_barrier_that_is_taken_out_is_a_race() -> None:
    _, whole = forward(str)
    whole.assert_clean()
    barriers = r"bar\.sync\s+0;"
    texts: list[str] = []
    forward(lambda text: texts.append(text) or text)
    count = len(re.findall(barriers, texts[0]))
    found = [bool(forward(lambda text, n=n: without(text, barriers, n))[1].races) for n in range(0, count, 4)]
    assert len(found) >= 4
    assert sum(found) > len(found) // 2, "and the others guard nothing that this batch does"


@pytest.mark.parametrize(
    ("there", "instead"),
    [("gpu.acquire", "gpu.relaxed"), ("gpu.acq_rel.add", "gpu.acquire.add")],
    ids=["looked at before", "told too early"],
)
def test_a_phase_that_does_not_wait_for_another_is_a_race(there: str, instead: str) -> None:
    """Of programs that draw numbers: one sees what others wrote because it waits for them, and they have said so."""

    def edited(text: str) -> str:
        assert there in text
        return text.replace(there, instead)

    _, report = forward(edited)
    assert {memory for memory, kind, _ in report.races if kind == "read after a store"} & {"b_h_0", "b_pre"}


def test_a_wrong_lane_map_is_a_wrong_number() -> None:
    """Two operands of one product in each other's place: a fragment of A whose halves are swapped."""
    right, _ = forward(str)
    product = r"(mma\.sync\S+\s*\{[^}]*\},\s*\{\s*)(%r\d+), (%r\d+)"
    wrong, _ = forward(lambda text: re.sub(product, r"\1\3, \2", text))
    assert not torch.allclose(right["state"].float(), wrong["state"].float(), atol=0.05)


def test_a_matrix_that_is_read_across_is_a_wrong_number() -> None:
    right, _ = forward(str)
    wrong, _ = forward(lambda text: text.replace("m8n8.x4.shared", "m8n8.x4.trans.shared"))
    assert not torch.allclose(right["state"].float(), wrong["state"].float(), atol=0.05)
