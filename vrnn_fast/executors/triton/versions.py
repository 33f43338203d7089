"""All that differs between the versions of triton from 3.6 on, and between its compiler and its interpreter."""

from __future__ import annotations

from typing import Any

from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)


def options(warps: int) -> dict[str, Any]:
    """Of a compilation. Fused multiply-adds are said aloud: their default changes after 3.9."""
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
