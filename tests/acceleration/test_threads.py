"""Threads that accelerate, or do something else, at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.support.accelerated import default_dtype
from tests.support.foreign import copied
from vrnn_fast import accelerate
from vrnn_fast.acceleration.double import double_by_default

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


class LooksAside(copied.VRNN):
    """Looks into another thread whenever it computes a likelihood."""

    def nll_gauss(self, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(untouched).result()
        return super().nll_gauss(mean, std, x)


def untouched() -> None:
    LOOKED.append(torch.get_default_dtype())
    assert torch.zeros(1).dtype == torch.tensor(0.5).dtype == torch.float32
    assert torch.log(torch.ones(1)) == 0
    with pytest.raises(TypeError):
        torch.log(2.0)  # type: ignore[call-overload]


LOOKED: list[torch.dtype] = []


def test_the_proof_is_seen_by_no_other_thread() -> None:
    LOOKED.clear()
    accelerate(LooksAside(6, 9, 4, gaussian=True))
    assert set(LOOKED) == {torch.float32}


def test_threads_accelerate_at_once() -> None:
    """Which share a random state and, for a Gaussian eager VRNN, ``torch.log``."""
    log = torch.log
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(accelerate, [copied.VRNN(6, 9, 4, gaussian=i % 2 == 0) for i in range(8)]))
    assert torch.log is log


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, 3),
        lambda: torch.full((2,), 0.1),
        lambda: torch.full((2,), 1),
        lambda: torch.arange(3),
        lambda: torch.arange(0, 1, 0.3),
        lambda: torch.linspace(0, 1, 4),
        lambda: torch.tensor(0.1),
        lambda: torch.tensor([1, 2]),
        lambda: torch.as_tensor([0.1, 0.2]),
        lambda: torch.tensor(0.1, dtype=torch.float32),
        lambda: torch.as_tensor(0.1, dtype=torch.float32),
        lambda: torch.ones(2, dtype=torch.float32),
        lambda: torch.ones(2, dtype=torch.float32) / 3,
        lambda: torch.ones(2, dtype=torch.int64) / 3,
        lambda: torch.tensor([True, False]).float(),
        lambda: torch.tensor([2, 3]).log(),
        lambda: torch.randn(3),
        lambda: torch.rand(3),
        lambda: torch.randn(3, dtype=torch.float32),
        lambda: torch.randn(3, generator=torch.Generator().manual_seed(1)),
        lambda: torch.normal(0.0, 1.0, (3,)),
        lambda: torch.empty(3).normal_(),
        lambda: torch.randint(5, (3,)),
        lambda: torch.randperm(4),
        lambda: torch.jit.script(zeros)(3),
    ],
)
def test_double_by_default_is_the_default_dtype_of_one_thread(make: Callable[[], Tensor]) -> None:
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        expected = make()
    torch.manual_seed(0)
    with double_by_default():
        found = make()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def zeros(size: int) -> Tensor:
    return torch.zeros(size)
