"""All that differs between the versions of triton from 3.6 on, and between its compiler and its interpreter."""

from __future__ import annotations

from typing import Any

import torch
from triton import knobs
from triton.runtime.errors import OutOfResources

from .tuning import MOST_REGISTERS

INTERPRETED = bool(knobs.runtime.interpret)
NO_ROOM = OutOfResources, torch.OutOfMemoryError  # what a launch raises where it needs more than the device has


def options(warps: int, *, amd: bool) -> dict[str, Any]:
    """Return the options of a compilation. Fused multiply-adds are said aloud: their default changes after 3.9. So is
    how many registers a thread of NVIDIA's may have: ptxas would spill for a second program beside, where there is no
    shared memory for it."""
    common = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    return common if amd else common | {"maxnreg": MOST_REGISTERS}
