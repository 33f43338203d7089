"""Foreign layouts: what models that people use are made of, one file for each."""

from __future__ import annotations

from . import deep_features, dynamical_vae, eager_vrnn, speech_benchmark, trajectories
from .base import Layout

LAYOUTS: tuple[Layout, ...] = (
    eager_vrnn.LAYOUT,
    deep_features.LAYOUT,
    dynamical_vae.LAYOUT,
    trajectories.LAYOUT,
    speech_benchmark.LAYOUT,
)
"""Those of modules; ``vrnn_fast.checkpoints`` has two of arrays alone."""
