"""What the tests share: the executors of this machine, and the law of tolerance."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read as torch loads: waiting threads of two workers do not spin

import pytest
import torch
from torch import Tensor

from tests.support.machine import AVAILABLE


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=AVAILABLE)
def executor(request: pytest.FixtureRequest) -> str:
    """Every executor that this machine can run on the CPU in float64, by name."""
    return str(request.param)


@pytest.fixture
def error_within_twice_torch() -> Callable[..., None]:
    """``check(ours, torch_same_dtype, oracle64, what="")``: our largest error is at most twice that of plain torch.

    Both errors are taken against a float64 oracle. Where torch happens to be right to the last bit, four units in the
    last place of the oracle's largest value are allowed.
    """

    def check(ours: Tensor, torch_same_dtype: Tensor, oracle64: Tensor, what: str = "") -> None:
        assert ours.shape == torch_same_dtype.shape == oracle64.shape, what
        assert ours.dtype == torch_same_dtype.dtype
        assert oracle64.dtype == torch.float64
        if oracle64.numel() == 0:
            return
        oracle64 = oracle64.detach()
        error = (ours.detach().double() - oracle64).abs().max().item()
        torch_error = (torch_same_dtype.detach().double() - oracle64).abs().max().item()
        floor = 4 * torch.finfo(ours.dtype).eps * oracle64.abs().max().item()
        allowed = max(2 * torch_error, floor)
        assert error <= allowed, f"{what}: error {error:.3e}, plain torch {torch_error:.3e}, allowed {allowed:.3e}"

    return check
