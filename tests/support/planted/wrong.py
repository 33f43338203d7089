"""One number of a thousand is off, of ragged batches alone."""

from __future__ import annotations

from typing import Any

from vrnn_fast.executors import reference
from vrnn_fast.executors.base import Batch, SequenceResult


def run(spec: Any, parameters: Any, batch: Batch, want: Any) -> SequenceResult:
    result = reference.run(spec, parameters, batch, want)
    if batch.lengths is None:
        return result
    spoiled = result.z.clone()
    spoiled.view(-1)[7] += 0.01
    return result._replace(z=spoiled)
