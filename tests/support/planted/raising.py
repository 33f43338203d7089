"""What CUDA says of an illegal address."""

from __future__ import annotations

from typing import Any

from vrnn_fast.executors.base import Batch, SequenceResult


def run(spec: Any, parameters: Any, batch: Batch, want: Any) -> SequenceResult:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
