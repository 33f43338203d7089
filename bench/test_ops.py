"""Time per operator, to hunt regressions: ``pytest bench``, and ``pytest bench --benchmark-compare`` after a change."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from vrnn_fast import VRNN
from vrnn_fast.executors import cpu

from .shapes import SIX_SHAPES, Shape

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


@pytest.fixture(params=SIX_SHAPES, ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    torch.manual_seed(0)
    assert isinstance(request.param, Shape)
    return request.param


@pytest.fixture
def model(shape: Shape) -> VRNN:
    return VRNN(**shape.model, backend="cpu")


def test_forward(benchmark: BenchmarkFixture, model: VRNN, shape: Shape) -> None:
    x, eps = shape.data()
    with torch.no_grad():
        benchmark(model, x, eps=eps)


def test_forward_that_keeps_what_backward_needs(benchmark: BenchmarkFixture, model: VRNN, shape: Shape) -> None:
    x, eps = shape.data()
    benchmark(model, x, eps=eps)


def test_backward(benchmark: BenchmarkFixture, model: VRNN, shape: Shape) -> None:
    x, eps = shape.data()
    parameters = list(model.parameters())
    loss = model(x, eps=eps).loss
    benchmark(torch.autograd.grad, loss, parameters, retain_graph=True)


def test_single_step(benchmark: BenchmarkFixture, model: VRNN, shape: Shape) -> None:
    x, eps = (t[0, :1] for t in shape.data())
    state = model.new_state(1)
    with torch.no_grad():
        benchmark(model.step, x, state, eps=eps)
