"""Where torch keeps the operators of this build: every other module asks here.

A package for a hub of kernels (csrc/hub/build.py) has a namespace of its own, so that two builds get on in one process.
"""

from __future__ import annotations

from pathlib import Path

import torch

NAMESPACE = "vrnn_fast"  # as csrc/torch/operators.cpp was compiled for
LIBRARY = Path(__file__).with_name("_ops.so")

ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(name: str) -> str:
    """Name an operator as torch does."""
    return f"{NAMESPACE}::{name}"
