"""Whether the GPU kernels are compiled and executed for more of the family than a daily run has time for."""

from __future__ import annotations

import os

SWEPT = os.environ.get("VRNN_FAST_PTX") == "sweep"  # as "make ptx" sets it
