"""A recurrent state-space model as a cell of this package: that of examples/rssm.py, written in plain torch."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vrnn_fast import VRNN, LayoutError, accelerate

EXAMPLE = Path(__file__).parents[2] / "examples" / "rssm.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def data(example: dict[str, Any], steps: int, batch: int) -> list[Tensor]:
    widths = (example[name] for name in ("OBS", "ACTION", "STOCH"))
    return [torch.randn(steps, batch, width, dtype=torch.float64).requires_grad_() for width in widths]


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 3), (5, 1), (9, 3)])
def test_it_equals_the_loop_in_plain_torch(executor: str, example: dict[str, Any], steps: int, batch: int) -> None:
    slow = example["RSSM"]().double()
    fast: VRNN = example["as_vrnn"](slow, backend=executor, dtype=torch.float64)
    inputs = data(example, steps, batch)
    losses = slow(*inputs), example["fast_loss"](fast, *inputs)
    torch.testing.assert_close(losses[1], losses[0])
    right = torch.autograd.grad(losses[0], [*slow.parameters(), *inputs])
    found = torch.autograd.grad(losses[1], [*fast.parameters(), *inputs])
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.any() or steps == 1


def test_it_is_refused_as_it_stands(example: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match=r"(?s)no known layout\..*cell \(GRUCell\).*becomes a VRNN as in .*rssm\.py"):
        accelerate(example["RSSM"]())


def test_it_imagines(executor: str, example: dict[str, Any]) -> None:
    """What it generates from given actions is what the loop does without looking."""
    slow = example["RSSM"]().double()
    fast: VRNN = example["as_vrnn"](slow, backend=executor, dtype=torch.float64)
    _, actions, _ = data(example, 6, 2)
    h = torch.randn(1, 2, example["DETER"], dtype=torch.float64)
    with torch.no_grad():
        drawn, state = fast.generate(6, batch_size=2, state=h, cond=actions, temperature=1e-12, sample_output=False)
        expected, h_t = [], h[0]
        for action in actions:
            z = slow.prior(h_t).chunk(2, -1)[0]
            expected.append(slow.decoder(torch.cat([z, h_t], -1)))
            h_t = slow.cell(slow.embed(torch.cat([z, action], -1)), h_t)
    torch.testing.assert_close(drawn, torch.stack(expected))
    torch.testing.assert_close(state[0], h_t)
