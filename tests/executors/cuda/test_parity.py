"""The CUDA executor against the oracle: the real operators and the real kernel source, in the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.executors.cuda.cells import FILTER, GAUSSIAN, GRU, LSTM, cell
from tests.support.family import FAMILY
from tests.support.oracle import (
    Errors,
    Problem,
    assert_nan_where_torch_has,
    assert_nobody_gets_a_gradient_unasked,
    assert_obeys_the_law,
)
from tests.support.poisoned import poisoned_memory
from vrnn_fast import VRNN, executors
from vrnn_fast.agreement import allowed
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors import backends, cuda, operators, reference, select
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.call import Remembered
from vrnn_fast.executors.cuda import build, chip, emulator, launch, weights
from vrnn_fast.executors.cuda.emulator import Schedule
from vrnn_fast.executors.cuda.steps import training

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")

SCHEDULES = [
    Schedule(late=False),
    Schedule("ahead", 0),
    Schedule("behind", 0),
    Schedule("ahead", 7),
    Schedule("random"),
]
RAGGED = [3, 1, 0, 2, 3]
CASES: dict[str, tuple[CellSpec, torch.dtype, dict[str, Any]]] = {
    "gru": (GRU, torch.float32, {"lengths": RAGGED, "resets": True, "mask": True}),
    "gru in bfloat16": (GRU, torch.bfloat16, {"lengths": RAGGED}),
    "lstm of two layers in float16": (LSTM, torch.float16, {"resets": True}),
    "rnn without a latent variable": (cell(cell="rnn", **FAMILY["no z, the rest"]), torch.float32, {"lengths": RAGGED}),
    "all at once": (
        cell(**FAMILY["all at once"], initial_state=True),
        torch.float32,
        {"resets": True, "recompute": True},
    ),
    "smooth activations": (
        cell(**FAMILY["smooth activations"], cell="rnn", nonlinearity="silu", num_layers=2),
        torch.float32,
        {"lengths": RAGGED, "recompute": True},
    ),
    "normalised": (cell(**FAMILY["normalised"], cell="lstm"), torch.float32, {"lengths": RAGGED, "recompute": True}),
    "some normalised": (cell(**FAMILY["some normalised"], initial_state=True), torch.bfloat16, {"resets": True}),
    "state-space": (cell(**FAMILY["state-space"], measure="log_weight"), torch.float32, {"lengths": RAGGED}),
    "a likelihood outside of the launch": (
        cell(likelihood="external", decoder_heads=(("dec_a", 20), ("dec_b", 7)), decoder=()),
        torch.float32,
        {"lengths": RAGGED},
    ),
    "weights of the sample": (
        cell(measure="log_weight", prior=None, cell="rnn", nonlinearity="identity"),
        torch.float32,
        {},
    ),
}


@contextmanager
def scheduled(schedule: Schedule) -> Iterator[None]:
    with mock.patch.object(emulator, "schedule", schedule):
        yield


@pytest.mark.parametrize("case", CASES)
def test_the_law_of_errors(case: str) -> None:
    spec, dtype, options = CASES[case]
    options = {"lengths": None, **options}
    assert_obeys_the_law(spec, 3, 5, executor=cuda, dtype=dtype, draws=6, **options)


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 17), (2, 33), (17, 1)])
def test_odd_sizes_of_a_batch(steps: int, batch: int) -> None:
    """One kernel runs them all: T and B are not compiled in."""
    assert_obeys_the_law(GRU, steps, batch, executor=cuda, dtype=torch.float32, draws=3)


def test_a_second_run_is_equal_to_the_last_bit() -> None:
    """Under every schedule, whether copies land at once or as late as they may."""
    problem = Problem.draw(GRU, 4, 19, resets=True)
    first = problem.run(cuda, torch.float32)
    for schedule in SCHEDULES:
        with scheduled(schedule):
            again = problem.run(cuda, torch.float32)
        for name, t in first.items():
            assert torch.equal(again[name], t), f"{name} under {schedule}"


def test_rows_know_nothing_of_each_other() -> None:
    """NaN in one sequence leaves the others as they are, to the last bit."""
    problem = Problem.draw(GRU, 3, 20)
    clean = problem.run(cuda, torch.float32)
    problem.inputs["x"][1, 4] = float("nan")
    problem.inputs["state0"][17] = float("nan")
    dirty = problem.run(cuda, torch.float32)
    others = [b for b in range(20) if b not in (4, 17)]
    for name in ("z", "mean", "kl", "nll", "raw"):
        assert torch.equal(dirty[name][:, others], clean[name][:, others]), name
        assert dirty[name][1:, 4].isnan().any()
    assert torch.equal(dirty["final0"][others], clean["final0"][others])


def test_what_no_gradient_reaches_has_one_of_zero() -> None:
    """A condition that the prior alone sees, in a loss without a divergence."""
    problem = Problem.draw(cell(cond_size=2, cond_networks=("prior",)), 2, 3)
    problem.upstream = {"nll": problem.upstream["nll"]}
    with poisoned_memory():
        found = problem.run(cuda, torch.float32)
    assert not found["d cond"].any()
    assert found["d x"].any()


def test_every_element_of_a_result_is_written() -> None:
    problem = Problem.draw(GRU, 3, 5, RAGGED)
    expected = problem.run(cuda, torch.float32)
    with poisoned_memory():
        found = problem.run(cuda, torch.float32)
    for name, t in found.items():
        assert torch.equal(t, expected[name]), name
        assert t.isfinite().all(), name


def test_states_go_from_one_launch_to_the_next() -> None:
    """With the same noise; of gradients, those of the last piece. The dense products before the scan may add up in
    another order where there are fewer rows."""
    problem = Problem.draw(GRU, 4, 5)
    whole = problem.run(cuda, torch.float32)
    state, found = problem.inputs["state0"], []
    for start, end in pairwise((0, 1, 4)):
        piece = replace(problem, inputs={**problem.inputs, "state0": state})
        for name in ("x", "eps"):
            piece.inputs[name] = problem.inputs[name][start:end]
        piece.upstream = {n: t if n == "final0" else t[start:end] for n, t in problem.upstream.items()}
        found.append(piece.run(cuda, torch.float32))
        state = found[-1]["final0"].double()
    for name in ("z", "kl", "raw", "d eps"):
        pieces = torch.cat([f[name] for f in found])
        torch.testing.assert_close(pieces[1:], whole[name][1:], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found[-1]["final0"], whole["final0"], rtol=1e-5, atol=1e-6)


def test_masks_stop_infinity() -> None:
    spec, _, options = CASES["weights of the sample"]
    problem = Problem.draw(spec, 3, 1, **options)
    for p in spec.parameters():
        problem.inputs[p.name] *= 1e8
    found, right = (problem.run(e, torch.float32) for e in (cuda, reference))
    assert any(not t.isfinite().all() for t in right.values())
    assert_nan_where_torch_has(found, right)


def test_tf32_is_as_good_as_float16() -> None:
    """Its operands have as many digits, and all else is float32."""
    errors = Errors(torch.float32)
    precision = torch.get_float32_matmul_precision()
    for seed in range(4):
        problem = Problem.draw(GRU, 3, 5, seed=seed)
        try:
            torch.set_float32_matmul_precision("high")
            found = problem.run(cuda, torch.float32)
        finally:
            torch.set_float32_matmul_precision(precision)
        oracle, halves = (problem.run(reference, dtype) for dtype in (torch.float64, torch.float16))
        exact = problem.run(cuda, torch.float32)
        assert not torch.equal(found["mean"], exact["mean"])
        errors.add(found, halves, oracle)
    errors.assert_at_most_twice_torchs()


# ---- tiers


@pytest.mark.parametrize(("dtype", "kilobytes"), [(torch.bfloat16, 16), (torch.float32, 22)], ids=str)
def test_weights_in_registers_and_from_the_cache(dtype: torch.dtype, kilobytes: int) -> None:
    """A chip with so little shared memory that every tier is needed."""
    with mock.patch.object(chip, "limit", return_value=kilobytes << 10):
        plan = cuda.forward(GRU)
        found = cuda.memory(plan, launch.operand(dtype, "ieee"), kilobytes << 10)
        assert found is not None
        places = set(found.place.values())
        assert "memory" in places
        assert "shared" in places
        assert ("registers" in places) == (dtype == torch.bfloat16)
        assert len(found.ahead) < len(plan.read), "and none is left for the inputs of the next step"
        assert_obeys_the_law(GRU, 3, 5, executor=cuda, dtype=dtype, draws=3)


# ---- a particle filter


def grouped(lengths: list[int], particles: int) -> list[int]:
    return [n for n in lengths for _ in range(particles)]


PARTICLES: dict[str, tuple[CellSpec, torch.dtype, int, dict[str, Any]]] = {
    "one particle": (FILTER, torch.float32, 1, {"lengths": grouped([4, 0, 2], 1)}),
    "groups that fill no tile": (FILTER, torch.float32, 3, {"lengths": grouped([4, 0, 2, 4, 3, 4, 1], 3)}),
    "a tile for each sequence": (FILTER, torch.float32, 16, {"lengths": grouped([2, 4], 16), "mask": True}),
    "gru in bfloat16": (FILTER, torch.bfloat16, 3, {"lengths": grouped([3, 2], 3)}),
    "lstm of two layers in float16": (
        cell(measure="particle_filter", cell="lstm", num_layers=2, phi_z=(), initial_state=True, **GAUSSIAN),
        torch.float16,
        5,
        {"resets": True, "recompute": True, "lengths": grouped([3, 3], 5)},
    ),
    "rnn, normalised": (
        cell(measure="particle_filter", cell="rnn", prior=None, normalized=("encoder", "decoder"), initial_state=True),
        torch.float32,
        4,
        {"resets": True},
    ),
    "all at once": (
        cell(measure="particle_filter", **FAMILY["all at once"]),
        torch.float32,
        4,
        {"resets": True, "mask": True},
    ),
    "without a latent variable": (cell(measure="particle_filter", **FAMILY["no z, the rest"]), torch.float32, 1, {}),
}


@pytest.mark.parametrize("case", PARTICLES)
def test_particles_obey_the_law(case: str) -> None:
    spec, dtype, particles, options = PARTICLES[case]
    options = {"lengths": grouped([4, 4, 4], particles), "particles": particles, **options}
    assert_obeys_the_law(spec, 4, len(options["lengths"]), executor=cuda, dtype=dtype, draws=4, **options)


@pytest.mark.parametrize("steps", [1, 9])
def test_particles_of_one_sequence(steps: int) -> None:
    problem = Problem.draw(FILTER, steps, 7, particles=7)
    found, right = (problem.run(e, torch.float32) for e in (cuda, reference))
    assert torch.equal(found["ancestors"], right["ancestors"])
    assert (found["ancestors"] >= 0).any() == (steps > 1)
    torch.testing.assert_close(found["final0"], right["final0"])


def test_particles_move_alike_under_every_schedule() -> None:
    problem = Problem.draw(FILTER, 4, 20, grouped([4, 0, 2, 4, 3], 4), resets=True, particles=4)
    first = problem.run(cuda, torch.float32)
    for schedule in SCHEDULES:
        with scheduled(schedule), poisoned_memory():
            again = problem.run(cuda, torch.float32)
        for name, t in first.items():
            assert torch.equal(again[name], t), f"{name} under {schedule}"


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24, 1.0])
def test_uniforms_at_their_ends_draw_particles_with_weight(uniform: float) -> None:
    """The first and the last particle are impossible: nobody may go on from them."""
    problem = Problem.draw(cell(measure="particle_filter", **GAUSSIAN), 2, 4, particles=4)
    problem.inputs["x"][:, (0, 3)] = 1e4
    problem.flags["uniforms"] = torch.full((2, 1, 4), uniform)
    ancestors = problem.run(cuda, torch.float32)["ancestors"]
    assert (ancestors[0] == (1 if uniform == 0.0 else 2)).all()
    assert (ancestors[1] == -1).all()


def test_nan_in_a_sequence_of_particles_reaches_no_other() -> None:
    problem = Problem.draw(FILTER, 4, 12, particles=3)
    clean = problem.run(cuda, torch.float32)
    problem.inputs["x"][1, 4, 3] = float("nan")
    dirty = problem.run(cuda, torch.float32)
    others = [0, 1, 2, *range(6, 12)]
    assert dirty["nll"][1:, 4].isnan().all()
    assert (dirty["ancestors"][1:, 1] == -1).all()
    for name in ("nll", "z", "d x", "d eps"):
        assert torch.equal(dirty[name][:, others], clean[name][:, others]), name


def test_uniforms_that_do_not_fit_are_refused() -> None:
    problem, plain = Problem.draw(FILTER, 2, 4, particles=2), Problem.draw(GRU, 2, 4)
    plain.flags["uniforms"] = own = problem.flags["uniforms"]
    with pytest.raises(ValueError, match="uniforms belong to a cell that resamples, and to no other"):
        plain.run(cuda, torch.float32)
    for wrong in (own[:1], own[:, :1], torch.rand(2, 1, 3)):
        problem.flags["uniforms"] = wrong
        with pytest.raises(ValueError, match=r"uniforms must be \(T, B / particles, particles\)"):
            problem.run(cuda, torch.float32)
    with pytest.raises(RuntimeError, match="particles of a sequence must be as long as each other"):
        Problem.draw(FILTER, 2, 4, [2, 2, 2, 1], particles=2).run(cuda, torch.float32)
    with pytest.raises(ValueError, match="a tile holds all particles of a sequence, at most 16, and there are 17"):
        Problem.draw(FILTER, 1, 17, particles=17).run(cuda, torch.float32)


def test_what_no_tile_holds_is_run_by_another_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever asks for this one by name hears why not."""
    for name, value in {"emulated": True, "device": "cpu", "trusted": True}.items():
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setitem(executors._UNAVAILABLE, "cuda", None)
    monkeypatch.setattr(executors, "executors", (cuda, reference))
    x = torch.rand(3, 2, 5)
    assert select("auto", FILTER, x, 16)[0] is cuda
    executor, why = select("auto", FILTER, x, 17)
    assert executor is reference
    assert why["cuda"].startswith("a tile holds all particles of a sequence, at most 16")
    model, options = VRNN(5, 4, 2), {"objective": "fivo", "num_particles": 17}
    with pytest.warns(UserWarning, match="running on 'reference', not on 'cuda': a tile holds all particles"):
        assert model.bound(x, **options).shape == (2,)
    model.backend = "cuda"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run: a tile holds all particles"):
        model.bound(x, **options)


# ---- a cell that runs on its own


@pytest.mark.parametrize("mean", [False, True], ids=["samples", "means"])
@pytest.mark.parametrize(
    ("spec", "dtype"),
    [(GRU, torch.float32), (replace(LSTM, normalized=("phi_x", "prior", "decoder")), torch.bfloat16)],
    ids=["gru", "lstm, normalised"],
)
def test_generation(spec: CellSpec, dtype: torch.dtype, mean: bool) -> None:
    problem = Problem.draw(spec, 3, 5)
    noise = torch.randn(3, 5, 5, dtype=torch.float64)

    def run(executor: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = {name: t.to(dtype) for name, t in problem.inputs.items()}
        state = tuple(inputs[f"state{i}"] for i in range(spec.state_tensors))
        batch = Batch(noise.to(dtype), inputs["eps"], state)
        x, after = executor.generate(spec, [inputs[p.name] for p in spec.parameters()], batch, mean=mean)
        return x, *after

    before = launch.launches.copy()
    found = run(cuda, dtype)
    assert launch.launches - before == {"all of generate": 1}
    for ours, torchs, right in zip(found, run(reference, dtype), run(reference, torch.float64), strict=True):
        torchs_error = float((torchs.double() - right).abs().max())
        assert (ours.double() - right).abs().max() <= allowed(torchs_error, float(right.abs().max()), dtype)


# ---- as an executor


def test_launches_do_not_depend_on_the_number_of_steps() -> None:
    for steps in (2, 6):
        before = launch.launches.copy()
        Problem.draw(GRU, steps, 5).run(cuda, torch.float32)
        assert launch.launches - before == {"all of forward": 1, "all of backward": 1}
        before = launch.launches.copy()
        with mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", 1):
            Problem.draw(GRU, steps, 5).run(cuda, torch.float32)
        assert launch.launches - before == Counter(training(GRU))


def test_it_tells_every_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "device", "cpu")
    told = cuda.launches(GRU)
    assert told.startswith(
        "a training step is 2 launches, one each way, whatever T is, by blocks that scan and workers, of up to 32 rows "
        f"in bf16, f16, tf32, f32; else it is {len(training(GRU))}: 1. pack: the weights"
    )
    for i, name in enumerate(training(GRU), 1):
        assert f"{i}. {name}: " in told
    assert "generate 1; every bound as forward, fivo of up to 16 particles, the likelihood then" in told
    external = cuda.launches(cell(likelihood="external"))
    assert "by cuBLAS; the likelihood is torch's; generate and fivo step by step" in external


class Seen(TorchDispatchMode):
    """What torch was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_torch_computes_nothing() -> None:
    """Of a ragged batch with all there is to one, and an expanded gradient, as that of a sum is."""
    spec = CASES["all at once"][0]
    problem = Problem.draw(spec, 3, 5, RAGGED, resets=True, mask=True)
    inputs = {name: t.float() for name, t in problem.inputs.items()}
    state = tuple(inputs[f"state{i}"] for i in range(spec.state_tensors))
    batch = Batch(inputs["x"], inputs["eps"], state, problem.lengths, inputs["cond"], **problem.flags)
    parameters = [inputs[p.name] for p in spec.parameters()]
    upstream = dict.fromkeys(("nll", "kl"), torch.ones(()).expand(3, 5))
    with Seen() as seen:
        out = launch.make(spec, batch, parameters, "ieee", reverse=False).forward(Keep.ALWAYS, Want(True, True))
        back = launch.make(spec, batch, parameters, "ieee", reverse=True)
        remembered = Remembered(out.z, out.std, out.ancestors, out.saved, Keep.ALWAYS)
        back.backward(upstream, remembered, {"x", "eps", "cond"})
    views = {"detach", "view", "_unsafe_view", "reshape", "slice", "expand", "alias", "select", "as_strided"}
    assert seen.names <= {*views, "new_empty", "empty", "lift_fresh"}, seen.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_number_of_multiprocessors(dtype: torch.dtype) -> None:
    """Nor do the sums of weight gradients, in several shares."""
    problem, found = Problem.draw(GRU, 4, 19, [i % 5 for i in range(19)]), []
    for count in (1, 2, 7):
        with (
            mock.patch.object(chip, "EMULATED_MULTIPROCESSORS", count),
            mock.patch.object(weights, "ROWS_OF_A_SHARE", 30),
        ):
            found.append(problem.run(cuda, dtype))
    for name, t in found[0].items():
        assert all(torch.equal(t, other[name]) for other in found[1:]), name


def test_many_rows_are_added_up_in_shares() -> None:
    """By the law, and of rows that are real alone."""
    with mock.patch.object(weights, "ROWS_OF_A_SHARE", 20):
        assert weights.shares(76) == 4
        assert_obeys_the_law(GRU, 4, 19, [i % 5 for i in range(19)], executor=cuda, dtype=torch.float32, draws=3)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [(GRU, torch.float32), (GRU, torch.bfloat16), (LSTM, torch.float16)],
    ids=["gru in float32", "gru in bfloat16", "lstm in float16"],
)
def test_weight_gradients_by_torch(spec: CellSpec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose products are cuBLAS's on a GPU: by the law, behind a launch of backward, with one of sums. A batch with
    padding, which nobody has written, is ours."""
    asked: list[object] = []
    monkeypatch.setattr(launch, "are_cublas", lambda *given: asked.append(given) or True)
    before = launch.launches.copy()
    Problem.draw(spec, 3, 5).run(cuda, dtype)
    assert launch.launches - before == {"all of forward": 1, "all of backward": 1, "their sums": 1}
    assert len(asked) == 1
    assert_obeys_the_law(spec, 3, 5, executor=cuda, dtype=dtype, draws=3)
    asked.clear()
    Problem.draw(spec, 3, 5, [3, 1, 0, 2, 3]).run(cuda, dtype)
    assert not asked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weight_gradients_by_large_squares(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of even widths, whose rows are copied 16 bytes at a time, and of odd ones."""
    monkeypatch.setattr(weights, "_side", lambda *_: weights.SIDES[1])
    weights.jobs.cache_clear()
    for spec in (cell(phi_x=(24,), encoder=(130,)), cell(hidden_size=16, phi_z=(8,))):
        problem = Problem.draw(spec, 3, 19, [i % 4 for i in range(19)])
        large = problem.run(cuda, dtype)
        monkeypatch.undo()
        weights.jobs.cache_clear()
        small = problem.run(cuda, dtype)
        for name, t in large.items():
            assert torch.equal(t, small[name]), name
        assert_obeys_the_law(spec, 3, 19, executor=cuda, dtype=dtype, draws=2)


def test_nobody_gets_a_gradient_unasked() -> None:
    assert_nobody_gets_a_gradient_unasked(cuda, torch.float32)


def test_opcheck() -> None:
    problem = Problem.draw(GRU, 2, 3)
    leaves = {name: t.float().requires_grad_() for name, t in problem.inputs.items()}
    sequences = (leaves["x"], leaves["eps"], None, None, None, None, None)
    parameters = [leaves[p.name] for p in GRU.parameters()]
    options = (operators.encode(GRU), "ieee", int(Keep.STORED), True, True, 0.5)
    torch.library.opcheck(
        torch.ops.vrnn_fast.cuda_forward.default, (*sequences, [leaves["state0"]], parameters, *options)
    )


def test_compiled_code_calls_the_operators() -> None:
    problem = Problem.draw(GRU, 2, 3)
    inputs = {name: t.float() for name, t in problem.inputs.items()}
    inputs["x"].requires_grad_()
    parameters = [inputs[p.name] for p in GRU.parameters()]

    def loss(x: Tensor) -> Tensor:
        result = cuda.run(GRU, parameters, Batch(x, inputs["eps"], (inputs["state0"],)), Want(prior=True, raw=True))
        return (result.nll + result.kl).sum() + result.mean.sum()

    (expected,) = torch.autograd.grad(loss(inputs["x"]), inputs["x"])
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(inputs["x"]), inputs["x"])
    assert torch.equal(found, expected)


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.refuses(GRU, torch.rand(2, 2, 5)) == "it runs on GPU tensors, and x is on cpu"
    monkeypatch.setattr(cuda, "emulated", True)
    monkeypatch.setattr(cuda, "device", "cpu")
    assert cuda.unavailable() is None
    x = torch.rand(2, 2, 5)
    assert cuda.refuses(GRU, x) is None
    assert cuda.refuses(GRU, x.double()) == "it takes float32, bfloat16 or float16, and x is torch.float64"
    assert cuda.refuses(GRU, x.to("meta")) == "its emulator runs on CPU tensors, and x is on meta"
    assert cuda.refuses(FILTER, x, 16) is None
    assert cuda.refuses(FILTER, x, 17) == "a tile holds all particles of a sequence, at most 16, and there are 17"
    wide = cell(hidden_size=4000)
    assert cuda.refuses(wide, x) == (
        "what a block keeps of 16 rows of this cell in f32 does not fit into 227 KB of shared memory"
    )


def test_nobody_gets_it_unasked() -> None:
    if cuda.emulated:
        pytest.skip("it was asked for by VRNN_FAST_CUDA")
    if backends()["cuda"].available:
        pytest.skip("there is a GPU")
    assert select("auto", GRU, torch.rand(1, 1, 5))[0] is not cuda
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run: there is no GPU"):
        VRNN(3, 4, 2, backend="cuda")(torch.rand(2, 2, 3))


ASKED = """
import torch, vrnn_fast
from vrnn_fast.executors.cuda import launch
torch.manual_seed(0)
model = vrnn_fast.VRNN(3, 5, 2)
assert model.explain().startswith("cuda: a training step is 2 launches"), model.explain()
x = torch.rand(4, 2, 3)
model(x).loss.backward()
assert launch.launches.total() == 2, launch.launches
model.generate(3, batch_size=2)
assert launch.launches["all of generate"] == 1
"""


def test_whoever_asks_for_the_emulator_gets_it() -> None:
    environment = os.environ | {"VRNN_FAST_CUDA": "emulate", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ASKED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
