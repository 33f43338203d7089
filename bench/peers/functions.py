"""Elementary functions on as many floats as a shape's batch: torch's and the kernels' own, both with ``out=``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contender import Entry
from ..shapes import Shape

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "expm1": torch.expm1,
    "normal_cdf": torch.special.ndtr,
}


def _inputs(shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw what activations are: mostly within ±4; positive where only that has a logarithm."""
    x = 2 * torch.randn(shape.batch, generator=torch.Generator().manual_seed(shape.draw))
    return {name: (x.abs() if name == "log" else x).to(dtype) for name in FUNCTIONS}


def prepare_torch(shape: Shape, dtype: torch.dtype) -> Entry:
    inputs = _inputs(shape, dtype)
    out = torch.empty(shape.batch, dtype=dtype)
    passes = {name: partial(call, inputs[name], out=out) for name, call in FUNCTIONS.items()}
    return Entry(passes, lambda: {name: call().clone() for name, call in passes.items()})


def prepare_ours(shape: Shape, dtype: torch.dtype) -> Entry:
    native: Any = importlib.import_module("vrnn_fast._native")
    inputs = {name: x.numpy() for name, x in _inputs(shape, dtype).items()}
    out = torch.empty(shape.batch, dtype=dtype)
    passes = {name: partial(native.apply, name, x, out.numpy()) for name, x in inputs.items()}
    return Entry(passes, lambda: {name: torch.from_numpy(call()).clone() for name, call in passes.items()})


def no_native_module(shape: Shape) -> str | None:
    try:
        importlib.import_module("vrnn_fast._native")
    except ImportError as error:
        return f"the native module is not built ({error})"
    return None
