"""Particles through the kernels: weights of single samples, and the rows of a sequence resampled inside the launch."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.support.oracle import Problem, assert_obeys_the_law
from vrnn_fast.cell.encode import Program, encode
from vrnn_fast.cell.spec import CellSpec, Std
from vrnn_fast.executors import cpu, reference
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.cpu import operators

NETS: dict[str, Any] = {"phi_x": (9, 17), "phi_z": (5,), "encoder": (33, 8), "prior": (7,), "decoder": (17, 6)}
GAUSSIAN: dict[str, Any] = {"likelihood": "gaussian", "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5))}
MEMBERS: dict[str, dict[str, Any]] = {
    "plain": NETS,
    "gaussian": NETS | GAUSSIAN,
    "bare": {},
    "residual": NETS | {"residual": True, "std": Std(offset=0.5, min_std=0.1)},
    "standard normal": NETS | {"prior": None},
    "conditioned": NETS | {"cond_size": 2, "cond_networks": ("encoder", "prior", "decoder", "cell"), "residual": True},
    "two layers": NETS | {"num_layers": 2, "head_layers": (4,)},
    "heads of their own": {"own_layers": (("enc_std", (4,)), ("prior_mean", (3,)), ("dec_mean", (9, 17)))},
}
PARTICLES, SEQUENCES = 4, 3
RAGGED = [7] * PARTICLES + [0] * PARTICLES + [4] * PARTICLES


def _spec(measure: str, member: str = "plain", **options: Any) -> CellSpec:
    return CellSpec(5, 19, 3, measure=measure, **(MEMBERS[member] | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", MEMBERS)
def test_log_weights_obey_the_law(member: str, cell: str, dtype: torch.dtype) -> None:
    for lengths, recompute in ((None, True), ([7, 3, 0, 1, 7], False)):
        spec = _spec("log_weight", member, cell=cell)
        assert_obeys_the_law(spec, 7, 5, lengths, executor=cpu, dtype=dtype, recompute=recompute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_particle_filter_obeys_the_law(member: str, cell: str, dtype: torch.dtype) -> None:
    for lengths, recompute in ((None, True), (RAGGED, False)):
        spec = _spec("particle_filter", member, cell=cell)
        options: dict[str, Any] = {"executor": cpu, "dtype": dtype, "recompute": recompute}
        assert_obeys_the_law(spec, 7, SEQUENCES * PARTICLES, lengths, particles=PARTICLES, **options)


@pytest.mark.parametrize("likelihood", ["plain", "gaussian"])
def test_a_particle_filter_with_resets_and_masks(likelihood: str) -> None:
    spec = _spec("particle_filter", likelihood, cell="lstm")
    options: dict[str, Any] = {"executor": cpu, "dtype": torch.float32, "particles": PARTICLES}
    assert_obeys_the_law(spec, 7, SEQUENCES * PARTICLES, RAGGED, resets=True, mask=True, **options)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("steps", "sequences", "particles"), [(1, 1, 1), (3, 2, 3), (5, 17, 33), (40, 1, 16)])
def test_any_number_of_particles(
    isa: str, steps: int, sequences: int, particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of many steps and of less than one, groups that fill no vector."""
    monkeypatch.setenv("VRNN_FAST_ISA", isa)
    try:
        operators.chosen_isa()
    except RuntimeError as error:
        pytest.skip(str(error))
    problem = Problem.draw(_spec("particle_filter"), steps, sequences * particles, particles=particles)
    right, found = problem.run(reference, torch.float64), problem.run(cpu, torch.float64)
    assert torch.equal(found["ancestors"], right["ancestors"])
    assert (right["ancestors"] >= 0).any() == (steps >= 5)
    for name in right:
        torch.testing.assert_close(found[name], right[name], rtol=1e-9, atol=1e-9)


def test_any_number_of_threads_draws_the_same() -> None:
    spec = CellSpec(28, 64, 8, phi_x=(64,), encoder=(64,), prior=(64,), decoder=(64,), measure="particle_filter")
    lengths = [n for n in (9, 40, 3, 40, 1, 25, 17, 33) for _ in range(8)]
    problem = Problem.draw(spec, 40, 64, lengths, particles=8)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(problem.run(cpu, torch.float64))
    finally:
        torch.set_num_threads(before)
    again = problem.run(cpu, torch.float64)
    for other in (*found[1:], again):
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10)


def test_a_second_run_is_bit_equal() -> None:
    problem = Problem.draw(_spec("particle_filter", cell="lstm"), 9, 12, particles=4)
    first, second = problem.run(cpu, torch.float32), problem.run(cpu, torch.float32)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24, 1.0])
def test_uniform_numbers_at_their_ends_draw_particles_with_weight(uniform: float) -> None:
    """The first and the last particles are impossible: nobody may go on from them."""
    problem = Problem.draw(_spec("particle_filter", "gaussian", cell="rnn"), 2, 4, particles=4)
    inputs = {name: t.float() for name, t in problem.inputs.items()}
    inputs["x"][:, (0, 3)] = 1e4
    for executor in (cpu, reference):
        batch = Batch(inputs["x"], inputs["eps"], (inputs["state0"],))
        batch = batch._replace(uniforms=torch.full((2, 1, 4), uniform), threshold=1.0)
        result = executor.run(problem.spec, [inputs[p.name] for p in problem.spec.parameters()], batch, Want())
        assert result.ancestors is not None
        assert (result.ancestors[0] == (1 if uniform == 0.0 else 2)).all()
        assert (result.ancestors[1] == -1).all()


def test_gradients_of_resampled_rows() -> None:
    """gradcheck, with uniform numbers far from where another ancestor begins."""
    problem = Problem.draw(_spec("particle_filter", "residual", cell="lstm", bias=False), 4, 4, particles=4, seed=3)
    names = list(problem.inputs)

    def outputs(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, leaves, strict=True))
        batch = Batch(given["x"], given["eps"], (given["state0"], given["state1"]))
        result = cpu.run(
            problem.spec,
            [given[p.name] for p in problem.spec.parameters()],
            batch._replace(uniforms=problem.flags["uniforms"].double(), threshold=1.0),
            Want(prior=True, raw=True),
        )
        assert result.ancestors is not None
        assert (result.ancestors[:-1] >= 0).all()
        return (*result[:5], *result.state)

    leaves = [t.clone().requires_grad_() for t in problem.inputs.values()]
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


def test_opcheck_with_particles() -> None:
    spec = _spec("particle_filter")
    program = encode(spec)
    leaf = functools.partial(torch.randn, requires_grad=True)
    state, parameters = [leaf(4, 19)], [leaf(p.shape) for p in spec.parameters()]
    size = 3 * 4 * program.saved + operators.SLACK
    arguments = (torch.rand(3, 4, 5), leaf(3, 4, 3), *(None,) * 4, torch.rand(3, 2, 2), state, parameters, None)
    torch.use_deterministic_algorithms(True)
    try:
        for test in ("test_schema", "test_faketensor"):
            torch.library.opcheck(
                torch.ops.vrnn_fast.forward.default,
                (*arguments, program.code, program.constants, 0, False, True, True, 0.5),
                test_utils=test,
            )
        torch.library.opcheck(
            torch.ops.vrnn_fast.forward.default,
            (*arguments, program.code, program.constants, size, False, False, True, 0.5),
            test_utils="test_autograd_registration",
        )
    finally:
        torch.use_deterministic_algorithms(False)


def test_operators_refuse_particles_that_do_not_fit() -> None:
    spec = _spec("particle_filter")
    program, plain = encode(spec), encode(_spec("kl"))
    forward = torch.ops.vrnn_fast.forward
    parameters = [torch.zeros(p.shape) for p in spec.parameters()]

    def call(program: Program, uniforms: torch.Tensor | None, lengths: list[int] | None = None) -> None:
        given = None if lengths is None else torch.tensor(lengths)
        forward(
            *(torch.zeros(2, 4, 5), torch.zeros(2, 4, 3), None, given, None, None, uniforms, [torch.zeros(4, 19)]),
            *(parameters, None, program.code, program.constants, 0, False, False, False, 0.5),
        )

    for wrong in (plain, program):
        with pytest.raises(RuntimeError, match="uniforms belong to a program that resamples, and to no other"):
            call(wrong, torch.rand(2, 2, 2) if wrong is plain else None)
    for uniforms in (torch.rand(2, 2, 3), torch.rand(1, 2, 2), torch.rand(2, 4), torch.rand(2, 2, 2).double()):
        with pytest.raises(RuntimeError, match=r"uniforms must be (\(T, B, particles\)|float32)"):
            call(program, uniforms)
    with pytest.raises(ValueError, match="particles must be as long as each other"):
        call(program, torch.rand(2, 2, 2), [2, 1, 2, 2])
