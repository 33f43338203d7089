from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from tests.support.likelihoods import ScaledLaplace
from tests.support.oracle import Errors
from vrnn_fast import (
    VRNN,
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    FeatureMixture,
    FixedGaussian,
    Gamma,
    Gaussian,
    GaussianMixture,
    Handwriting,
    ItakuraSaito,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    SharedMixture,
    StudentT,
)
from vrnn_fast.executors import reference
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.likelihoods import as_likelihood


def test_bernoulli_is_finite_at_any_logit() -> None:
    raw = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], requires_grad=True)
    for target in (0.0, 1.0):
        nll = -Bernoulli().log_prob(raw.unsqueeze(-1), torch.full((7, 1), target))
        exact = torch.nn.functional.softplus(raw.double() if target == 0 else -raw.double(), threshold=1e3)
        torch.testing.assert_close(nll.double(), exact, rtol=1e-6, atol=1e-37)
        (gradient,) = torch.autograd.grad(nll.sum(), raw)
        sign = 1 - 2 * target
        exact = sign * torch.sigmoid(sign * raw.detach().double())
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-6, atol=1e-37)


def test_bernoulli_obeys_the_law_at_any_logit_through_every_executor(executor: str) -> None:
    """Of what is certain to be wrong, by 1e4 nats, and of what is almost sure, by 1e-7: each by its own size."""
    model = VRNN(3, 4, 2, backend=executor)
    with torch.no_grad():
        model.dec_mean[0].bias.copy_(torch.tensor([1e4, -1e4, 16.0]))
    x = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]])
    plain = copy.deepcopy(model)
    plain.backend = "reference"
    exact = copy.deepcopy(plain).double()

    def results(m: VRNN, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
        nll = m(x, eps=eps).nll
        found = {f"nll[{t}]": nll[t].detach() for t in range(2)}
        for t in range(2):
            gradients = torch.autograd.grad(nll[t].sum(), tuple(m.parameters()), retain_graph=True, allow_unused=True)
            for (name, p), gradient in zip(m.named_parameters(), gradients, strict=True):
                found[f"d nll[{t}] / d {name}"] = torch.zeros_like(p) if gradient is None else gradient
        return found

    errors = Errors(torch.float32)
    for _ in range(6):
        eps = torch.randn(2, 1, 2)
        errors.add(results(model, x, eps), results(plain, x, eps), results(exact, x.double(), eps.double()))
    errors.assert_at_most_twice_torchs()


def test_gaussian_agrees_with_torch() -> None:
    raw, x = torch.randn(3, 2, 8, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    likelihood = Gaussian(floor=0.25)
    mean, std = likelihood.prediction(raw)
    torch.testing.assert_close(std, torch.nn.functional.softplus(raw[..., 4:]) + 0.25)
    torch.testing.assert_close(likelihood.log_prob(raw, x), Normal(mean, std).log_prob(x).sum(-1))
    assert torch.equal(likelihood.mean(raw), raw[..., :4])


def test_constant_real_valued_data_trains_without_nan(executor: str) -> None:
    model = VRNN(4, 16, 3, likelihood="gaussian", backend=executor)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x = torch.full((10, 8, 4), 0.5)  # the density of what never varies has no bound but the floor's
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = model(x).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[-1] < losses[0] - 1
    assert losses[-1] > 4 * torch.log(torch.tensor(1e-3)).item()


def test_temperature_scales_the_spread() -> None:
    raw = torch.cat([torch.zeros(4000, 1), torch.ones(4000, 1)], 1)
    wide, narrow = (Gaussian().sample(raw, temperature, torch.Generator().manual_seed(3)) for temperature in (2.0, 0.5))
    torch.testing.assert_close(wide, 4 * narrow)
    logits = torch.full((4000, 1), 1.0)
    cold = Bernoulli().sample(logits, 0.05, torch.Generator().manual_seed(3))
    assert cold.mean() == 1
    assert set(Bernoulli().sample(logits, 1.0).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-300, 1e-160, 1e-20, 1.0, 1e20, 1e300])
def test_a_gamma_at_any_temperature(dtype: torch.dtype, temperature: float) -> None:
    """Its mean where that is cold, and some number at least where it is hot."""
    likelihood, raw = Gamma(2.0), torch.linspace(-3, 3, 7, dtype=dtype)
    x = likelihood.sample(raw, temperature, torch.Generator().manual_seed(0))
    assert x.dtype == dtype
    assert (x >= 0).all()
    assert x.isfinite().all()
    if temperature < 1e-10:
        torch.testing.assert_close(x, likelihood.mean(raw))


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 257), (torch.float16, 2049)])
def test_classes_are_counted_exactly(dtype: torch.dtype, most: int) -> None:
    """The last class and the one before are two numbers still, and of one more class the dtype would lose one."""
    for last in (most - 2, most - 1):
        logits = torch.zeros(most, dtype=dtype)
        logits[last] = 100
        drawn = Categorical(most).sample(logits)
        assert drawn.item() == last
        assert Categorical(most).log_prob(logits, drawn) == 0
    more, logits = Categorical(most + 1), torch.zeros(most + 1, dtype=dtype)
    words = f"classes must be at most {most} in {dtype}, got {most + 1}"
    for method in (more.sample, more.mean, more.prediction):
        with pytest.raises(ValueError, match=words):
            method(logits)
    with pytest.raises(ValueError, match=words):
        more.log_prob(logits.float(), torch.zeros(1, dtype=dtype))
    torch.testing.assert_close(more.log_prob(logits.float(), torch.tensor([most])), -torch.tensor(most + 1.0).log())


def test_a_likelihood_of_the_users_own(executor: str) -> None:
    model = VRNN(3, 5, 2, likelihood=ScaledLaplace(), backend=executor)
    assert {"dec_mean.weight", "dec_log_scale.weight"} <= set(model.state_dict())
    x = torch.randn(4, 2, 3)
    lengths = torch.tensor([4, 2])
    x[2:, 1] = float("nan")
    out = model(x, lengths=lengths, outputs=("prediction",))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (out.nll[2:, 1] == 0).all()
    assert (out.prediction[2:, 1] == 0).all()
    assert (out.nll[:2] != 0).all()
    assert model.step(x[0], out.state).nll.shape == (2,)
    assert model.generate(5, batch_size=2)[0].shape == (5, 2, 3)


class SharedStd(Likelihood, nn.Module):
    """One standard deviation per feature, learned, whatever the state."""

    def __init__(self, features: int) -> None:
        nn.Module.__init__(self)
        self.log_std = nn.Parameter(torch.zeros(features))

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return Normal(raw, self.log_std.exp()).log_prob(x).sum(-1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw


def test_a_likelihood_with_parameters_trains_with_the_model(executor: str) -> None:
    model = VRNN(3, 5, 2, likelihood=SharedStd(3), backend=executor)
    assert "likelihood.log_std" in model.state_dict()
    model(torch.randn(4, 2, 3), outputs=("prediction",)).loss.backward()
    assert model.get_parameter("likelihood.log_std").grad.abs().sum() > 0
    assert copy.deepcopy(model).generate(3, sample_output=False)[0].shape == (3, 1, 3)


def test_the_users_density_meets_the_fused_one(executor: str) -> None:
    class Own(Gaussian):
        def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
            mean, std = self.prediction(raw)
            return Normal(mean, std).log_prob(x).sum(-1)

    assert Own().fused == "external"
    assert Gaussian().fused == "gaussian"
    fused = VRNN(3, 5, 2, likelihood="gaussian", backend=executor, dtype=torch.float64)
    outside = VRNN(3, 5, 2, likelihood=Own(), backend=executor, dtype=torch.float64)
    outside.load_state_dict(fused.state_dict())
    x, eps = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 2, dtype=torch.float64)
    lengths = torch.tensor([2, 4])
    for model in (fused, outside):
        model(x, lengths=lengths, eps=eps).loss.backward()
    torch.testing.assert_close(outside(x, lengths, eps=eps).nll, fused(x, lengths, eps=eps).nll)
    for (name, p), q in zip(fused.named_parameters(), outside.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")


class LogNormal(SharedStd):
    """A density with an edge, and parameters that a step beyond it would poison."""

    @property
    def support(self) -> constraints.Constraint:
        return constraints.positive

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return Normal(raw, self.log_std.exp()).log_prob(x.log()).sum(-1) - x.log().sum(-1)


def test_padding_never_reaches_a_likelihood(executor: str) -> None:
    model = VRNN(3, 5, 2, likelihood=LogNormal(3), backend=executor, check_values=True)
    x, lengths, eps = torch.rand(4, 3, 3) + 0.1, torch.tensor([0, 4, 2]), torch.randn(4, 3, 2)
    results = []
    for padding in (-1.0, float("nan")):
        given = torch.where(torch.arange(4)[:, None, None] < lengths[:, None], x, padding).requires_grad_()
        model.zero_grad()
        out = model(given, lengths, eps=eps)
        out.loss.backward()
        assert (out.nll[2:, 2] == 0).all()
        assert (given.grad[2:, 2] == 0).all()
        results.append((out.nll, given.grad, *(p.grad for p in model.parameters())))
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_what_is_outside_of_the_support_is_named_where_asked(executor: str) -> None:
    for likelihood, bad, support in ((LogNormal(3), 0.0, "GreaterThan"), ("bernoulli", 1.5, "Interval")):
        for batch_first in (False, True):
            model = VRNN(3, 5, 2, likelihood=likelihood, backend=executor, batch_first=batch_first, check_values=True)
            x = torch.full((4, 2, 3), 0.5)
            x[2, 1, 0] = bad
            place = "x[1, 2, 0]" if batch_first else "x[2, 1, 0]"
            with pytest.raises(ValueError, match=re.escape(f"{place} is {bad}: expected finite values in {support}(")):
                model(x.transpose(0, 1) if batch_first else x)
            with pytest.raises(ValueError, match=re.escape(f"x_t[1, 0] is {bad}: expected finite values in {support}")):
                model.step(x[2], None)
            model(x[:2].transpose(0, 1) if batch_first else x[:2])


def test_a_width_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"raw must have 2 X values in its last dimension, got shape \(4, 3\)"):
        Gaussian().log_prob(torch.zeros(4, 3), torch.zeros(4, 1))
    for likelihood, width in ((Bernoulli(), 2), (Gaussian(), 4)):
        with pytest.raises(ValueError, match=r"x must have X = 2 features as raw has, got shape \(4, 1\)"):
            likelihood.log_prob(torch.zeros(4, width), torch.zeros(4, 1))


def test_arguments() -> None:
    assert isinstance(as_likelihood("bernoulli"), Bernoulli)
    own = Gaussian(0.1)
    assert as_likelihood(own) is own
    with pytest.raises(ValueError, match="likelihood must be 'bernoulli', 'gaussian' or a Likelihood object, got 'poi"):
        as_likelihood("poisson")
    with pytest.raises(TypeError, match="likelihood must be"):
        as_likelihood(Bernoulli)  # type: ignore[arg-type]
    for bad in (0, -1.0, float("nan"), "small"):
        with pytest.raises(ValueError, match="floor must be a number > 0"):
            Gaussian(bad)  # type: ignore[arg-type]


FAMILY = [
    FixedGaussian(0.5),
    GaussianMixture(4),
    FeatureMixture(4),
    SharedMixture(4),
    Handwriting(4),
    DiscretizedLogisticMixture(2, bins=5),
    Categorical(5),
    Gamma(),
    Gamma(2.0),
    ItakuraSaito(),
    Ordinal(4),
    Poisson(),
    NegativeBinomial(),
    StudentT(),
]
family = pytest.mark.parametrize("likelihood", FAMILY, ids=repr)


def family_data(likelihood: Likelihood, steps: int, batch: int) -> Tensor:
    """(T, B, 3), inside the support of this likelihood."""
    likelihood = copy.deepcopy(likelihood)
    if isinstance(likelihood, nn.Module):
        likelihood.double().requires_grad_(False)
    width = sum(likelihood.heads(3).values())
    return likelihood.sample(torch.randn(steps, batch, width, dtype=torch.float64)).clamp(min=-9)


@family
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_family_runs_through_every_executor(executor: str, likelihood: Likelihood, cell: str) -> None:
    options = {"cell": cell, "dtype": torch.float64, "check_values": True}
    model, oracle = (
        VRNN(3, 6, 2, backend=backend, likelihood=copy.deepcopy(likelihood), **options)
        for backend in (executor, "reference")
    )
    oracle.load_state_dict(model.state_dict())
    x, eps = family_data(likelihood, 5, 4), torch.randn(5, 4, 2, dtype=torch.float64)
    lengths = torch.tensor([0, 5, 3, 1])
    real = torch.arange(5)[:, None] < lengths
    out = model(torch.where(real[..., None], x, float("nan")), lengths, eps=eps, outputs=("prediction",))
    out.loss.backward()
    assert (out.nll[~real] == 0).all()
    for part in pytree.tree_leaves(out.prediction):
        assert part.shape[:2] == (5, 4)
        assert (part[~real] == 0).all()

    # row by row, without padding
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        if length:
            alone = oracle(x[:length, row : row + 1], eps=eps[:length, row : row + 1], outputs=("prediction",))
            torch.testing.assert_close(out.nll[:length, row], alone.nll[:, 0])
            ours, theirs = pytree.tree_leaves(out.prediction), pytree.tree_leaves(alone.prediction)
            torch.testing.assert_close([p[:length, row] for p in ours], [p[:, 0] for p in theirs])
            total = total + (alone.nll + alone.kl).sum()
    (total / 9).backward()
    torch.testing.assert_close(out.loss, total / 9)
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert p.grad.isfinite().all()
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@family
def test_the_family_is_masked(executor: str, likelihood: Likelihood) -> None:
    """Through every executor; what was not observed, and padding, may hold anything."""
    model = VRNN(3, 6, 2, backend=executor, likelihood=likelihood, dtype=torch.float64)
    x, eps = family_data(likelihood, 5, 4), torch.randn(5, 4, 2, dtype=torch.float64)
    lengths, mask = torch.tensor([0, 5, 3, 1]), torch.rand(5, 4, 3) < 0.6
    mask[1, 1] = False
    real = torch.arange(5)[:, None] < lengths
    nan = torch.where(mask & real[..., None], x, float("nan")).requires_grad_()
    out = model(nan, lengths, eps=eps, mask=mask, mask_inputs=True)
    parameters, start = list(model._reader(model)), (torch.zeros(4, 6, dtype=torch.float64),)
    shown = reference.run(model.spec, parameters, Batch(torch.where(mask, x, 0), eps, start, lengths), Want(raw=True))
    torch.testing.assert_close(out.kl, shown.kl)
    expected = model.likelihood.marginal_log_prob(shown.raw, x, mask)
    torch.testing.assert_close(out.nll, -torch.where(real, expected, 0))
    assert out.nll[1, 1].item() == pytest.approx(0, abs=1e-14)
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (*model.parameters(), nan))


@family
def test_the_family_streams_and_generates(executor: str, likelihood: Likelihood) -> None:
    model = VRNN(3, 6, 2, backend=executor, likelihood=likelihood, dtype=torch.float64, batch_first=True)
    x, eps = family_data(likelihood, 4, 5), torch.randn(4, 5, 2, dtype=torch.float64)
    whole = model(x, eps=eps, outputs=("prediction",))
    state = None
    for t in range(5):
        step = model.step(x[:, t], state, eps[:, t])
        torch.testing.assert_close(step.nll, whole.nll[:, t])
        shapes = [p[:, 0].shape for p in pytree.tree_leaves(whole.prediction)]
        assert [p.shape for p in pytree.tree_leaves(step.prediction)] == shapes
        state = step.state
    for mean in (False, True):
        drawn, again = (
            model.generate(
                6, prefix=x, temperature=0.8, sample_output=not mean, generator=torch.Generator().manual_seed(1)
            )[0]
            for _ in range(2)
        )
        assert drawn.shape == (4, 6, 3)
        assert torch.equal(drawn, again)
        assert drawn.isfinite().all()
        assert mean or likelihood.support.check(drawn).all()


@family
def test_the_family_is_saved_and_copied(likelihood: Likelihood) -> None:
    model = VRNN(3, 6, 2, likelihood=likelihood)
    x, eps = family_data(likelihood, 4, 2).float(), torch.randn(4, 2, 2)
    other = VRNN(3, 6, 2, likelihood=likelihood)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x, eps=eps).nll, model(x, eps=eps).nll)


@family
def test_the_family_compiles_whole(executor: str, likelihood: Likelihood) -> None:
    torch._dynamo.reset()
    model = VRNN(3, 6, 2, likelihood=likelihood, backend=executor, check_values=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x, eps, lengths = family_data(likelihood, 3, 2).float(), torch.randn(3, 2, 2), torch.tensor([2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compiled(x, lengths, eps=eps, outputs=("prediction",))
    expected = model(x, lengths, eps=eps, outputs=("prediction",))
    torch.testing.assert_close(pytree.tree_leaves(found), pytree.tree_leaves(expected))
    if likelihood.support is not constraints.real:
        with pytest.raises(RuntimeError, match="x must be finite, and lie in the support of the likelihood"):
            compiled(x - 100, lengths, eps=eps, outputs=("prediction",))


def test_the_family_is_exported() -> None:
    for likelihood in (
        GaussianMixture(2),
        FeatureMixture(2),
        SharedMixture(2),
        Handwriting(2),
        DiscretizedLogisticMixture(2),
    ):
        model = VRNN(3, 4, 2, likelihood=likelihood)
        given = {"x": family_data(likelihood, 3, 2).float(), "eps": torch.randn(3, 2, 2), "outputs": ("prediction",)}
        file = io.BytesIO()
        torch.export.save(torch.export.export(model, (), given), file)
        file.seek(0)
        found = torch.export.load(file).module()(**given)
        assert type(found.prediction) is type(model(**given).prediction)
        torch.testing.assert_close(pytree.tree_leaves(found), pytree.tree_leaves(model(**given)))


def test_a_family_that_does_not_fit_the_input() -> None:
    with pytest.raises(ValueError, match=r"Handwriting needs input_size = 3 \(offset, offset, pen\), got 4"):
        VRNN(4, 6, 2, likelihood=Handwriting(2))
    model = VRNN(3, 6, 2, likelihood=Categorical(5), check_values=True)
    x = torch.zeros(2, 2, 3)
    x[1, 0, 2] = 0.5
    message = "x[1, 0, 2] is 0.5: expected finite values in IntegerInterval(lower_bound=0, upper_bound=4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(x)
    model.check_values = False
    assert model(x).nll[1, 0] == math.inf


def with_heads(heads: object, base: type[Likelihood] = Likelihood) -> Likelihood:
    return type("Own", (base,), {"heads": heads})()  # type: ignore[no-any-return]


def test_heads_that_cannot_be_are_named() -> None:
    for heads, base, error, message in (
        (
            ("dec_mean",),
            Likelihood,
            TypeError,
            r"likelihood.heads must be a method, heads\(features\), got \('dec_mean',\)",
        ),
        (
            lambda self, x: ["dec_mean"],
            Likelihood,
            TypeError,
            r"must return a mapping of names to widths, got \['dec_m",
        ),
        (lambda self, x: {"mean": x}, Likelihood, ValueError, r"must be distinct names .* got \('mean',\)"),
        (lambda self, x: {}, Likelihood, ValueError, r"must be distinct names .* got \(\)"),
        (lambda self, x: {"dec_a": x, "dec_a.0": x}, Likelihood, ValueError, "must be distinct names"),
        (lambda self, x: {"dec_mean": 0}, Likelihood, ValueError, "head 'dec_mean' must be a positive int, got 0"),
        (lambda self, x: {"dec_mean": x / 2}, Likelihood, ValueError, "must be a positive int, got 1.0"),
        (lambda self, x: {"dec_mean": x}, Gaussian, ValueError, r"gaussian likelihood reads heads of widths \[2, 2\]"),
    ):
        with pytest.raises(error, match=message):
            VRNN(2, 2, 2, likelihood=with_heads(heads, base))
