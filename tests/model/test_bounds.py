"""ELBO, IWAE and FIVO: exact likelihoods of linear-Gaussian models, and a filter written out particle by particle."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from bench.peers.eager import EagerVRNN
from tests.support.kalman import LinearGaussian, build
from tests.support.likelihoods import Outside
from vrnn_fast import VRNN, bounds
from vrnn_fast.resampling import Filter, ancestors, effective_sample_size, uniforms

X, H, Z, T, B, N = 5, 7, 3, 6, 4, 3
LENGTHS = torch.tensor([6, 0, 3, 1])
KINDS = ("elbo", "iwae", "fivo")
RESAMPLINGS = ("systematic", "stratified", "multinomial")


def model_and_data(executor: str, **options: Any) -> tuple[VRNN, Tensor]:
    model = VRNN(X, H, Z, backend=executor, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)  # weights that differ, so that the filter has something to do
    return model, torch.rand(T, B, X, dtype=torch.float64).round()


def noise(batch: int = B, steps: int = T, particles: int = N) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(steps, batch, particles, Z, dtype=torch.float64),
        torch.rand(steps, batch, particles, dtype=torch.float64),
    )


def written_out(
    eager: EagerVRNN, x: Tensor, eps: Tensor, uniforms: Tensor, kind: str, state: tuple[Tensor, ...], share: float
) -> tuple[Tensor, int]:
    """One sequence: x (T, X), eps (T, N, Z), uniforms (T, N), state of (H,) tensors. The bound, how often resampled."""
    steps, particles = uniforms.shape
    states = [tuple(s.unsqueeze(0) for s in state)] * particles
    sums = [x.new_zeros(())] * particles
    estimate, times = x.new_zeros(()), 0
    for t in range(steps):
        for n in range(particles):
            run = eager(x[t].reshape(1, 1, -1), eps[t, n].reshape(1, 1, -1), states[n])
            ratio = Normal(run.prior_mean, run.prior_std).log_prob(run.z) - Normal(run.mean, run.std).log_prob(run.z)
            sums[n] = sums[n] - run.nll.squeeze() + ratio.sum()
            states[n] = run.state
        weights = torch.softmax(torch.stack(sums), 0).tolist()
        if kind == "fivo" and t < steps - 1 and 1 / sum(w * w for w in weights) < share * particles:
            estimate = estimate + torch.stack(sums).logsumexp(0) - math.log(particles)
            parents = [next(i for i in range(particles) if u < sum(weights[: i + 1])) for u in uniforms[t].tolist()]
            states, sums, times = [states[i] for i in parents], [x.new_zeros(())] * particles, times + 1
    last = torch.stack(sums)
    return estimate + (last.mean() if kind == "elbo" else last.logsumexp(0) - math.log(particles)), times


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "outside"])
def test_values_and_gradients_are_those_of_the_bound_written_out(
    executor: str, kind: str, cell: str, likelihood: str
) -> None:
    chosen: Any = Outside() if likelihood == "outside" else likelihood
    model, x = model_and_data(executor, cell=cell, likelihood=chosen)
    eager = EagerVRNN(
        X, H, Z, cell=cell, likelihood="bernoulli" if likelihood == "outside" else likelihood,
        phi_x=(H, H), phi_z=(H,), encoder=(H, H), prior=(H,), decoder=(H, H),
    ).double()  # fmt: skip
    eager.load_state_dict(model.state_dict())
    eps, uniforms = noise()
    start = [torch.randn(1, B, H, dtype=torch.float64).requires_grad_() for _ in range(model.spec.state_tensors)]
    share, upstream = 0.9, torch.randn(B, dtype=torch.float64)
    found = model.bound(
        x,
        LENGTHS,
        objective=kind,
        num_particles=N,
        state=start[0] if cell == "gru" else tuple(start),
        eps=eps,
        uniforms=uniforms if kind == "fivo" else None,
        threshold=share,
    )
    expected, resampled = [], 0
    for b, length in enumerate(LENGTHS.tolist()):
        own = tuple(s[0, b] for s in start)
        value, times = written_out(eager, x[:length, b], eps[:length, b], uniforms[:length, b], kind, own, share)
        expected.append(value)
        resampled += times
    assert (resampled > 0) == (kind == "fivo")
    assert found[1] == 0
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=1e-12)
    found.backward(upstream)
    of_start = [s.grad for s in start]
    for s in start:
        s.grad = None
    torch.stack(expected).backward(upstream)
    for mine, s in zip(of_start, start, strict=True):
        torch.testing.assert_close(mine, s.grad, rtol=1e-8, atol=1e-11)
    for name, p in model.named_parameters():
        reached = eager.get_parameter(name).grad
        torch.testing.assert_close(p.grad, reached, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_kalman_filter_is_the_dense_marginal() -> None:
    exact = LinearGaussian.of(build(3, 2, 2, "reference"))
    for steps in (1, 2, 4):
        x = torch.randn(steps, 3, dtype=torch.float64)
        assert exact.filtered(x) == pytest.approx(exact.marginal(x), abs=1e-9)


@pytest.mark.parametrize("kind", ["iwae", "fivo"])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_bound_rises_to_the_exact_likelihood(executor: str, kind: str, steps: int) -> None:
    model, replicates = build(3, 2, 2, executor), 100
    exact = LinearGaussian.of(model)
    exact.write_posterior(model, wider=1.3, off=0.2)
    x, _ = model.generate(steps)
    log_likelihood = exact.filtered(x[:, 0])
    means, errors = [], []
    with torch.no_grad():
        for particles in (1, 8, 64, 4096):
            found = model.bound(x.expand(-1, replicates, -1), objective=kind, num_particles=particles)
            means.append(found.mean().item())
            errors.append(found.std().item() / replicates**0.5)
    assert means[0] < log_likelihood - 3 * errors[0]
    for i in range(3):
        assert means[i + 1] > means[i] - 3 * math.hypot(errors[i], errors[i + 1])
    assert abs(means[-1] - log_likelihood) < 3 * errors[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 6])
def test_with_the_exact_posterior_every_sample_has_the_likelihood(executor: str, kind: str, steps: int) -> None:
    model = build(3, 2, 2, executor, remembers=False)
    exact = LinearGaussian.of(model)
    exact.write_posterior(model)
    x = torch.randn(steps, 5, 3, dtype=torch.float64)
    log_likelihood = torch.tensor([exact.filtered(row) for row in x.unbind(1)], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            model.bound(x, objective=kind, num_particles=4), log_likelihood, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(("kind", "resampling"), [("iwae", "systematic"), *(("fivo", r) for r in RESAMPLINGS)])
def test_the_estimate_of_the_likelihood_has_no_bias(executor: str, kind: str, resampling: str) -> None:
    model, replicates = build(2, 2, 1, executor), 20_000
    x = torch.randn(3, 1, 2, dtype=torch.float64)
    exact = LinearGaussian.of(model)
    exact.write_posterior(model, wider=1.3, off=0.2)
    log_likelihood = exact.filtered(x[:, 0])
    with torch.no_grad():
        found = model.bound(
            x.expand(-1, replicates, -1), objective=kind, num_particles=3, resampling=resampling, threshold=0.8
        )  # type: ignore[arg-type]
    ratio = (found - log_likelihood).exp()
    assert abs(ratio.mean().item() - 1) < 3 * ratio.std().item() / replicates**0.5


def test_of_one_particle_all_are_the_same(executor: str) -> None:
    model, x = model_and_data(executor)
    eps, _ = noise(particles=1)
    found = [model.bound(x, objective=kind, num_particles=1, lengths=LENGTHS, eps=eps, threshold=1.0) for kind in KINDS]
    torch.testing.assert_close(found[1], found[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-13, atol=0)


def test_the_elbo_has_the_mean_of_the_forward_pass(executor: str) -> None:
    model, x = model_and_data(executor)
    particles = 20_000
    eps, _ = noise(particles=particles)
    with torch.no_grad():
        found = model.bound(x[:, :1], objective="elbo", num_particles=particles, eps=eps[:, :1])
        each = model(x[:, :1].expand(-1, particles, -1), eps=eps[:, 0]).elbo
        sampled = model.bound(
            x[:, :1].expand(-1, particles, -1), objective="elbo", num_particles=1, eps=eps[:, 0].unsqueeze(2)
        )
    torch.testing.assert_close(found[0], sampled.mean(), rtol=1e-10, atol=0)
    difference = each - sampled
    assert abs(difference.mean().item()) < 3 * difference.std().item() / particles**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_other_rows_change_nothing(executor: str, kind: str) -> None:
    model, x = model_and_data(executor, cell="lstm", likelihood="gaussian", cond_size=2)
    eps, uniforms = noise()
    cond, given = torch.randn(T, B, 2, dtype=torch.float64), uniforms if kind == "fivo" else None
    beyond = torch.arange(T)[:, None] >= LENGTHS
    x, cond = (t.masked_fill(beyond.unsqueeze(-1), float("nan")) for t in (x, cond))
    eps = eps.masked_fill(beyond[:, :, None, None], float("nan"))
    found = model.bound(x, objective=kind, num_particles=N, lengths=LENGTHS, eps=eps, uniforms=given, cond=cond)
    for b, length in enumerate(LENGTHS.tolist()):
        if length:
            real = slice(length), slice(b, b + 1)
            own = None if given is None else given[real]
            alone = model.bound(x[real], objective=kind, num_particles=N, eps=eps[real], uniforms=own, cond=cond[real])
            torch.testing.assert_close(found[b], alone[0], rtol=1e-10, atol=1e-12)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_of_one_sequence_with_a_length(executor: str, kind: str) -> None:
    """As an evaluation goes through a batch: its length is a view, with the lengths of others beside it."""
    model, x = model_and_data(executor)
    eps, uniforms = noise()
    given = uniforms if kind == "fivo" else None
    together = model.bound(x, objective=kind, num_particles=N, lengths=LENGTHS, eps=eps, uniforms=given)
    for b in LENGTHS.nonzero().flatten().tolist():
        one = slice(None), slice(b, b + 1)
        own = None if given is None else given[one]
        alone = model.bound(
            x[one], objective=kind, num_particles=N, lengths=LENGTHS[b : b + 1], eps=eps[one], uniforms=own
        )
        torch.testing.assert_close(alone[0], together[b], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_resets_and_masks_reach_every_particle(executor: str, kind: str) -> None:
    model, x = model_and_data(executor)
    eps, uniforms = noise()
    given = {"eps": eps} | ({"uniforms": uniforms, "threshold": 0.9} if kind == "fivo" else {})
    mask = torch.rand(T, B, X) < 0.7
    hidden = model.bound(
        x.masked_fill(~mask, float("nan")), objective=kind, num_particles=N, mask=mask, mask_inputs=True, **given
    )
    shown = model.bound(x * mask, objective=kind, num_particles=N, mask=mask, **given)
    torch.testing.assert_close(hidden, shown)
    assert (shown > model.bound(x * mask, objective=kind, num_particles=N, **given)).all()
    # a reset before step 3 makes two sequences of one; with the particles' weights kept apart as well
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    if kind == "elbo":
        parts = [model.bound(x[s], objective=kind, num_particles=N, eps=eps[s]) for s in (slice(3), slice(3, T))]
        torch.testing.assert_close(
            model.bound(x, objective=kind, num_particles=N, resets=resets, **given), parts[0] + parts[1]
        )
    assert not torch.equal(
        model.bound(x, objective=kind, num_particles=N, resets=resets, **given),
        model.bound(x, objective=kind, num_particles=N, **given),
    )


def test_without_a_threshold_the_filter_is_importance_sampling(executor: str) -> None:
    model, x = model_and_data(executor)
    eps, uniforms = noise()
    iwae = model.bound(x, objective="iwae", num_particles=N, lengths=LENGTHS, eps=eps)
    torch.testing.assert_close(
        model.bound(x, objective="fivo", num_particles=N, lengths=LENGTHS, eps=eps, uniforms=uniforms, threshold=0),
        iwae,
    )
    assert not torch.allclose(
        model.bound(x, objective="fivo", num_particles=N, lengths=LENGTHS, eps=eps, uniforms=uniforms, threshold=1.0),
        iwae,
    )
    one = model.bound(
        x[:1], objective="fivo", num_particles=N, eps=eps[:1], threshold=1.0
    )  # the last step is the first
    torch.testing.assert_close(one, model.bound(x[:1], objective="iwae", num_particles=N, eps=eps[:1]))


def test_one_state_serves_all_particles_and_batch_first_is_the_same(executor: str) -> None:
    model, x = model_and_data(executor)
    first, _ = model_and_data(executor, batch_first=True)
    first.load_state_dict(model.state_dict())
    eps, uniforms = noise()
    state = torch.randn(1, B, H, dtype=torch.float64)
    found = model.bound(x, objective="fivo", num_particles=N, lengths=LENGTHS, state=state, eps=eps, uniforms=uniforms)
    swapped = [t.transpose(0, 1) for t in (eps, uniforms)]
    torch.testing.assert_close(
        first.bound(
            x.transpose(0, 1),
            LENGTHS,
            objective="fivo",
            num_particles=N,
            state=state,
            eps=swapped[0],
            uniforms=swapped[1],
        ),
        found,
    )


def test_noise_is_drawn_once_eps_first(executor: str) -> None:
    model, x = model_and_data(executor)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    drawing = generator()
    eps = torch.randn(T, B, N, Z, generator=drawing, dtype=torch.float64)
    u = torch.rand(T, B, 1, generator=drawing, dtype=torch.float64)
    uniforms = (torch.arange(N) + u) / N
    found = model.bound(x, objective="fivo", num_particles=N, generator=generator(), threshold=0.9)
    assert torch.equal(
        found, model.bound(x, objective="fivo", num_particles=N, eps=eps, uniforms=uniforms, threshold=0.9)
    )
    assert torch.equal(
        model.bound(x, objective="iwae", num_particles=N, generator=generator()),
        model.bound(x, objective="iwae", num_particles=N, eps=eps),
    )


def test_ancestors_follow_the_weights() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]])
    quantiles = torch.tensor([[0.0, 0.499, 0.501, 0.749, 0.751, 1.0]])
    assert ancestors(weights.log() - 1e3, quantiles).tolist() == [[1, 1, 3, 3, 4, 4]]
    even = uniforms("systematic", 1, 1, 6, weights, None)[0]
    assert ancestors(torch.zeros(1, 6), even).tolist() == [[0, 1, 2, 3, 4, 5]]
    size = effective_sample_size(torch.tensor([[0.0, 0.0, -torch.inf], [5.0, -200.0, -200.0], [-9e3] * 3]))
    torch.testing.assert_close(size, torch.tensor([2.0, 1.0, 3.0]))


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_uniforms_are_uniform(resampling: Any) -> None:
    drawn = uniforms(resampling, 100, 100, 4, torch.zeros((), dtype=torch.float64), None)
    assert drawn.shape == (100, 100, 4)
    ordered = drawn.flatten().sort().values
    off = (ordered - torch.linspace(0, 1, len(ordered), dtype=torch.float64)).abs().max().item()
    assert off < 1.95 / len(ordered) ** 0.5 * (1 if resampling == "multinomial" else 2)  # Kolmogorov and Smirnov, 0.1 %
    if resampling != "multinomial":
        assert torch.equal((drawn * 4).long(), torch.arange(4).expand_as(drawn))
    if resampling == "systematic":
        torch.testing.assert_close(drawn[..., 1:] - drawn[..., :-1], torch.full_like(drawn[..., 1:], 0.25))


def test_no_weight_at_all_is_minus_infinity() -> None:
    log_weights = torch.tensor([[[0.0, -torch.inf], [-torch.inf, -torch.inf]]])
    resampled = torch.zeros(1, 2, dtype=torch.bool)
    for found in (bounds.iwae(log_weights), bounds.fivo(log_weights, resampled)):
        torch.testing.assert_close(found, torch.tensor([math.log(0.5), -torch.inf]))


def root_mean_square(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_16_bits_are_added_up_as_if_exactly(kind: str, dtype: torch.dtype) -> None:
    """Of the bound and of its gradient no more is lost than by rounding them once."""
    log_weights = (torch.randn(200, 16, 8, dtype=torch.float64) - 1).to(dtype)
    resampled = torch.rand(200, 16) < 0.1
    found = []
    for weights in (log_weights.clone().requires_grad_(), log_weights.double().requires_grad_()):
        bound = bounds.fivo(weights, resampled) if kind == "fivo" else getattr(bounds, kind)(weights)
        assert bound.dtype == weights.dtype
        bound.backward(torch.ones_like(bound))
        assert weights.grad is not None
        found.append((bound.detach(), weights.grad))
    for ours, exact in zip(*found, strict=True):
        assert root_mean_square(ours - exact) <= 2 * root_mean_square(exact.to(dtype) - exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits_draw_the_ancestors_of_their_exact_sums(dtype: torch.dtype) -> None:
    log_weights = (0.3 * torch.randn(200, 16 * 8, dtype=torch.float64) - 1).to(dtype)
    drawn = uniforms("stratified", 200, 16, 8, torch.zeros((), dtype=dtype), None)
    filters = [Filter(u, 0.5, None) for u in (drawn, drawn.double())]
    for weights in log_weights:
        filters[0].step(weights, ())
        filters[1].step(weights.double(), ())
    ours, exact = (torch.stack(particles.ancestors) for particles in filters)
    assert torch.equal(ours, exact)
    assert 0 < (exact >= 0).sum() < exact.numel()


def test_compiled_without_a_break_at_any_size(executor: str) -> None:
    model = VRNN(X, H, Z, backend=executor)
    compiled = torch.compile(model.bound, fullgraph=True, dynamic=True, backend="eager")
    drawn: list[Tensor] = []
    for bound in (model.bound, compiled):
        torch.manual_seed(1)
        drawn.append(bound(torch.ones(2, 3, X), objective="iwae", num_particles=4))
    torch.testing.assert_close(drawn[1], drawn[0])
    eps, uniforms = (t.float() for t in noise(steps=2))
    given = {"objective": "fivo", "num_particles": N, "eps": eps, "uniforms": uniforms}
    x, lengths = torch.ones(2, B, X), LENGTHS.clamp(max=2)
    torch.testing.assert_close(compiled(x, lengths, **given), model.bound(x, lengths, **given))


def test_explain_tells_how_the_filter_runs() -> None:
    assert "every bound as forward" in VRNN(X, H, Z, backend="cpu").explain()
    assert "fivo go step by step, for the likelihood is" in VRNN(X, H, Z, backend="cpu", likelihood=Outside()).explain()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "objective": ({"objective": "vae"}, ValueError, "objective must be one of elbo, iwae, fivo, got 'vae'"),
    "num_particles": ({"num_particles": 0}, ValueError, "num_particles must be a positive int, got 0"),
    "resampling": (
        {"resampling": "residual"},
        ValueError,
        "resampling must be one of systematic, stratified, multinomial, got 'residual'",
    ),
    "threshold": ({"threshold": 1.5}, ValueError, "threshold must be a number from 0 to 1, got 1.5"),
    "threshold NaN": ({"threshold": float("nan")}, ValueError, "threshold must be a number from 0 to 1, got nan"),
    "threshold text": ({"threshold": "half"}, TypeError, "threshold must be a number from 0 to 1, got 'half'"),
    "x": ({"x": torch.rand(T, B, 2)}, ValueError, "x must have shape (T, B, input_size = 5), got (6, 4, 2)"),
    "lengths": ({"lengths": torch.tensor([9, 1, 1, 1])}, ValueError, "lengths must be at most T = 6"),
    "eps": (
        {"eps": torch.randn(T, B * N, Z)},
        ValueError,
        "eps must have 4 dimensions (T = 6, B = 4, num_particles = 3, Z = 3), got 3: shape (6, 12, 3)",
    ),
    "uniforms": (
        {"uniforms": torch.rand(T, B, N + 1)},
        ValueError,
        "uniforms must have shape (T = 6, B = 4, num_particles = 3), got (6, 4, 4)",
    ),
    "uniforms beyond": ({"uniforms": torch.full((T, B, N), 1.5)}, ValueError, "uniforms must lie from 0 to 1"),
    "uniforms NaN": ({"uniforms": torch.full((T, B, N), float("nan"))}, ValueError, "uniforms must lie from 0 to 1"),
    "uniforms for nothing": (
        {"objective": "iwae", "uniforms": torch.rand(T, B, N)},
        ValueError,
        "uniforms are for objective='fivo' to resample with, got objective='iwae'",
    ),
    "generator for nothing": (
        {"objective": "elbo", "eps": torch.randn(T, B, N, Z), "generator": torch.Generator()},
        ValueError,
        "leave out generator: eps is given",
    ),
    "generator for nothing of two": (
        {"eps": torch.randn(T, B, N, Z), "uniforms": torch.rand(T, B, N), "generator": torch.Generator()},
        ValueError,
        "leave out generator: eps and uniforms are given",
    ),
    "state of the particles": (
        {"state": torch.zeros(1, B * N, H)},
        ValueError,
        "state must have shape (num_layers = 1, B = 4, hidden_size = 7), got (1, 12, 7)",
    ),
    "cond": ({"cond": torch.zeros(T, B, 2)}, ValueError, "cond must be left out: this model"),
    "mask_inputs": ({"mask_inputs": True}, ValueError, "mask_inputs needs a mask"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_have_their_own_words(case: str) -> None:
    arguments, kind, words = BAD[case]
    with pytest.raises(kind, match=re.escape(words)):
        VRNN(X, H, Z).bound(**{"x": torch.rand(T, B, X), "objective": "fivo", "num_particles": N, **arguments})


def test_check_looks_at_x() -> None:
    model, x = VRNN(X, H, Z, check_values=True), torch.rand(T, B, X)
    x[2, 1, 0] = float("nan")
    with pytest.raises(ValueError, match=re.escape("x[2, 1, 0] is nan")):
        model.bound(x, objective="iwae", num_particles=N)
