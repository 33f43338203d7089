"""Which executors there are, in order of preference, and who vouches for one that was not tried everywhere.

A package for a hub of kernels has fewer: csrc/hub/package/executors/registry.py.
"""

from __future__ import annotations

from . import cpu, cuda, reference, triton
from .base import Executor
from .verification import distrusted

__all__ = ["distrusted", "executors"]

executors: tuple[Executor, ...] = (cpu, cuda, triton, reference)
if cuda.emulated:
    executors = (cuda, cpu, triton, reference)  # what was asked for is what runs
