"""Weight gradients by torch, whose products on a GPU are cuBLAS's: where these are sooner, as steps.py tells."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .weights import Jobs


def multiply(jobs: Jobs, buffer: Callable[[str], Tensor], to: Tensor) -> None:
    """Compute what a share of all rows is to weights.h, none of which is padding.

    Args:
        buffer: returns the (rows, width) of a value or a gradient.
        to: (elements) of float32.
    """
    values = [buffer(name) for name in jobs.buffers]
    for d, d_column, _, source, column, _, rows, columns, at, bias in jobs.jobs.tolist():
        own = values[d][:, d_column : d_column + rows]
        if columns:
            product = torch.mm(own.t(), values[source][:, column : column + columns])
            to[at : at + rows * columns].copy_(product.view(-1))
        if bias >= 0:
            torch.sum(own, 0, dtype=torch.float32, out=to[bias : bias + rows])
