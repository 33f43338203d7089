"""What the tests share: the executors of this machine, and a seed."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read as torch loads: waiting threads of two workers do not spin

import pytest
import torch

from tests.support.machine import AVAILABLE


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=AVAILABLE)
def executor(request: pytest.FixtureRequest) -> str:
    """Every executor that this machine can run on the CPU in float64, by name."""
    return str(request.param)
