"""A whole training run beside the loop that people write: same data, same noise, same curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.peers import EagerVRNN
from tests.support.oracle import assert_at_most_twice_torchs
from vrnn_fast import VRNN

SIZES: dict[str, Any] = {"phi_x": (20, 20), "phi_z": (20,), "encoder": (20, 20), "prior": (20,), "decoder": (20, 20)}


def curve(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """The loss before each of 200 steps of Adam, on three batches in turn."""
    generator = torch.Generator().manual_seed(1)
    batches = (torch.rand(3, 6, 8, 1, generator=generator) > torch.rand(11, generator=generator)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(200):
        eps = torch.randn(6, 8, 4, generator=generator).to(dtype)
        value = loss(batches[step % 3], eps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(("cell", "likelihood"), [("gru", "bernoulli"), ("lstm", "gaussian")])
def test_training_follows_the_eager_loop(cell: str, likelihood: str) -> None:
    """tanh, since a ReLU that one rounding tips to its other side makes any two float32 runs part."""
    arguments = {"cell": cell, "likelihood": likelihood, "activation": "tanh", **SIZES}
    model = VRNN(11, 20, 4, **arguments)
    eager, exact = EagerVRNN(11, 20, 4, **arguments), EagerVRNN(11, 20, 4, **arguments).double()
    eager.load_state_dict(model.state_dict())
    exact.load_state_dict(model.state_dict())
    truth = curve(exact, exact.loss, torch.float64)
    assert truth[-1] < 0.9 * truth[0]
    ours = curve(model, lambda x, eps: model(x, eps=eps).loss, torch.float32)
    assert_at_most_twice_torchs(ours, curve(eager, eager.loss, torch.float32), truth, "the loss curve")
