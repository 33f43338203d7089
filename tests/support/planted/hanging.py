"""An LSTM never ends."""

from __future__ import annotations

import time
from typing import Any

from vrnn_fast.executors import reference
from vrnn_fast.executors.base import Batch, SequenceResult


def run(spec: Any, parameters: Any, batch: Batch, want: Any) -> SequenceResult:
    if spec.cell == "lstm":
        time.sleep(3600)
    return reference.run(spec, parameters, batch, want)
