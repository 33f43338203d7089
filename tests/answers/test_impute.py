"""What was not observed: the exact conditional Gaussians of linear-Gaussian models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kalman import LinearGaussian, build
from tests.support.likelihoods import Whole
from vrnn_fast import VRNN, Categorical, Gaussian, GaussianMixture, Handwriting

STEPS, COUNT = 4, 20_000
MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, False], [True, True, False]])


@pytest.mark.parametrize("smoothed", [False, True])
def test_draws_have_the_exact_mean_and_covariance(smoothed: bool) -> None:
    """Of two rows, the second of which ends a step before."""
    model = build(3, 2, 2, "reference")
    exact = LinearGaussian.of(model)
    exact.write_posterior(model, wider=1.2, off=0.1)
    x = torch.randn(STEPS, 2, 3, dtype=torch.float64)
    mask, lengths = MASK.unsqueeze(1).expand(-1, 2, -1), torch.tensor([STEPS, STEPS - 1])
    found = model.impute(x.masked_fill(~mask, torch.nan), mask, COUNT, lengths, num_particles=COUNT, smoothed=smoothed)
    assert (
        found[:, mask & (torch.arange(STEPS) < lengths.unsqueeze(1)).T.unsqueeze(-1)]
        == x[mask & (torch.arange(STEPS) < lengths.unsqueeze(1)).T.unsqueeze(-1)]
    ).all()
    assert (found[:, STEPS - 1, 1] == 0).all()
    for b, length in enumerate(lengths.tolist()):
        for end in [length] if smoothed else range(1, length + 1):
            seen, drawn = MASK[:end], found[:, :end, b]
            if not smoothed:  # a step given what was observed up to it
                hidden = torch.zeros_like(seen)
                hidden[end - 1] = ~seen[end - 1]
            else:
                hidden = ~seen
            if not hidden.any():
                continue
            mean, covariance = exact.given(x[:end, b], seen)
            here = hidden.flatten()[~seen.flatten()]
            mean, covariance = mean[here], covariance[here][:, here]
            mine = drawn[:, hidden]
            scale = covariance.diag().sqrt()
            assert ((mine.mean(0) - mean).abs() < 8 * scale / COUNT**0.5).all()
            error = (mine.T.cov().view(covariance.shape) - covariance).abs()
            assert (error < 12 * scale.outer(scale) / COUNT**0.5).all()


def test_what_comes_later_matters_to_the_smoothed_alone() -> None:
    """The exact ones differ by more than the test above allows: it can fail."""
    exact = LinearGaussian.of(build(3, 2, 2, "reference"))
    x = torch.randn(STEPS, 3, dtype=torch.float64)
    late, spread = exact.given(x, MASK)
    early, _ = exact.given(x[:2], MASK[:2])
    assert (late[0] - early[0]).abs() > 16 * spread[0, 0].sqrt() / COUNT**0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm", "num_layers": 2, "batch_first": True},
        {"latent_size": 0},
        {"cond_size": 2, "cond_networks": ("cell", "decoder")},
        {"likelihood": Handwriting(2)},
        {"likelihood": GaussianMixture(2), "batch_first": True},
        {"likelihood": Categorical(4), "prior": "standard_normal", "check_values": True},
        {"likelihood": Whole()},
    ],
)
@pytest.mark.parametrize("smoothed", [False, True])
def test_shapes_and_what_was_observed(options: dict[str, Any], smoothed: bool) -> None:
    model = VRNN(3, 7, **{"latent_size": 2, "dtype": torch.float64, **options})
    swap, lengths = options.get("batch_first", False), torch.tensor([6, 0, 1, 3])

    def turned(t: Tensor) -> Tensor:
        return t.transpose(0, 1) if swap else t

    x = torch.rand(6, 4, 3, dtype=torch.float64).round()
    mask = torch.rand(6, 4, 3) < 0.6
    if isinstance(model.likelihood, Whole):
        mask = mask[..., :1].expand_as(mask)
    real = (torch.arange(6).unsqueeze(1) < lengths).unsqueeze(-1).expand_as(mask)
    cond = {"cond": turned(torch.randn(6, 4, 2, dtype=torch.float64))} if "cond_size" in options else {}
    hidden = turned(x.masked_fill(~(mask & real), torch.nan))
    found = model.impute(hidden, turned(mask), 5, lengths, num_particles=8, smoothed=smoothed, **cond)
    assert found.shape == ((5, 4, 6, 3) if swap else (5, 6, 4, 3))
    found = found.transpose(1, 2) if swap else found
    assert (found[:, mask & real] == x[mask & real]).all()
    assert (found[:, ~real] == 0).all()
    assert found.isfinite().all()


def test_a_mixture_draws_some_features_given_the_others() -> None:
    """Two far components: the feature that was observed tells which one."""
    model = VRNN(2, 3, 1, likelihood=GaussianMixture(2), dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.get_parameter("dec_mean.bias").copy_(torch.tensor([-5.0, -5.0, 5.0, 5.0]))
    x = torch.tensor([5.0, 0.0], dtype=torch.float64).view(1, 1, 2)
    found = model.impute(x, torch.tensor([True, False]).view(1, 1, 2), 200, num_particles=500)
    assert (found[..., 1] > 0).all()


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("wrong", [torch.nan, 1e30])
def test_an_observation_that_cannot_be_stays_in_its_row(wrong: float, smoothed: bool) -> None:
    """No particle has a weight above 0: each is as good as any other."""
    model, x = VRNN(1, 7, 2, likelihood="gaussian"), torch.randn(4, 2, 1)
    x[1, 0] = wrong
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[2] = False
    found = model.impute(x, mask, 5, smoothed=smoothed)
    assert torch.equal(found[:, 1, 1], x[1, 1].expand(5, 1))
    assert found[:, :, 1].isfinite().all()
    assert found[:, 2, 0].isfinite().all() == (wrong == wrong)


def test_what_cannot_be_says_nothing_about_the_next_gap() -> None:
    """The filter goes on: two far components after it are told apart as before."""
    model = VRNN(2, 3, 1, likelihood=GaussianMixture(2), dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.get_parameter("dec_mean.bias").copy_(torch.tensor([-5.0, -5.0, 5.0, 5.0]))
    x = torch.tensor([[1e200, 0.0], [5.0, 0.0]], dtype=torch.float64).view(2, 1, 2)
    mask = torch.tensor([[True, True], [True, False]]).view(2, 1, 2)
    found = model.impute(x, mask, 200, num_particles=500)
    assert (found[:, 1, 0, 1] > 0).all()


def test_arguments() -> None:
    model, x = VRNN(3, 7, 2, likelihood=Whole()), torch.rand(6, 4, 3).round()
    mask = torch.rand(6, 4, 3) < 0.5
    with pytest.raises(ValueError, match="mask must mark all features of a step or none"):
        model.impute(x, mask)
    whole = mask[..., :1].expand_as(mask).clone()
    whole[4:] = mask[4:]  # padding may hold anything
    assert model.impute(x, whole, lengths=torch.full((4,), 4)).isfinite().all()
    with pytest.raises(TypeError, match="mask must be a tensor, got NoneType"):
        model.impute(x, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_particles must be a positive int, got 0"):
        model.impute(x, mask, num_particles=0)
    with pytest.raises(ValueError, match=r"mask must have dtype torch\.bool"):
        model.impute(x, mask.float())


class Drawn(Gaussian):
    """Draws the same value always, and keeps what it was to draw from."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.raw = value, list[Tensor]()

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        self.raw.append(raw)
        return torch.full_like(raw[..., :3], self.value)


@pytest.mark.parametrize("mask_inputs", [False, True])
def test_whoever_learnt_to_see_zeros_never_sees_what_was_drawn(mask_inputs: bool) -> None:
    model, x = VRNN(3, 7, 2, likelihood="gaussian", dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    mask = torch.ones(6, 2, 3, dtype=torch.bool)
    mask[2] = False
    seen = []
    for value in (0.0, 5.0):
        model.likelihood = Drawn(value)
        generator = torch.Generator().manual_seed(1)
        found = model.impute(x, mask, num_particles=4, mask_inputs=mask_inputs, generator=generator)
        assert (found[:, 2] == value).all()
        seen.append(torch.stack(model.likelihood.raw))
    assert torch.equal(seen[0][:3], seen[1][:3])
    assert torch.equal(seen[0][3:], seen[1][3:]) == mask_inputs
