"""The law of errors refuses what it should, and nothing else."""

from __future__ import annotations

import pytest
import torch

from vrnn_fast.agreement import Errors, allowed

EPS = torch.finfo(torch.float32).eps


def wrong(error: float, torchs: float, **allowance: float) -> bool:
    """Whether four values that are 1 may be off by so much, as float32 has it."""
    right = torch.ones(4, dtype=torch.float64)
    errors = Errors(torch.float32, **allowance)
    errors.add({"x": (right + error).float()}, {"x": (right + torchs).float()}, {"x": right})
    assert errors
    return bool(errors.violations())


def test_twice_torchs_error_is_the_limit() -> None:
    assert not wrong(1.9e-3, 1e-3)
    assert wrong(2.1e-3, 1e-3)
    assert not wrong(2.9e-3, 1e-3, times=3)


def test_a_few_roundings_pass_where_torch_is_right_by_luck() -> None:
    assert not wrong(2 * EPS, 0)
    assert wrong(3 * EPS, 0)
    assert not wrong(3 * EPS, 0, roundings=4)
    assert allowed(0, 1, torch.float64) == 32 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_wrong(value: float) -> None:
    assert wrong(value, 1e-3)


def test_draws_are_judged_together() -> None:
    """One unlucky draw of four is luck, four are a defect."""
    right, off, lucky = torch.ones(1, dtype=torch.float64), torch.tensor([1.003]), torch.tensor([1.001])
    for unlucky, bad in ((1, False), (4, True)):
        errors = Errors(torch.float32)
        for draw in range(4):
            errors.add({"x": off if draw < unlucky else lucky}, {"x": lucky}, {"x": right})
        assert bool(errors.violations()) == bad


def test_what_cannot_be_compared_is_refused() -> None:
    single, double, errors = torch.ones(2), torch.ones(2, dtype=torch.float64), Errors(torch.float32)
    with pytest.raises(ValueError, match="the same names"):
        errors.add({}, {"x": single}, {"x": double})
    with pytest.raises(ValueError, match=r"x must be torch\.float32 beside float64, got torch\.float64"):
        errors.add({"x": double}, {"x": single}, {"x": double})
    with pytest.raises(ValueError, match="x must have one shape"):
        errors.add({"x": single[:1]}, {"x": single}, {"x": double})
    assert not errors
