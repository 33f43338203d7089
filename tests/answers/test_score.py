"""How unlikely observations are: exact predictions of linear-Gaussian models, and the bound of the same particles."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tests.support.kalman import LinearGaussian, build
from tests.support.likelihoods import Outside, Whole
from vrnn_fast import (
    VRNN,
    Categorical,
    FixedGaussian,
    GaussianMixture,
    Handwriting,
    Likelihood,
    Std,
    StudentT,
    particles,
)
from vrnn_fast.answers.proposal import blind, blind_spec, raw_of_one
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors.cpu import operators
from vrnn_fast.likelihoods import standard_deviation

NETS: dict[str, Any] = {"phi_x": (9,), "phi_z": (5,), "encoder": (8, 6), "prior": (7,), "decoder": (17,)}
MEMBERS: dict[str, dict[str, Any]] = {
    "plain": NETS,
    "bare": {},
    "deeper prior": NETS | {"prior": (9, 4, 6), "cell": "lstm"},
    "residual": NETS | {"residual": True, "std": Std(offset=0.5, min_std=0.1)},
    "standard normal": NETS | {"prior": None},
    "standard normal, packed": NETS | {"prior": None, "packed_heads": True, "head_layers": (4,)},
    "conditioned": NETS | {"cond_size": 2, "cond_networks": ("encoder", "prior", "cell")},
    "conditioned elsewhere": NETS | {"cond_size": 2, "cond_networks": ("encoder", "decoder")},
    "conditioned by name alone": NETS | {"prior": None, "cond_size": 2, "cond_networks": ("encoder", "prior")},
    "other columns": NETS
    | {"cond_size": 2, "input_order": (("prior", ("h", "cond")), ("encoder", ("h", "cond", "phi_x")))},
    "heads of their own": NETS
    | {
        "own_layers": (("prior_std", (4,)), ("enc_mean", (9, 3)), ("dec_mean", (9, 17))),
        "activations": (("prior", ("elu",)), ("encoder", "tanh"), ("prior_std", ("tanh",)), ("enc_mean", "elu")),
    },
    "packed heads": NETS | {"packed_heads": True, "num_layers": 2},
}
LENGTHS = torch.tensor([6, 0, 3, 1])


def model_and_data(executor: str, **options: Any) -> tuple[VRNN, Tensor]:
    model = VRNN(5, 7, 3, backend=executor, **{"dtype": torch.float64, **options})
    return model, torch.rand(6, 4, 5, dtype=torch.float64).round()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def exact_scores(exact: LinearGaussian, x: Tensor) -> Tensor:
    """(T, B) of x (T, B, X)."""
    return torch.stack(
        [
            torch.stack([-p.log_prob(x_t) for p, x_t in zip(exact.predicted(row), row, strict=True)])
            for row in x.unbind(1)
        ],
        1,
    )


def test_the_oracle_adds_up_to_the_filter() -> None:
    exact, x = LinearGaussian.of(build(3, 2, 2, "reference")), torch.randn(5, 1, 3, dtype=torch.float64)
    assert -exact_scores(exact, x).sum().item() == pytest.approx(exact.filtered(x[:, 0]), abs=1e-9)


def test_with_the_exact_posterior_every_particle_has_the_exact_score(executor: str) -> None:
    model = build(3, 2, 2, executor, remembers=False)
    exact = LinearGaussian.of(model)
    exact.write_posterior(model)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        found = model.score(x, num_particles=4, proposal="posterior")
    torch.testing.assert_close(found, exact_scores(exact, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("proposal", ["prior", "posterior"])
def test_many_particles_have_the_exact_score(executor: str, proposal: Any) -> None:
    model, replicates, count = build(3, 2, 2, executor), 32, 2048
    exact = LinearGaussian.of(model)
    exact.write_posterior(model, wider=1.3, off=0.2)
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    right = exact_scores(exact, x)
    each = torch.stack(
        [
            -Normal(p.mean, p.covariance_matrix.diag().sqrt()).log_prob(row)
            for p, row in zip(exact.predicted(x[:, 0]), x[:, 0], strict=True)
        ]
    )
    with torch.no_grad():
        for per_feature, expected in ((False, right.squeeze(1)), (True, each))[: 2 if proposal == "prior" else 1]:
            found = model.score(
                x.expand(-1, replicates, -1), num_particles=count, proposal=proposal, per_feature=per_feature
            )
            error = found.std(1) / replicates**0.5
            assert ((found.mean(1) - expected).abs() < 4 * error + 4 / count).all()


@pytest.mark.parametrize("options", [{}, {"likelihood": "gaussian", "cell": "lstm"}, {"likelihood": Outside()}])
def test_the_sum_over_steps_is_minus_the_bound(executor: str, options: dict[str, Any]) -> None:
    model, x = model_and_data(executor, **options)
    found = model.score(x, LENGTHS, num_particles=5, proposal="posterior", generator=seeded())
    bound = model.bound(x, LENGTHS, objective="fivo", num_particles=5, generator=seeded())
    torch.testing.assert_close(found.sum(0), -bound, rtol=1e-11, atol=1e-11)
    gradients = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
    expected = torch.autograd.grad(-bound.sum(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_particles_that_were_drawn_anew_begin_again() -> None:
    log_weights = torch.randn(5, 2, 3, dtype=torch.float64) * 4
    log_weights[1, 0, 0] = -torch.inf
    log_weights[3, 1] = -torch.inf
    ancestors = torch.full((5, 2, 3), -1)
    ancestors[1, 0] = ancestors[3, 0] = ancestors[0, 1] = 0
    found = particles.Particles(log_weights, log_weights, (), ancestors, None).accumulated().softmax(-1)
    for b in range(2):
        since = torch.zeros(3, dtype=torch.float64)
        for t in range(5):
            torch.testing.assert_close(found[t, b], since.softmax(-1), rtol=1e-12, atol=1e-12)
            since = since + log_weights[t, b] if log_weights[t, b].isfinite().any() else since
            since = torch.zeros_like(since) if ancestors[t, b, 0] >= 0 else since
        torch.testing.assert_close(found[5, b], since.softmax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["gaussian", GaussianMixture(2)])
def test_an_observation_that_no_particle_explains_is_infinitely_unlikely_and_alone(
    executor: str, likelihood: str | Likelihood, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the launch and outside of it: what comes after is told as if it had not been there, by particles that are
    drawn anew no more."""
    runs: list[particles.Particles] = []
    run = particles.run
    monkeypatch.setattr(particles, "run", lambda *given, **more: runs.append(run(*given, **more)) or runs[-1])
    model, x = model_and_data(executor, likelihood=likelihood, dtype=torch.float32)
    x = 30 * x.float()  # which some particles explain far better than others
    wrong = x.clone()
    wrong[2, 1] = 1e30
    found, right = (model.score(each, num_particles=5, generator=seeded()) for each in (wrong, x))
    assert (found == torch.inf).nonzero().tolist() == [[2, 1]]
    assert found.isfinite().sum() == found.numel() - 1
    torch.testing.assert_close(found[:, [0, 2, 3]], right[:, [0, 2, 3]])
    torch.testing.assert_close(found[:2, 1], right[:2, 1])
    anew, ordinary = (each.resampled for each in runs)
    assert anew is not None
    assert ordinary is not None
    assert ordinary[2:, 1].any()
    ordinary[2:, 1] = False
    assert torch.equal(anew, ordinary)
    bounds = model.bound(wrong, objective="fivo", num_particles=5, generator=seeded())
    assert (bounds == -torch.inf).tolist() == [False, True, False, False]
    assert not bounds.isnan().any()
    assert model.forecast(wrong, 3, 5, generator=seeded()).samples.isfinite().all()


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_blind_draws_from_the_prior(executor: str, name: str) -> None:
    spec = CellSpec(5, 7, 3, **MEMBERS[name])
    model = VRNN(5, 7, 3, backend=executor, dtype=torch.float64)
    parameters = [0.5 * torch.randn(p.shape, dtype=torch.float64) for p in spec.parameters()]
    call = blind(model._call()._replace(spec=spec, parameters=parameters), blind_spec(spec))
    assert [p.shape for p in call.parameters] == [torch.Size(p.shape) for p in call.spec.parameters()]
    x = torch.rand(6, 4, 5, dtype=torch.float64)
    cond = torch.randn(6, 4, 2, dtype=torch.float64) if call.spec.cond_size else None
    eps = torch.randn(6, 4, 2, 3, dtype=torch.float64)
    batch = particles.Batch(x, eps, tuple(torch.zeros(4, 7, dtype=torch.float64) for _ in range(spec.state_tensors)))
    found = particles.run(call, particles.measured(call.spec), batch._replace(cond=cond), None)
    torch.testing.assert_close(found.log_ratio, torch.zeros_like(found.log_ratio), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "std", [Std(), Std("log_std"), Std("log_variance", offset=0.3), Std(sharpness=2.0, offset=-1.0, floor=0.2)]
)
def test_the_raw_output_of_a_standard_deviation_of_one(std: Std) -> None:
    found = standard_deviation(std, torch.tensor(raw_of_one(std), dtype=torch.float64))
    assert found.item() == pytest.approx(1, abs=1e-12)
    near = replace(std, clamp=(-9.0, -2.0))
    assert raw_of_one(near) <= -2


def test_who_reads_the_conditioning_input_of_the_encoder_alone() -> None:
    spec = CellSpec(5, 7, 3, cond_size=2, cond_networks=("encoder",))
    assert blind_spec(spec).cond_size == 0
    model = VRNN(5, 7, 3, cond_size=2, cond_networks=("encoder",))
    assert model.score(torch.rand(6, 4, 5), cond=torch.randn(6, 4, 2)).isfinite().all()


def test_without_z_it_is_the_likelihood(executor: str) -> None:
    model = VRNN(5, 7, 0, backend=executor, dtype=torch.float64)
    x = torch.rand(6, 4, 5, dtype=torch.float64).round()
    torch.testing.assert_close(model.score(x, LENGTHS), model(x, LENGTHS).nll, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_feature", [False, True])
def test_padding_is_zero_and_reaches_nobody(executor: str, per_feature: bool) -> None:
    model, x = model_and_data(executor, cond_size=2, batch_first=True)
    x, cond = x.transpose(0, 1), torch.randn(4, 6, 2, dtype=torch.float64)
    beyond = torch.arange(6) >= LENGTHS.unsqueeze(1)
    hidden = x.masked_fill(beyond.unsqueeze(-1), torch.nan), cond.masked_fill(beyond.unsqueeze(-1), torch.nan)
    call: dict[str, Any] = {"num_particles": 3, "per_feature": per_feature}
    found = model.score(hidden[0], LENGTHS, cond=hidden[1], generator=seeded(), **call)
    torch.testing.assert_close(found, model.score(x, LENGTHS, cond=cond, generator=seeded(), **call))
    assert (found[beyond] == 0).all()
    assert (found[~beyond] > 0).all()
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_a_mask_hides_is_not_scored(executor: str) -> None:
    model, x = model_and_data(executor)
    mask = torch.rand(x.shape) < 0.7
    mask[2] = False
    found = model.score(x.masked_fill(~mask, torch.nan), mask=mask, mask_inputs=True, per_feature=True)
    assert (found[~mask] == 0).all()
    assert (found[mask] > 0).all()
    whole = model.score(x.masked_fill(~mask, torch.nan), mask=mask, mask_inputs=True)
    torch.testing.assert_close(whole[2], torch.zeros_like(whole[2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("likelihood", [GaussianMixture(3), Handwriting(2), Categorical(4), "gaussian", "bernoulli"])
def test_every_feature_on_its_own(likelihood: Any) -> None:
    model = VRNN(3, 7, 2, likelihood=likelihood, dtype=torch.float64)
    raw = torch.randn(6, 4, model.spec.output_size, dtype=torch.float64)
    x = torch.rand(6, 4, 3, dtype=torch.float64).round()
    found = model.likelihood.log_prob_of_each(raw, x)
    for i in range(3):
        alone = torch.zeros(3, dtype=torch.bool)
        alone[i] = True
        right = model.likelihood.marginal_log_prob(raw, x, alone.expand_as(x))
        torch.testing.assert_close(found[..., i], right, rtol=1e-12, atol=1e-12)
    assert model.score(x, per_feature=True).shape == x.shape


def test_an_observation_that_cannot_be_leaves_the_next_ones_their_scores() -> None:
    model = VRNN(1, 7, 2, likelihood=Categorical(3))
    x = torch.tensor([0.0, 7.0, 1.0, 2.0]).view(4, 1, 1)
    found = model.score(x)
    assert found[1].item() == torch.inf
    assert found[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("likelihood", "launches"),
    [("bernoulli", 1), ("gaussian", 1), (FixedGaussian(), 6), (StudentT(), 6), (GaussianMixture(2), 6), (Outside(), 6)],
)
def test_how_many_launches_it_takes(likelihood: Any, launches: int) -> None:
    """One, or one for each of the six steps where the likelihood is computed outside of it."""
    model, x = model_and_data("cpu", likelihood=likelihood)
    for answer in (model.score, lambda given: model.score(given, proposal="posterior")):
        before = sum(operators.launch_counts().values())
        with torch.no_grad():
            answer(x)
        assert sum(operators.launch_counts().values()) == before + launches


def test_the_order_of_arguments() -> None:
    """As the documentation calls them: those after the star are named."""
    for answer, names in (
        (VRNN.score, ["x", "lengths", "num_particles", "per_feature", "cond", "mask"]),
        (VRNN.forecast, ["x", "horizon", "num_samples", "lengths", "cond"]),
        (VRNN.impute, ["x", "mask", "num_samples", "lengths", "cond"]),
    ):
        every = list(inspect.signature(answer).parameters.values())[1:]
        assert [p.name for p in every if p.kind is p.POSITIONAL_OR_KEYWORD] == names


def test_arguments() -> None:
    model, x = VRNN(5, 7, 3, likelihood=Whole()), torch.rand(6, 4, 5).round()
    with pytest.raises(ValueError, match="per_feature needs a likelihood with marginal_log_prob"):
        model.score(x, per_feature=True)
    with pytest.raises(ValueError, match="per_feature needs proposal='prior': the posterior's samples"):
        VRNN(5, 7, 3).score(x, per_feature=True, proposal="posterior")
    with pytest.raises(ValueError, match="num_particles must be a positive int, got 0"):
        model.score(x, num_particles=0)
    with pytest.raises(ValueError, match="proposal must be one of prior, posterior, got 'encoder'"):
        model.score(x, proposal="encoder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="per_feature must be True or False"):
        model.score(x, per_feature=1)  # type: ignore[arg-type]
