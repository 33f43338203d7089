"""What an installed package must do, in a line: ``python -I tests/smoke.py``, where the checkout is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import vrnn_fast
from vrnn_fast import VRNN, Stream


def main() -> None:
    """Train a step by the kernels and by the reference, and follow a signal without torch."""
    if Path(vrnn_fast.__file__).parent == Path(__file__).parents[1] / "vrnn_fast":
        sys.exit("this is the checkout, not the installed package: run it from another folder, with python -I")
    torch.manual_seed(0)
    model, x, eps = VRNN(28, 100, 16, backend="cpu"), torch.rand(20, 3, 28).round(), torch.randn(20, 3, 16)
    model(x, eps=eps).loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.backend = "reference"
    loss = model(x, eps=eps).loss
    loss.backward()
    for found, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad, rtol=1e-3, atol=1e-6)
    stream = Stream(model)
    stream.push(x[0, 0].numpy(), np.zeros((1, 16), np.float32))
    versions = f"torch {torch.__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}"
    print(f"a training step by the wheel's kernels: {loss.item():.1f} nats per time step; {versions}")


if __name__ == "__main__":
    main()
