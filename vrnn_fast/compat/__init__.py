"""Foreign models on our executors: recognised by structure and names, proven by running, faithful to the last fault."""

from __future__ import annotations

from .base import Run
from .proof import ProofError
from .reading import LayoutError
from .recognition import accelerate

__all__ = ["LayoutError", "ProofError", "Run", "accelerate"]
