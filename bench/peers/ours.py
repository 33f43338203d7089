"""This package, as its users call it."""

from __future__ import annotations

import torch

from vrnn_fast import VRNN
from vrnn_fast.executors import cpu

from ..contender import Entry, run_of
from ..shapes import Shape, forward_flops


def not_built(shape: Shape) -> str | None:
    """Tell why the fused executor cannot take part."""
    return cpu.unavailable()


def model_of(shape: Shape, dtype: torch.dtype, *, recompute: bool = False) -> VRNN:
    model = VRNN(**shape.model, backend="cpu", dtype=dtype, recompute=recompute)
    model.load_state_dict(shape.parameters(dtype))
    return model


def prepare(shape: Shape, dtype: torch.dtype, *, recompute: bool = False) -> Entry:
    model = model_of(shape, dtype, recompute=recompute)
    (x, eps), cond = shape.data(dtype), shape.condition(dtype)
    return run_of(model, lambda: model(x, eps=eps, cond=cond).loss, forward_flops(model, shape))


def prepare_recompute(shape: Shape, dtype: torch.dtype) -> Entry:
    return prepare(shape, dtype, recompute=True)
