"""How a foreign model runs, once it is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..parameters import Slot
from .base import Layout, Outcome, Sampler
from .structure import Structure


@dataclass(frozen=True)
class Recipe:
    """All that a module which stands in for a foreign one needs beside its parameters.

    Attributes:
        structures: of its cells, which see one input and never one another; nearly always one.
        arguments: forward's parameters and their defaults.
        noise: the dtype in which the original draws, or None for that of the parameters.
        sampling: how it samples on our executors, or None where it does as its class is written.
    """

    layout: Layout
    structures: tuple[Structure, ...]
    outcome: Outcome
    fix: frozenset[str]
    backend: str
    arguments: dict[str, Any]
    noise: torch.dtype | None = None
    sampling: Sampling | None = None


class Sampling(NamedTuple):
    """A layout's sampler, and whether the original's samples have gradients."""

    sampler: Sampler
    gradients: bool


class RunsByRecipe(nn.Module):
    """A module that runs by a recipe."""

    _recipe: Recipe
    _slots: tuple[Slot, ...]
