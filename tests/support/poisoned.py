"""Memory of the CUDA executor that starts as NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor

from vrnn_fast.executors import rows
from vrnn_fast.executors.cuda import launch


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that the kernels are given starts as NaN."""
    allocate = rows.allocate

    def poisoned(like: Tensor, shape: tuple[int, ...], fill: float | None = None, *rest: Any) -> Tensor:
        made = allocate(like, shape, fill, *rest)
        return made.fill_(float("nan")) if fill is None and made.is_floating_point() else made

    with mock.patch.object(rows, "allocate", poisoned), mock.patch.object(launch, "allocate", poisoned):
        yield
