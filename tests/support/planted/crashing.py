"""A segmentation fault, as an illegal address may end in."""

from __future__ import annotations

import os
import signal
from typing import Any

from vrnn_fast.executors.base import Batch, SequenceResult


def run(spec: Any, parameters: Any, batch: Batch, want: Any) -> SequenceResult:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")
