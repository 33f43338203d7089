"""Foreign models on our executors: recognised by structure and names, proven by running, faithful to the last fault."""

from __future__ import annotations

from .base import Run
from .proof import ProofError
from .reading import LayoutError
from .recognition import LAYOUTS, accelerate

__all__ = ["LAYOUTS", "LayoutError", "ProofError", "Run", "accelerate"]
