"""What a device can do at most, that a run's speed may be told as a share of it."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from ..executors.cpu import operators
from .config import Precision

KNOWN: dict[str, dict[Precision, float]] = {  # TFLOP/s of dense products, as their maker says
    "A100": {"float32": 19.5, "tf32": 156, "bfloat16": 312},
    "H100 80GB HBM3": {"float32": 67, "tf32": 495, "bfloat16": 989},
    "H200": {"float32": 67, "tf32": 495, "bfloat16": 989},
}
_SECONDS = 0.1


class Peak(NamedTuple):
    """FLOP/s of a rank's device, and in words whose; ``flops`` is None where nobody knows."""

    flops: float | None
    about: str


def peak_of(device: torch.device, precision: Precision) -> Peak:
    """Find that of a GPU in a list, and measure that of as many threads of this processor as torch uses."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((rates for part, rates in KNOWN.items() if part in name), None)
        if known is None:
            return Peak(None, f"the peak of {name} is not known here")
        return Peak(1e12 * known[precision], f"{known[precision]:g} TFLOP/s, {name} in {precision} as its maker says")
    threads = torch.get_num_threads()
    flops = 1e9 * measured(threads, _SECONDS)
    if not flops:
        return Peak(None, "the peak is not known: the native module is not built")
    return Peak(flops, f"{flops / 1e9:,.0f} GFLOP/s in float32, measured on {threads} thread{'s' * (threads > 1)}")


def measured(threads: int, seconds: float) -> float:
    """Measure GFLOP/s of float32 multiply-adds on so many threads at once; 0 if nobody can tell."""
    try:
        native = importlib.import_module(".._native", __package__)
    except ImportError:
        return 0.0
    isa = operators.chosen_isa() if operators.load() is None else native.usable_isas()[-1]
    with ThreadPoolExecutor(threads) as pool:
        return float(sum(pool.map(lambda _: native.fma_peak(isa, seconds), range(threads))))
