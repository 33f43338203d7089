"""Z, conditional trajectories: x_t is the state after y_t, raw x and z go in, and y_t conditions all but the cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import Layout, sequence
from .reading import Roles, Structure, Traits


@dataclass(frozen=True)
class Trajectories(Layout):
    """Its losses are found by running it."""

    def example(self, model: nn.Module, features: int, steps: int, batch: int) -> tuple[Tensor, ...]:
        return (torch.rand(steps + 1, batch, features),)

    def sequences(self, module: nn.Module, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """``states`` (T + 1, B, X): each but the last conditions the next one."""
        name, states = next(iter(arguments.items()))
        states = sequence(name, states, self.batch_first)
        if states.shape[0] < 2:
            raise ValueError(f"{name} must have T + 1 >= 2 states, got shape {tuple(states.shape)}")
        return states[1:], states[:-1]

    def arguments(self, structure: Structure) -> dict[str, Any]:
        return {"likelihood": "bernoulli" if structure.heads[0].endswith(".0") else "gaussian"}


LAYOUT = Trajectories(
    "Z",
    "conditional trajectories",
    Roles(phi_x="", phi_z=""),
    traits=Traits(cond_to=("encoder", "prior", "decoder")),
)
