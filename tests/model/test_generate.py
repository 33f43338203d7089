"""A cell that runs on its own: one launch, the numbers of the loop over time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.machine import AVAILABLE
from tests.support.oracle import assert_at_most_twice_torchs
from vrnn_fast import VRNN, Bernoulli
from vrnn_fast.cell.encode import encode
from vrnn_fast.cell.spec import CellSpec, Std
from vrnn_fast.executors import cpu, executors, reference
from vrnn_fast.executors.base import Batch
from vrnn_fast.executors.cpu import operators

NETS: dict[str, Any] = {"phi_x": (9, 17), "phi_z": (5,), "encoder": (33, 8), "prior": (7,), "decoder": (17, 6)}
GAUSSIAN: dict[str, Any] = {"likelihood": "gaussian", "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5))}
EVERYWHERE = ("encoder", "prior", "decoder", "cell")
MEMBERS: dict[str, dict[str, Any]] = {
    "plain": NETS,
    "bare": {},
    "residual": NETS | {"residual": True, "std": Std(offset=0.5, min_std=0.1)},
    "standard normal": NETS | {"prior": None},
    "conditioned": NETS | {"cond_size": 2, "cond_networks": EVERYWHERE},
    "other columns": NETS
    | {"cond_size": 2, "cond_networks": EVERYWHERE, "input_order": (("cell", ("cond", "phi_z", "phi_x")),)},
    "three layers": NETS | {"num_layers": 3, "bias": False, "head_layers": (4,)},
    "heads of their own": NETS
    | {
        "own_layers": (("prior_std", (4,)), ("dec_mean", (9, 17))),
        "activations": (("phi_x", ("elu", "identity")), ("phi_z", ("identity",)), ("dec_mean", ("tanh", "identity"))),
    },
    "packed heads": NETS | {"packed_heads": True},
    "no z": {"latent_size": 0, "phi_x": (9,), "decoder": (17,)},
}


def _draw(spec: CellSpec, steps: int, batch: int, seed: int) -> tuple[list[Tensor], Batch]:
    """Parameters and noise for ``generate`` in float64, rounded to float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    parameters = [normal(*p.shape) / p.shape[-1] ** 0.5 for p in spec.parameters()]
    eps, noise = normal(steps, batch, spec.latent_size), normal(steps, batch, spec.input_size)
    state = tuple(normal(batch, spec.hidden_size) for _ in range(spec.state_tensors))
    return parameters, Batch(noise, eps, state, cond=normal(steps, batch, spec.cond_size) if spec.cond_size else None)


def _to(inputs: tuple[list[Tensor], Batch], dtype: torch.dtype) -> tuple[list[Tensor], Batch]:
    parameters, batch = inputs
    return [p.to(dtype) for p in parameters], batch.to(dtype)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", MEMBERS)
def test_one_launch_draws_what_the_loop_draws(
    isa: str, member: str, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VRNN_FAST_ISA", isa)
    try:
        operators.chosen_isa()
    except RuntimeError as error:
        pytest.skip(str(error))
    for likelihood, mean in (({}, False), ({}, True), (GAUSSIAN, False), (GAUSSIAN, True)):
        spec = CellSpec(
            **{"input_size": 5, "hidden_size": 19, "latent_size": 3, "cell": cell, **MEMBERS[member], **likelihood}
        )
        for steps, batch in ((1, 1), (9, 3), (3, 200)):
            inputs = _draw(spec, steps, batch, seed=steps)
            right, state = reference.generate(spec, *inputs, mean=mean)
            found, after = cpu.generate(spec, *inputs, mean=mean)
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
            for ours, oracles in zip(after, state, strict=True):
                torch.testing.assert_close(ours, oracles, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("likelihood", [{}, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_float32_means_obey_the_law(likelihood: dict[str, Any]) -> None:
    spec = CellSpec(5, 33, 3, cell="lstm", **NETS, **likelihood)
    found, plain, right = [], [], []
    for seed in range(6):
        inputs = _draw(spec, 12, 17, seed)
        for results, executor, dtype in (
            (found, cpu, torch.float32),
            (plain, reference, torch.float32),
            (right, reference, torch.float64),
        ):
            x, state = executor.generate(spec, *_to(inputs, dtype), mean=True)
            assert x.dtype == dtype
            results.append(torch.cat([x.flatten(), *(s.flatten() for s in state)]))
    assert_at_most_twice_torchs(torch.cat(found), torch.cat(plain), torch.cat(right))


def test_one_launch_whatever_the_horizon() -> None:
    model = VRNN(5, 9, 3)
    for steps in (2, 64):
        before = operators.launch_counts()
        model.generate(steps, batch_size=3)
        grown = {name: n - before[name] for name, n in operators.launch_counts().items() if n != before[name]}
        assert grown == {f"cpu.{operators.chosen_isa()}.generate": 1}


def test_a_likelihood_of_ones_own_draws_step_by_step() -> None:
    class Own(Bernoulli):
        def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
            return super().log_prob(raw, x)

    model, before = VRNN(5, 9, 3, likelihood=Own()), operators.launch_counts()
    assert model.generate(4, batch_size=2)[0].shape == (4, 2, 5)
    assert operators.launch_counts() == before
    assert "step by step" in model.explain()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_many_samples_from_one_prefix(executor: str, likelihood: str, batch_first: bool) -> None:
    model = VRNN(
        5,
        9,
        3,
        cell="lstm",
        num_layers=2,
        cond_size=2,
        likelihood=likelihood,
        backend=executor,
        batch_first=batch_first,
    )
    sizes = (4, 6) if batch_first else (6, 4)
    prefix, cond = torch.rand(*sizes, 5), torch.randn(*sizes, 2)
    lengths = torch.tensor([6, 1, 3, 0])

    def drawn(**options: Any) -> tuple[Tensor, Any]:
        seeded = torch.Generator().manual_seed(2)
        return model.generate(
            6, prefix=prefix, lengths=lengths, generator=seeded, cond=cond, prefix_cond=cond, **options
        )

    x, state = drawn(num_samples=32)
    assert x.shape == (32, *sizes, 5)
    assert state[0].shape == (2, 32 * 4, 9)
    assert not torch.equal(x[0], x[1])
    torch.testing.assert_close(drawn(num_samples=1)[0][0], drawn()[0])
    # from the same start, sample 0 of the means at no temperature is what every sample is
    cold, _ = drawn(num_samples=3, sample_output=False, temperature=1e-9)
    torch.testing.assert_close(cold[1], cold[0])
    torch.testing.assert_close(cold[2], drawn(sample_output=False, temperature=1e-9)[0])


def test_samples_continue_where_they_stopped() -> None:
    model = VRNN(5, 9, 3)
    x, state = model.generate(3, batch_size=2, num_samples=4)
    out = model(x.transpose(0, 1).flatten(1, 2), state=None)
    assert isinstance(state, Tensor)
    assert model(torch.rand(2, 8, 5), state=state).state.shape == out.state.shape == (1, 8, 9)


def _in_pieces(
    generate: Any, spec: CellSpec, inputs: tuple[list[Tensor], Batch], *, mean: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As ``generate``, in pieces of one step, of five, and of the rest."""
    parameters, batch = inputs
    pieces, state = [], batch.state
    for part in (slice(0, 1), slice(1, 6), slice(6, None)):
        cond = None if batch.cond is None else batch.cond[part]
        x, state = generate(spec, parameters, Batch(batch.x[part], batch.eps[part], state, cond=cond), mean=mean)
        pieces.append(x)
    return torch.cat(pieces), state


@pytest.mark.parametrize("likelihood", [{}, GAUSSIAN], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", AVAILABLE)
def test_pieces_are_the_whole(name: str, likelihood: dict[str, Any]) -> None:
    """With the same noise, to the last bit: the state is all that goes from one piece to the next."""
    generate = next(e.generate for e in executors if e.name == name)
    spec = CellSpec(5, 19, 3, cell="lstm", num_layers=2, **NETS, **likelihood)
    inputs = _draw(spec, 9, 3, 0)
    x, state = _in_pieces(generate, spec, inputs, mean=False)
    whole, end = generate(spec, *inputs, mean=False)
    assert torch.equal(x, whole)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state, end, strict=True))


@pytest.mark.parametrize("name", AVAILABLE)
def test_conditioned_pieces_obey_the_law(name: str) -> None:
    """The columns of cond are taken at once for all steps of a piece, and so rounded as their number has it."""
    generate = next(e.generate for e in executors if e.name == name)
    spec = CellSpec(5, 19, 3, num_layers=2, cond_size=2, cond_networks=EVERYWHERE, **NETS)
    found, plain, right = [], [], []
    for seed in range(6):
        inputs = _draw(spec, 9, 3, seed)
        single = _to(inputs, torch.float32)
        for results, (x, state) in (
            (found, _in_pieces(generate, spec, single, mean=True)),
            (plain, reference.generate(spec, *single, mean=True)),
            (right, reference.generate(spec, *inputs, mean=True)),
        ):
            results.append(torch.cat([x.flatten(), *(s.flatten() for s in state)]))
    assert_at_most_twice_torchs(torch.cat(found), torch.cat(plain), torch.cat(right))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_long_sequence_may_be_drawn_in_pieces(executor: str, cell: str) -> None:
    # 16 numbers a step: torch draws them in that many at a time, and so the same in pieces
    model = VRNN(5, 9, 4, cell=cell, num_layers=2, backend=executor, batch_first=True, dtype=torch.float64)
    whole, end = model.generate(8, batch_size=4, sample_output=False, generator=torch.Generator().manual_seed(3))
    seeded, state, pieces = torch.Generator().manual_seed(3), model.new_state(4), []
    for steps in (1, 4, 3):
        x, state = model.generate(steps, sample_output=False, generator=seeded, state=state)
        pieces.append(x)
    assert torch.equal(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, end, rtol=0, atol=0)


def test_a_state_is_where_its_prefix_ended(executor: str) -> None:
    model, prefix = VRNN(5, 9, 3, cond_size=2, cell="lstm", backend=executor), torch.rand(6, 4, 5)
    cond, lengths = torch.randn(6, 4, 2), torch.tensor([6, 1, 3, 0])
    seeded = torch.Generator().manual_seed(1)
    expected = model.generate(
        6, prefix=prefix, lengths=lengths, generator=seeded, cond=cond, prefix_cond=cond, num_samples=3
    )
    seeded.manual_seed(1)
    state = model(prefix, lengths, generator=seeded, cond=cond).state
    found = model.generate(6, state=state, generator=seeded, cond=cond, num_samples=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    x, after = model.generate(2, state=found[1], batch_size=12, cond=torch.randn(2, 12, 2))
    assert x.shape == (2, 12, 5)
    assert after[0].shape == (1, 12, 9)


@pytest.mark.parametrize("samples", [0, 1.5, True])
def test_samples_must_be_a_count(samples: Any) -> None:
    with pytest.raises(ValueError, match="samples must be a positive int"):
        VRNN(5, 9, 3).generate(2, num_samples=samples)


def test_generation_is_compiled_whole(executor: str) -> None:
    model = VRNN(5, 9, 3, backend=executor, likelihood="gaussian")
    compiled = torch.compile(
        lambda: model.generate(5, batch_size=2, sample_output=False, temperature=1e-9)[0],
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(), model.generate(5, batch_size=2, sample_output=False, temperature=1e-9)[0])


def test_opcheck_generate() -> None:
    spec = CellSpec(5, 9, 3, cond_size=2, **NETS)
    program = encode(spec, "samples")
    parameters, batch = _to(_draw(spec, 3, 2, 0), torch.float32)
    arguments = (batch.eps, batch.x, batch.cond, list(batch.state), parameters, None)
    torch.library.opcheck(
        torch.ops.vrnn_fast.generate.default,
        (*arguments, program.code, program.constants),
        test_utils=("test_schema", "test_faketensor"),
    )
    plain = encode(spec)
    with pytest.raises(RuntimeError, match="the program does not generate"):
        torch.ops.vrnn_fast.generate(*arguments, plain.code, plain.constants)
    with pytest.raises(RuntimeError, match="the program generates: call vrnn_fast::generate"):
        torch.ops.vrnn_fast.forward(
            *(batch.x, batch.eps, batch.cond, *(None,) * 4, list(batch.state), parameters),
            *(None, program.code, program.constants, 0, False, False, False, 0.5),
        )


def test_changed_weights_are_seen() -> None:
    model = VRNN(5, 9, 3)

    def drawn() -> Tensor:
        return model.generate(4, sample_output=False, generator=torch.Generator().manual_seed(0))[0]

    first = drawn()
    torch.testing.assert_close(drawn(), first)
    with torch.no_grad():
        for p in model.dec_mean.parameters():
            p.add_(1.0)
    assert not torch.allclose(drawn(), first)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_nan_is_drawn_of_nan(backend: str) -> None:
    """Not a frame of zeros, which would look like silence."""
    model = VRNN(5, 3, 2, backend=backend)
    with torch.no_grad():
        model.dec_mean[0].bias[1] = float("nan")
    x, _ = model.generate(3, batch_size=2)
    assert x[0, :, 1].isnan().all()
    assert ((x[0] == 0) | (x[0] == 1))[:, [0, 2, 3, 4]].all()
    assert x[1:].isnan().any(-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("logit", [-7.0, -12.0])
def test_rare_events_are_as_rare_as_they_should_be(backend: str, dtype: torch.dtype, logit: float) -> None:
    """Uniforms of 16 bits would be below a probability of 0.001 three times as often, and 0 once in 500 draws."""
    model = VRNN(5, 3, 2, backend=backend, dtype=dtype)
    with torch.no_grad():
        model.dec_mean[0].weight.zero_()
        model.dec_mean[0].bias.fill_(logit)
    x, _ = model.generate(50, batch_size=400, generator=torch.Generator().manual_seed(0))
    expected = x.numel() / (1 + math.exp(-logit))
    assert x.dtype == dtype
    assert abs(x.float().sum().item() - expected) < 4 * expected**0.5
