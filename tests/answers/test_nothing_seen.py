"""Sequences of which nothing was seen: an answer to one does not hang on how long its neighbours are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.likelihoods import Outside
from vrnn_fast import VRNN, Gamma, GaussianMixture

NONE, SOME = torch.tensor([0, 0]), torch.tensor([0, 3])
LIKELIHOODS = pytest.mark.parametrize(
    "likelihood", ["bernoulli", "gaussian", GaussianMixture(2), Gamma(), Outside()], ids=lambda given: str(given)[:9]
)


def padded(likelihood: Any, executor: str) -> tuple[VRNN, Tensor, Tensor]:
    """A model, x (3, 2, 5) that is nothing but padding, and the same with a second row that is seen."""
    model = VRNN(5, 7, 3, likelihood=likelihood, backend=executor, dtype=torch.float64)
    padding, seen = torch.full((3, 2, 5), torch.nan, dtype=torch.float64), torch.ones(3, 2, 5, dtype=torch.float64)
    seen[:, 0] = torch.nan
    return model, padding, seen


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@LIKELIHOODS
def test_there_is_nothing_to_score(executor: str, likelihood: Any) -> None:
    model, padding, _ = padded(likelihood, executor)
    for per_feature in (False, True):
        found = model.score(padding, NONE, per_feature=per_feature)
        assert (found == 0).all()
        gradients = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients)
    for objective in ("elbo", "iwae", "fivo"):
        assert (model.bound(padding, NONE, objective=objective, num_particles=3) == 0).all()


@LIKELIHOODS
def test_a_forecast_goes_on_from_the_state_as_beside_a_longer_row(executor: str, likelihood: Any) -> None:
    model, padding, seen = padded(likelihood, executor)
    state = torch.randn(1, 2, 7, dtype=torch.float64)
    alone = model.forecast(padding, 3, 4, NONE, state=state, generator=seeded()).samples
    beside = model.forecast(seen, 3, 4, SOME, state=state, generator=seeded()).samples
    torch.testing.assert_close(alone[:, :, 0], beside[:, :, 0], rtol=1e-12, atol=1e-12)


@LIKELIHOODS
def test_a_prefix_of_no_step_is_none(executor: str, likelihood: Any) -> None:
    model, padding, seen = padded(likelihood, executor)
    alone, _ = model.generate(3, prefix=padding, lengths=NONE, num_samples=2, generator=seeded())
    beside, _ = model.generate(3, prefix=seen, lengths=SOME, num_samples=2, generator=seeded())
    torch.testing.assert_close(alone[:, :, 0], beside[:, :, 0], rtol=1e-12, atol=1e-12)


@LIKELIHOODS
@pytest.mark.parametrize("smoothed", [False, True])
def test_there_is_nothing_to_impute(executor: str, likelihood: Any, smoothed: bool) -> None:
    model, padding, _ = padded(likelihood, executor)
    for mask in (torch.ones(3, 2, 5, dtype=torch.bool), torch.zeros(3, 2, 5, dtype=torch.bool)):
        assert (model.impute(padding, mask, 2, NONE, smoothed=smoothed) == 0).all()
