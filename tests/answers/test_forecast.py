"""How sequences go on: the exact forecasts of linear-Gaussian models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kalman import LinearGaussian, build
from tests.support.likelihoods import Outside
from vrnn_fast import VRNN, Forecast, GaussianMixture


def exact_forecast(exact: LinearGaussian, x: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Mean (horizon X,) and covariance of what comes after x (T, X)."""
    longer = torch.cat([x, x.new_zeros(horizon, x.shape[1])])
    known = torch.zeros_like(longer, dtype=torch.bool)
    known[: len(x)] = True
    return exact.given(longer, known)


@pytest.mark.parametrize("off", [0.0, 0.3])
def test_samples_have_the_exact_mean_and_covariance(executor: str, off: float) -> None:
    """Of rows of their own lengths; a posterior that is ``off`` is put right by the particles' weights."""
    model, horizon, count = build(3, 2, 2, executor), 3, 20_000
    exact = LinearGaussian.of(model)
    exact.write_posterior(model, wider=1.3, off=off)
    x, lengths = torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([5, 2])
    x[2:, 1] = torch.nan
    found = model.forecast(x, horizon, count, lengths).samples
    assert found.shape == (count, horizon, 2, 3)
    for b, length in enumerate(lengths.tolist()):
        mean, covariance = exact_forecast(exact, x[:length, b], horizon)
        drawn = found[:, :, b].flatten(1)
        error = covariance.diag().sqrt() / count**0.5
        assert ((drawn.mean(0) - mean).abs() < 7 * error).all()
        scale = covariance.diag().outer(covariance.diag()).sqrt()
        assert ((drawn.T.cov() - covariance).abs() < 9 * scale / count**0.5).all()


def test_one_sample_of_the_past_is_not_enough() -> None:
    """What a prefix gives to generate() spreads less: the test above can fail."""
    model = build(3, 2, 2, "reference")
    LinearGaussian.of(model).write_posterior(model, wider=1.3, off=0.5)
    x = torch.randn(5, 1, 3, dtype=torch.float64)
    _, covariance = exact_forecast(LinearGaussian.of(model), x[:, 0], 1)
    narrow, _ = model.generate(1, prefix=x, num_samples=20_000)
    assert (narrow[:, 0, 0].var(0) < 0.97 * covariance.diag()).any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm", "num_layers": 2, "batch_first": True},
        {"latent_size": 0},
        {"cond_size": 2, "cond_networks": ("cell", "decoder")},
        {"likelihood": Outside()},
        {"likelihood": GaussianMixture(2), "batch_first": True},
    ],
)
def test_shapes(executor: str, options: dict[str, Any]) -> None:
    model = VRNN(5, 7, **{"latent_size": 3, "backend": executor, "dtype": torch.float64, **options})
    swap = options.get("batch_first", False)

    def sequences(steps: int, width: int) -> Tensor:
        found = torch.rand(steps, 4, width, dtype=torch.float64).round()
        return found.transpose(0, 1) if swap else found

    cond = {"cond": sequences(6, 2), "future_cond": sequences(3, 2)} if "cond_size" in options else {}
    found = model.forecast(sequences(6, 5), 3, 10, torch.tensor([6, 0, 1, 3]), **cond)
    assert found.samples.shape == ((10, 4, 3, 5) if swap else (10, 3, 4, 5))
    assert found.samples.isfinite().all()
    assert not found.samples.requires_grad


def test_a_seed_repeats_it(executor: str) -> None:
    model, x = VRNN(5, 7, 3, backend=executor, dtype=torch.float64), torch.rand(6, 4, 5, dtype=torch.float64).round()
    first, again = (model.forecast(x, 4, 9, generator=torch.Generator().manual_seed(5)).samples for _ in range(2))
    assert torch.equal(first, again)


def test_quantiles_are_torchs() -> None:
    found = Forecast(torch.randn(37, 4, 2, 3, dtype=torch.float64))
    shares = [0.0, 0.1, 0.5, 0.93, 1.0]
    right = torch.quantile(found.samples, torch.tensor(shares, dtype=torch.float64), dim=0)
    torch.testing.assert_close(found.quantile(shares), right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.quantile(0.1), right[1], rtol=1e-12, atol=1e-12)
    low, high = found.interval(0.8)
    torch.testing.assert_close(low, right[1], rtol=1e-12, atol=1e-12)
    assert (low <= high).all()
    assert torch.equal(found.mean, found.samples.mean(0))
    assert torch.equal(Forecast(found.samples[:1]).quantile(0.3), found.samples[0])
    assert torch.equal(Forecast(found.samples[:1]).std, torch.zeros(4, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"q must be a number from 0 to 1, got 1\.5"):
        found.quantile([0.5, 1.5])
    with pytest.raises(TypeError, match="level must be a number from 0 to 1, got 'wide'"):
        found.interval("wide")  # type: ignore[arg-type]
    for wrong in (None, True, torch.tensor(0.5)):
        with pytest.raises(TypeError, match="q must be numbers from 0 to 1, got"):
            found.quantile(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quantiles_of_16_bits_lie_where_they_belong(dtype: torch.dtype) -> None:
    """Among 1000 samples, more than bfloat16 counts."""
    found, shares = Forecast(torch.randn(1000, 1, 1, 3).to(dtype)), [0.05, 0.93, 0.999, 1.0]
    right = torch.quantile(found.samples.double(), torch.tensor(shares, dtype=torch.float64), dim=0)
    torch.testing.assert_close(found.quantile(shares), right.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert found.quantile([]).shape == (0, 1, 1, 3)


def test_arguments() -> None:
    model, x = VRNN(5, 7, 3, cond_size=2), torch.rand(6, 4, 5)
    cond = torch.randn(6, 4, 2)
    with pytest.raises(ValueError, match="horizon must be a positive int, got 0"):
        model.forecast(x, 0, cond=cond)
    with pytest.raises(ValueError, match="num_samples must be a positive int"):
        model.forecast(x, 3, 0, cond=cond)
    with pytest.raises(ValueError, match="future_cond must be given"):
        model.forecast(x, 3, cond=cond)
    with pytest.raises(ValueError, match="future_cond must have shape"):
        model.forecast(x, 3, cond=cond, future_cond=cond)
    model.check_values = True
    future = torch.randn(3, 4, 2)
    future[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"future_cond\[1, 2, 0\] is nan: expected finite values"):
        model.forecast(x, 3, cond=cond, future_cond=future)
    with pytest.raises(ValueError, match=r"cond\[1, 2, 0\] is nan: expected finite values"):
        model.generate(3, 4, cond=future)
