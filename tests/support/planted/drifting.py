"""No two runs give the same."""

from __future__ import annotations

from itertools import count
from typing import Any

from vrnn_fast.executors import reference
from vrnn_fast.executors.base import Batch, SequenceResult

_calls = count()


def run(spec: Any, parameters: Any, batch: Batch, want: Any) -> SequenceResult:
    result = reference.run(spec, parameters, batch, want)
    return result._replace(kl=result.kl * (1 + next(_calls) * 1e-7))
