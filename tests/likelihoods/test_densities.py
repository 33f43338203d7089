"""Every likelihood against integrals and sums, against torch.distributions, at extremes, and its own draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from itertools import product

import pytest
import torch
import torch.distributions as D
from torch import Tensor

from tests.support.likelihoods import Laplace
from tests.support.oracle import assert_at_most_twice_torchs
from vrnn_fast import (
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
from vrnn_fast.likelihoods import softplus

F64 = torch.float64
LADDER = DiscretizedLogisticMixture(3, bins=7, low=-2.0, high=1.0)
torch.manual_seed(0)
SHARED = SharedMixture(2, 0.1, math.log(2), width=5).double()
EVERY = {
    "bernoulli": (Bernoulli(), 2),
    "gaussian": (Gaussian(), 2),
    "fixed": (FixedGaussian(0.7), 2),
    "of features": (FeatureMixture(3, beta=0.7), 2),
    "shared": (SHARED, 2),
    "mixture": (GaussianMixture(3), 2),
    "handwriting": (Handwriting(3), 3),
    "logistic": (LADDER, 2),
    "categorical": (Categorical(4), 2),
    "exponential": (Gamma(), 2),
    "gamma": (Gamma(2.5), 2),
    "itakura-saito": (ItakuraSaito(), 2),
    "ordinal": (Ordinal(4), 2),
    "poisson": (Poisson(), 2),
    "negative binomial": (NegativeBinomial(), 2),
    "student": (StudentT(), 2),
}
every = pytest.mark.parametrize(("likelihood", "features"), EVERY.values(), ids=EVERY.keys())


def width(likelihood: Likelihood, features: int) -> int:
    return sum(likelihood.heads(features).values())


def of(likelihood: Likelihood, dtype: torch.dtype) -> Likelihood:
    """The same one, its parameters, if it has any, of this dtype."""
    return copy.deepcopy(likelihood).to(dtype) if isinstance(likelihood, torch.nn.Module) else likelihood


def raws(likelihood: Likelihood, features: int, *leading: int) -> Tensor:
    """Uniform on [-1, 1]: standard deviations that the grids of :func:`points` resolve."""
    return 2 * torch.rand(*leading, width(likelihood, features), dtype=F64) - 1


def line(low: float, high: float, points: int) -> tuple[Tensor, float]:
    """Points of the trapezoidal rule, which converges faster than any power for what vanishes at both ends."""
    return torch.linspace(low, high, points, dtype=F64), (high - low) / (points - 1)


def moments(likelihood: Likelihood, raw: Tensor, x: Tensor, weight: Tensor | float) -> tuple[float, Tensor, Tensor]:
    """Total mass, mean and variance of the features, from points x (N, X) that each stand for a volume ``weight``."""
    mass = likelihood.log_prob(raw, x).exp() * weight
    mean = (mass.unsqueeze(-1) * x).sum(0)
    return mass.sum().item(), mean, (mass.unsqueeze(-1) * (x - mean).square()).sum(0)


def points(likelihood: Likelihood, features: int) -> tuple[Tensor, Tensor | float]:
    """Where to evaluate a density for its integral, or a probability for its sum, and the weights."""
    if isinstance(likelihood, Handwriting):
        grid, step = line(-20, 20, 401)
        return torch.cartesian_prod(grid, grid, torch.tensor([0.0, 1.0], dtype=F64)), step * step
    if isinstance(likelihood, Gamma):  # over u = log x, dx = x du
        grid, step = line(-60, 8, 801)
        x = torch.cartesian_prod(*[grid.exp()] * features).reshape(-1, features)
        return x, x.prod(-1) * step**features
    if isinstance(likelihood, StudentT):  # over u = asinh x, whose tails vanish as fast as others'
        grid, step = line(-25, 25, 801)
        x = torch.cartesian_prod(*[grid.sinh()] * features).reshape(-1, features)
        return x, (1 + x.square()).sqrt().prod(-1) * step**features
    levels = {
        Bernoulli: torch.arange(2, dtype=F64),
        Categorical: torch.arange(4, dtype=F64),
        Ordinal: torch.arange(4, dtype=F64),
        Poisson: torch.arange(60, dtype=F64),
        NegativeBinomial: torch.arange(300, dtype=F64),
        DiscretizedLogisticMixture: -2 + 0.5 * torch.arange(7, dtype=F64),
    }.get(type(likelihood))
    step = 1.0
    if levels is None:
        levels, step = line(-20, 20, 401)
    return torch.cartesian_prod(*[levels] * features).reshape(-1, features), step**features


@pytest.mark.parametrize(
    ("name", "features"),
    [(n, f) for n in EVERY for f in ((3,) if n == "handwriting" else (1, 2)) if n != "itakura-saito"],
)
def test_mass_is_one_and_the_mean_is_the_mean(name: str, features: int) -> None:
    likelihood = EVERY[name][0]
    x, weight = points(likelihood, features)
    for raw in raws(likelihood, features, 4):
        mass, mean, _ = moments(likelihood, raw, x, weight)
        assert mass == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(likelihood.mean(raw), mean, rtol=1e-10, atol=1e-12)


def test_itakura_saito_is_the_density_of_the_logarithm() -> None:
    """exp(log_prob - 1) integrates to one over log x, and the gradient is the exponential's."""
    grid, step = line(-60, 8, 1401)
    x = grid.exp().unsqueeze(-1)
    for raw in torch.randn(4, 1, dtype=F64):
        assert ((ItakuraSaito().log_prob(raw, x) - 1).exp() * step).sum().item() == pytest.approx(1, abs=1e-12)
    raw, x = torch.randn(5, 3, dtype=F64, requires_grad=True), torch.rand(5, 3, dtype=F64)
    y = raw.exp()
    formula = -(x / y - torch.log(x / y) - 1).sum(-1)
    torch.testing.assert_close(ItakuraSaito(min_mean=0).log_prob(raw, x), formula)
    ours, exponential = (
        torch.autograd.grad(likelihood.log_prob(raw, x).sum(), raw)[0] for likelihood in (ItakuraSaito(), Gamma())
    )
    torch.testing.assert_close(ours, exponential)


@every
def test_gradcheck(likelihood: Likelihood, features: int) -> None:
    raw = raws(likelihood, features, 3).requires_grad_()
    x = likelihood.sample(raw.detach())
    assert torch.autograd.gradcheck(lambda raw: likelihood.log_prob(raw, x), raw)
    assert torch.autograd.gradcheck(likelihood.mean, raw)
    if likelihood.support in (D.constraints.real, D.constraints.positive, D.constraints.nonnegative):
        assert torch.autograd.gradcheck(lambda x: likelihood.log_prob(raw.detach(), x), x.requires_grad_())


def alone(likelihood: Likelihood, feature: int) -> tuple[Tensor, Tensor]:
    """Every value of one feature, and the weights of its integral."""
    if isinstance(likelihood, Handwriting):
        if feature == 2:
            return torch.tensor([0.0, 1.0], dtype=F64), torch.ones(2, dtype=F64)
        values, step = line(-20, 20, 401)
        return values, torch.full_like(values, step)
    x, weight = points(likelihood, 1)
    values, weights = x[:, 0], weight * torch.ones(len(x), dtype=F64)
    return values, weights / values / math.e if isinstance(likelihood, ItakuraSaito) else weights


@every
@pytest.mark.parametrize("seen", [0, 1])
def test_what_was_not_observed_is_integrated_out(likelihood: Likelihood, features: int, seen: int) -> None:
    """The other features over all their values; with none observed there is nothing left to say."""
    raw = raws(likelihood, features)
    x = likelihood.sample(raw).detach()
    observed = torch.arange(features) == seen
    values, weights = zip(*(alone(likelihood, f) for f in range(features) if f != seen), strict=True)
    others = x.expand(math.prod(map(len, values)), features).clone()
    others[:, ~observed] = torch.cartesian_prod(*values).reshape(len(others), -1)
    volume = torch.cartesian_prod(*weights).reshape(len(others), -1).prod(-1)
    mass = (likelihood.log_prob(raw, others).exp() * volume).sum().item()
    hidden = torch.where(observed, x, float("nan"))
    assert likelihood.marginal_log_prob(raw, hidden, observed).exp().item() == pytest.approx(mass, rel=1e-11)
    every = likelihood.marginal_log_prob(raw, x, torch.ones_like(observed))
    torch.testing.assert_close(every, likelihood.log_prob(raw, x), rtol=1e-12, atol=1e-12)
    raw.requires_grad_()
    none = likelihood.marginal_log_prob(raw, torch.full_like(x, float("nan")), torch.zeros_like(observed))
    assert none.item() == pytest.approx(0, abs=1e-14)
    assert torch.autograd.grad(none, raw)[0].abs().max() < 1e-14


def test_a_density_of_your_own_says_whether_it_can_be_masked() -> None:
    class IndependentLaplace(Laplace):
        independent = 1

    raw, x = torch.randn(5, 2, dtype=F64), torch.randn(5, 2, dtype=F64)
    observed = torch.tensor([True, False])
    assert not Laplace().takes_mask
    with pytest.raises(NotImplementedError, match="Laplace does not define marginal_log_prob"):
        Laplace().marginal_log_prob(raw, x, observed)
    assert IndependentLaplace().takes_mask
    torch.testing.assert_close(
        IndependentLaplace().marginal_log_prob(raw, x, observed), Laplace().log_prob(raw[:, :1], x[:, :1])
    )


@every
def test_any_leading_dimensions(likelihood: Likelihood, features: int) -> None:
    raw = raws(likelihood, features, 2, 3, 4)
    x = likelihood.sample(raw)
    assert x.shape == likelihood.mean(raw).shape == (2, 3, 4, features)
    every = likelihood.log_prob(raw, x)
    assert every.shape == (2, 3, 4)
    assert likelihood.support.check(x).all()
    torch.testing.assert_close(likelihood.log_prob(raw[1, 2, 3], x[1, 2, 3]), every[1, 2, 3])
    torch.testing.assert_close(likelihood.log_prob(raw, x[0])[1, 2, 3], likelihood.log_prob(raw[1, 2, 3], x[0, 2, 3]))
    assert likelihood.sample(raw[0, 0, 0]).shape == (features,)


# ---- against torch.distributions


def components(raw: Tensor, k: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    mean, raw_std, logits = raw.split((k * features, k * features, k), -1)
    return logits, mean.reshape(-1, k, features), softplus(raw_std).reshape(-1, k, features) + 1e-3


def by_mixture(raw: Tensor, x: Tensor) -> Tensor:
    logits, mean, std = components(raw, 3, 2)
    return D.MixtureSameFamily(D.Categorical(logits=logits), D.Independent(D.Normal(mean, std), 1)).log_prob(x)


def by_mixtures_of_features(raw: Tensor, x: Tensor) -> Tensor:
    mean, raw_std, logits = raw.reshape(-1, 3, 2, 3).unbind(1)
    components = D.Normal(mean, softplus(0.7 * raw_std) / 0.7 + 1e-3)
    return D.MixtureSameFamily(D.Categorical(logits=logits), components).log_prob(x).sum(-1)


def by_a_shared_layer(raw: Tensor, x: Tensor) -> Tensor:
    layer = of(SHARED, raw.dtype).params  # type: ignore[attr-defined]
    logits, mean, raw_std = layer(torch.nn.functional.leaky_relu(raw.reshape(-1, 2, 5), 0.01)).chunk(3, -1)
    components = D.Normal(mean, softplus(math.log(2) * raw_std) / math.log(2) + 0.1)
    return D.MixtureSameFamily(D.Categorical(logits=logits), components).log_prob(x).sum(-1)


def by_multivariate_normals(raw: Tensor, x: Tensor) -> Tensor:
    mean, raw_std, raw_correlation, logits, pen = raw.split((6, 6, 3, 3, 1), -1)
    std, correlation = softplus(raw_std).reshape(-1, 3, 2) + 1e-3, 0.999 * raw_correlation.tanh()
    covariance = torch.diag_embed(std.square())
    covariance[..., 0, 1] = covariance[..., 1, 0] = correlation * std.prod(-1)
    offset = D.MixtureSameFamily(D.Categorical(logits=logits), D.MultivariateNormal(mean.reshape(-1, 3, 2), covariance))
    return offset.log_prob(x[..., :2]) + D.Bernoulli(logits=pen.squeeze(-1)).log_prob(x[..., 2])


def by_differences_of_sigmoids(raw: Tensor, x: Tensor) -> Tensor:
    mean, raw_scale, logits = raw.reshape(-1, 3, 2, 3).unbind(1)
    base = D.TransformedDistribution(D.Uniform(raw.new_zeros(()), 1), D.SigmoidTransform().inv)
    logistic = D.TransformedDistribution(base, D.AffineTransform(mean, softplus(raw_scale) + 0.05 * 0.5))
    x = x.unsqueeze(-1)
    upper = torch.where(x == 1, 1, logistic.cdf(x + 0.25))
    lower = torch.where(x == -2, 0, logistic.cdf(x - 0.25))
    return (logits.softmax(-1) * (upper - lower)).sum(-1).log().sum(-1)


def by_failures(raw: Tensor, x: Tensor) -> Tensor:
    mean, dispersion = (softplus(part) + 1e-6 for part in raw.chunk(2, -1))
    return D.NegativeBinomial(1 / dispersion, logits=(mean * dispersion).log()).log_prob(x).sum(-1)


def by_student(mean: Tensor, scale: Tensor, degrees: Tensor, x: Tensor) -> Tensor:
    return D.StudentT(2 + softplus(degrees), mean, softplus(scale) + 1e-3).log_prob(x).sum(-1)


def by_differences_of_cumulated(raw: Tensor, x: Tensor) -> Tensor:
    first, rises = raw.reshape(-1, 2, 3).tensor_split([1], -1)
    cuts = torch.cat([first, first + (softplus(rises) + 1e-6).cumsum(-1)], -1).sigmoid()
    upto = torch.cat([torch.zeros_like(first), cuts, torch.ones_like(first)], -1)
    return D.Categorical(probs=upto.diff(dim=-1)).log_prob(x).sum(-1)


THEIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bernoulli": lambda raw, x: D.Bernoulli(logits=raw).log_prob(x).sum(-1),
    "gaussian": lambda raw, x: D.Normal(raw[:, :2], softplus(raw[:, 2:]) + 1e-3).log_prob(x).sum(-1),
    "fixed": lambda raw, x: D.Normal(raw, 0.7).log_prob(x).sum(-1),
    "mixture": by_mixture,
    "of features": by_mixtures_of_features,
    "shared": by_a_shared_layer,
    "handwriting": by_multivariate_normals,
    "logistic": by_differences_of_sigmoids,
    "categorical": lambda raw, x: D.Categorical(logits=raw.reshape(-1, 2, 4)).log_prob(x).sum(-1),
    "exponential": lambda raw, x: D.Exponential(1 / (raw.exp() + 1e-10)).log_prob(x).sum(-1),
    "poisson": lambda raw, x: D.Poisson(softplus(raw) + 1e-6).log_prob(x).sum(-1),
    "negative binomial": by_failures,
    "student": lambda raw, x: by_student(*raw.chunk(3, -1), x),
    "ordinal": by_differences_of_cumulated,
    "gamma": lambda raw, x: D.Gamma(raw.new_tensor(2.5), 2.5 / (raw.exp() + 1e-10)).log_prob(x).sum(-1),
}


@pytest.mark.parametrize("name", THEIRS)
def test_log_prob_is_that_of_torch_distributions(name: str) -> None:
    likelihood, features = EVERY[name]
    raw = (4 * raws(likelihood, features, 500)).float()
    x = of(likelihood, raw.dtype).sample(raw)
    oracle = THEIRS[name](raw.double(), x.double())
    torch.testing.assert_close(likelihood.log_prob(raw.double(), x.double()), oracle, rtol=1e-9, atol=1e-9)
    assert_at_most_twice_torchs(of(likelihood, raw.dtype).log_prob(raw, x), THEIRS[name](raw, x), oracle, name)


# ---- extreme parameters


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_extreme_parameters_leave_everything_finite(likelihood: Likelihood, features: int, dtype: torch.dtype) -> None:
    precise, likelihood = likelihood, of(likelihood, dtype)
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 1.0, 30.0, 89.0, 1e3, 1e4], dtype=dtype)
    shape = (4000, width(likelihood, features))
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    raw = (signs * scales[torch.randint(0, 6, shape, generator=generator)]).requires_grad_()
    values = {
        "Handwriting": (0.0, 1.0),
        "Bernoulli": (0.0, 1.0),
        "Categorical": (0.0, 3.0),
        "Ordinal": (0.0, 2.0, 3.0),
        "Poisson": (0.0, 1.0, 1e4),
        "NegativeBinomial": (0.0, 1.0, 1e4),
        "DiscretizedLogisticMixture": (-2.0, -1.5, 0.0, 1.0),
        "Gamma": (1e-30, 1.0, 1e4),
        "ItakuraSaito": (1e-30, 1.0, 1e4),
    }.get(type(likelihood).__name__, (-1e4, 0.0, 1e4))
    x = torch.tensor(values, dtype=dtype)[torch.randint(0, len(values), (4000, features), generator=generator)]
    if isinstance(likelihood, Handwriting):
        x[:, :2] *= 2e4 * signs[:, :2]
    found = likelihood.log_prob(raw, x)
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), raw)
    assert gradient.isfinite().all()
    for temperature in (1e-3, 1.0, 1e3):
        assert not likelihood.sample(raw.detach(), temperature).isnan().any()
    assert not likelihood.mean(raw.detach()).isnan().any()
    exact = precise.log_prob(raw.detach().double(), x.double())  # of which half of the digits must be left
    half = torch.finfo(dtype).eps ** 0.5
    torch.testing.assert_close(found.double(), exact, rtol=half, atol=half)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_the_discretised_logistic_is_exact_where_its_sigmoids_are_not(dtype: torch.dtype) -> None:
    """Bins far out in a tail, bins much narrower than the scale, and the open ones, against sixty digits."""
    likelihood = DiscretizedLogisticMixture(1, bins=65536)
    means = (-1e4, -1.5, 0.3, 1e4)
    raw_scales = (-1e4, -12.0, 0.0, 1e4)
    levels = (0, 1, 40000, 65534, 65535)
    eps = torch.finfo(dtype).eps
    for mean, raw_scale, level in product(means, raw_scales, levels):
        raw = torch.tensor([mean, raw_scale, 0.0], dtype=dtype, requires_grad=True)
        found = likelihood.log_prob(raw, torch.tensor([-1 + level * likelihood.step], dtype=dtype))
        scale = softplus(raw[1].double()).item() / likelihood.step + likelihood.min_scale
        with localcontext(Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)):
            place = (Decimal(raw[0].item()) + 1) / Decimal(likelihood.step)
            lower, upper = ((Decimal(level) + Decimal(side) / 2 - place) / Decimal(scale) for side in (-1, 1))
            first, last = level == 0, level == 65535
            if lower > 0 and not first:  # both sigmoids are near 1: those of the other tail
                mass = sigmoid(-lower) - (0 if last else sigmoid(-upper))
            else:
                mass = (1 if last else sigmoid(upper)) - (0 if first else sigmoid(lower))
            exact = float(mass.ln())
        rounding = 16 * eps * float(1 + abs(place) / Decimal(scale) + abs(lower) + abs(upper))
        assert found.item() == pytest.approx(exact, rel=0, abs=rounding)
        assert torch.autograd.grad(found, raw)[0].isfinite().all()


def sigmoid(value: Decimal) -> Decimal:
    return 1 / (1 + (-value).exp())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_students_tails_reach_to_the_last_number(dtype: torch.dtype) -> None:
    """An outlier of 65504, at the least scale: its square is beyond float16; of 1e30 it is beyond float32."""
    raw = torch.tensor([0.5, -20.0, 1.0], dtype=dtype)
    x = torch.tensor([min(1e30, torch.finfo(dtype).max)], dtype=dtype)
    right = StudentT().log_prob(raw.double(), x.double())
    torch.testing.assert_close(StudentT().log_prob(raw, x).double(), right, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_outside_of_the_support_there_is_nothing() -> None:
    nan = float("nan")
    for likelihood, bad in (
        (Categorical(4), (-1.0, 0.5, 4.0, 1e9, nan)),
        (LADDER, (-2.26, 1.26, nan)),
        (Gamma(), (-1e-9, nan)),
        (Gamma(2.5), (-1.0, 0.0, nan)),
        (ItakuraSaito(), (0.0,)),
        (Ordinal(4), (-1.0, 0.5, 4.0, nan)),
        (Poisson(), (-1.0, 0.5, nan)),
        (NegativeBinomial(), (-1.0, 0.5, nan)),
    ):
        raw = raws(likelihood, 2).requires_grad_()
        for value in bad:
            x = torch.tensor([1.0, value], dtype=F64)
            found = likelihood.log_prob(raw, x)
            assert found.item() == -math.inf, (likelihood, value)
            assert torch.autograd.grad(found, raw)[0].isfinite().all()
            assert not likelihood.support.check(x)[1]
    raw = raws(LADDER, 2)
    near, on = torch.tensor([-2.2, 1.2], dtype=F64), torch.tensor([-2.0, 1.0], dtype=F64)
    assert torch.equal(LADDER.log_prob(raw, near), LADDER.log_prob(raw, on))


@pytest.mark.parametrize("raw_correlation", [-30.0, -9.5, 0.0, 12.0, 40.0])
def test_a_correlation_that_rounds_to_one_keeps_its_density(raw_correlation: float) -> None:
    likelihood = Handwriting(1, max_correlation=1.0)
    raw = torch.tensor([0.0, 0.0, 0.4, 0.4, raw_correlation, 0.0, 0.0], requires_grad=True)
    found = likelihood.log_prob(raw, torch.tensor([0.0, 0.0, 1.0]))
    std = softplus(raw.detach()[2].double()) + likelihood.floor
    log_rest = 2 * (math.log(2) - abs(raw_correlation) - math.log1p(math.exp(-2 * abs(raw_correlation))))
    exact = -0.5 * log_rest - 2 * std.log().item() - math.log(2 * math.pi) - math.log(2)
    assert found.item() == pytest.approx(exact, rel=16 * torch.finfo(torch.float32).eps)
    assert torch.autograd.grad(found, raw)[0].isfinite().all()


# ---- samples


def cooled(likelihood: Likelihood, raw: Tensor, features: int, temperature: float) -> Tensor:
    """The raw output whose distribution is the sample's: logits over the temperature, standard deviations times it."""
    floor, beta = getattr(likelihood, "floor", 0.0), getattr(likelihood, "beta", 1.0)
    if isinstance(likelihood, DiscretizedLogisticMixture):
        floor = likelihood.min_scale * likelihood.step
    heads, parts = likelihood.heads(features), []
    for name, part in zip(heads, raw.split(tuple(heads.values()), -1), strict=True):
        if name in ("dec_std.0", "dec_scale"):
            std = beta * ((softplus(beta * part) / beta + floor) * temperature - floor)
            part = (std + (-(-std).expm1()).log()) / beta
        elif name in ("dec_logits", "dec_pen.0") or isinstance(likelihood, Bernoulli):
            part = part / temperature
        parts.append(part)
    return torch.cat(parts, -1)


def cooled_counts(likelihood: Likelihood, raw: Tensor, features: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of a sample: of classes by their probabilities to the power of 1 / temperature, of counts by
    their distances from the mean times it, rounded."""
    levels = points(likelihood, 1)[0].expand(-1, features)
    logits = likelihood.log_prob_of_each(raw, levels)
    if isinstance(likelihood, Ordinal):
        mass = (logits / temperature).softmax(0)
    else:
        mass, mean = logits.exp(), likelihood.mean(raw)
        levels = levels if temperature == 1 else (mean + temperature * (levels - mean)).round().clamp(min=0)
    mean = (mass * levels).sum(0)
    return mean, (mass * (levels - mean).square()).sum(0)


@every
@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_samples_have_the_moments_of_the_density(likelihood: Likelihood, features: int, temperature: float) -> None:
    """Within five standard errors, the error of the variance taken from the sample itself."""
    draws = 40_000
    raw = raws(likelihood, features)
    if isinstance(likelihood, SharedMixture):  # the temperature acts behind its layer
        mean, raw_std, logits = (part.detach().flatten(-2) for part in likelihood._raw(raw))
        shared, own = likelihood, torch.cat([mean, raw_std, logits], -1)
        likelihood = FeatureMixture(2, 0.1, math.log(2))
        assert torch.equal(
            shared.sample(raw, temperature, torch.Generator().manual_seed(1)),
            likelihood.sample(own, temperature, torch.Generator().manual_seed(1)),
        )
        raw = own
    if isinstance(likelihood, FixedGaussian):
        mean, variance = raw, torch.full_like(raw, (0.7 * temperature) ** 2)
    elif isinstance(likelihood, Gamma):
        mean = likelihood.mean(raw)
        variance = (mean * temperature).square() / likelihood.concentration
    elif isinstance(likelihood, (Ordinal, Poisson, NegativeBinomial)):
        mean, variance = cooled_counts(likelihood, raw, features, temperature)
    else:
        _, mean, variance = moments(
            likelihood, cooled(likelihood, raw, features, temperature), *points(likelihood, features)
        )
    generator = torch.Generator().manual_seed(1)
    x = likelihood.sample(raw.expand(draws, -1), temperature, generator)
    error = (variance / draws).sqrt()
    assert ((x.mean(0) - mean).abs() <= 5 * error).all()
    squares = (x - mean).square()
    assert ((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / draws**0.5).all()
    again = likelihood.sample(raw.expand(draws, -1), temperature, torch.Generator().manual_seed(1))
    assert torch.equal(again, x)
    assert not torch.equal(likelihood.sample(raw.expand(draws, -1), temperature, generator), x)


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "logistic"])
def test_samples_have_the_frequencies_of_the_distribution(name: str) -> None:
    likelihood, draws = EVERY[name][0], 40_000
    raw = raws(likelihood, 1)
    x = likelihood.sample(raw.expand(draws, -1), generator=torch.Generator().manual_seed(2))
    levels, _ = points(likelihood, 1)
    frequency = (x.unsqueeze(1) - levels).abs().squeeze(-1).lt(1e-9).double().mean(0)
    probability = likelihood.log_prob(raw, levels).exp()
    assert ((frequency - probability).abs() <= 5 * (probability * (1 - probability) / draws).sqrt()).all()
    assert frequency.sum() == 1


def test_samples_of_handwriting_are_correlated() -> None:
    likelihood, draws = Handwriting(1), 40_000
    raw = torch.tensor([1.0, -2.0, 0.3, -0.5, 0.8, 0.0, 0.4], dtype=F64)
    x = likelihood.sample(raw.expand(draws, -1), generator=torch.Generator().manual_seed(3))
    correlation = likelihood.prediction(raw).correlation.item()
    found = torch.corrcoef(x[:, :2].T)[0, 1].item()
    assert abs(found - correlation) <= 5 * (1 - correlation**2) / draws**0.5


# ---- parameters


def test_predictions_are_the_parameters() -> None:
    raw = raws(EVERY["mixture"][0], 2, 5)
    logits, mean, std = components(raw, 3, 2)
    torch.testing.assert_close(tuple(EVERY["mixture"][0].prediction(raw)), (logits.log_softmax(-1), mean, std))
    strokes = EVERY["handwriting"][0].prediction(raws(EVERY["handwriting"][0], 3, 5))
    assert [tuple(p.shape) for p in strokes] == [(5, 3), (5, 3, 2), (5, 3, 2), (5, 3), (5,)]
    raw = raws(LADDER, 2, 5)
    log_weight, mean, scale = LADDER.prediction(raw)
    torch.testing.assert_close(log_weight.exp().sum(-1), torch.ones(5, 2, dtype=F64))
    torch.testing.assert_close(mean.flatten(1), raw[:, :6])
    torch.testing.assert_close(scale.flatten(1), softplus(raw[:, 6:12]) + 0.025)
    raw = raws(Categorical(4), 2, 5)
    torch.testing.assert_close(Categorical(4).prediction(raw), raw.reshape(5, 2, 4).softmax(-1))
    mean, std = FixedGaussian(0.7).prediction(raw)
    assert torch.equal(mean, raw)
    assert (std == 0.7).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture(0), "components must be a positive int, got 0"),
        (lambda: GaussianMixture(2.0), "components must be a positive int, got 2.0"),  # type: ignore[arg-type]
        (lambda: GaussianMixture(2, floor=0), "floor must be a number > 0, got 0"),
        (lambda: Handwriting(0), "components must be a positive int, got 0"),
        (lambda: Handwriting(2, max_correlation=1.1), "max_correlation must be a number from 0 to 1, got 1.1"),
        (lambda: Handwriting(2, max_correlation=-0.1), "max_correlation must be a number from 0 to 1, got -0.1"),
        (lambda: Handwriting(2).heads(2), r"Handwriting needs input_size = 3 \(offset, offset, pen\), got 2"),
        (lambda: DiscretizedLogisticMixture(0), "components must be a positive int, got 0"),
        (lambda: DiscretizedLogisticMixture(2, bins=1), "bins must be an int >= 2, got 1"),
        (lambda: DiscretizedLogisticMixture(2, low=1.0), "high - low must be a number > 0, got 0.0"),
        (lambda: DiscretizedLogisticMixture(2, high=math.inf), "high - low must be a number > 0, got inf"),
        (lambda: DiscretizedLogisticMixture(2, min_scale=0), "min_scale must be a number > 0, got 0"),
        (lambda: Categorical(1), "classes must be an int >= 2, got 1"),
        (lambda: Categorical(True), "classes must be an int >= 2, got True"),
        (lambda: FixedGaussian(0), "std must be a number > 0, got 0"),
        (lambda: Gamma(0), "concentration must be a number > 0, got 0"),
        (lambda: Gamma(1, min_mean=-1), "min_mean must be a number >= 0, got -1"),
    ],
)
def test_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every
def test_widths_that_do_not_fit(likelihood: Likelihood, features: int) -> None:
    raw = raws(likelihood, features, 5)
    with pytest.raises(ValueError, match=r"x must have .*3? features .*, got shape \(5, 1\)"):
        likelihood.log_prob(raw, torch.zeros(5, 1, dtype=F64))
    if width(likelihood, features) > features:
        with pytest.raises(ValueError, match=r"raw must have .* values in its last dimension, got shape"):
            likelihood.log_prob(raw[:, :-1], torch.zeros(5, features, dtype=F64))


def test_what_is_printed_can_be_typed() -> None:
    for likelihood, _ in EVERY.values():
        assert repr(eval(repr(likelihood))) == repr(likelihood)
