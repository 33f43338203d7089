"""All that differs between the versions of triton from 3.6 on, and between its compiler and its interpreter."""

from __future__ import annotations

from typing import Any

import torch
from triton import knobs
from triton.runtime.errors import OutOfResources

INTERPRETED = bool(knobs.runtime.interpret)
NO_ROOM = OutOfResources, torch.OutOfMemoryError  # what a launch raises where it needs more than the device has


def options(warps: int, most: int | None) -> dict[str, Any]:
    """Return the options of a compilation: how many registers a thread may have, if that is not left to the compiler.
    Fused multiply-adds are said aloud: their default changes after 3.9."""
    found = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    return found if most is None else found | {"maxnreg": most}
