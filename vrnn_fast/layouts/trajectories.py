"""Conditional trajectories: x_t is the state after y_t, raw x and z go in, and y_t conditions all but the cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from .base import Layout, Sampler, Sequences, sequence
from .sampling import Player
from .structure import Roles, Structure, Traits


@dataclass(frozen=True)
class Trajectories(Layout):
    """Its losses are found by running it."""

    def example(self, model: nn.Module, features: int, steps: int, batch: int) -> tuple[Tensor, ...]:
        return (torch.rand(steps + 1, batch, features),)

    def sequences(self, module: nn.Module, arguments: Mapping[str, Any]) -> Sequences:
        """Read ``states`` (T + 1, B, X): each but the last conditions the next one."""
        name, states = next(iter(arguments.items()))
        states = sequence(name, states, self.batch_first)
        if states.shape[0] < 2:
            raise ValueError(f"{name} must have T + 1 >= 2 states, got shape {tuple(states.shape)}")
        return Sequences(states[1:], states[:-1])

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        return self.output_likelihood(structure, given, self.traits.std)


def sample(self: Any, states: Tensor, burn_in: int = 0) -> tuple[Tensor, None]:
    """Draw (T + 1, B, X): the first ``burn_in`` states after the first one as they are, then what the model makes of
    them, z from the prior in all steps; and None.

    What conditions a step is the step before, so after the prefix there is a launch for each.
    """
    player = Player(self, "gaussian", 2)
    states = checks.tensor("states", states, (("T + 1", None), ("B", None), ("X", player.spec.input_size)), player.like)
    steps, batch = states.shape[0] - 1, states.shape[1]
    known, state = min(burn_in, steps), player.zeros(batch)
    samples = list(states[: known + 1])
    if known:
        eps = torch.cat([player.noise(batch, player.spec.latent_size)[0] for _ in range(known)])
        state = player.take_in(states[1 : known + 1], eps, state, cond=states[:known])
    for _ in range(known, steps):
        eps, noise = player.noise(batch, player.spec.latent_size, player.spec.input_size)
        x, state = player.play(eps, noise, state, cond=samples[-1].unsqueeze(0))
        samples.append(x[0])
    return torch.stack(samples), None


def _examples(features: int) -> tuple[tuple[Any, ...], ...]:
    states = torch.randn(5, 3, features)
    return (states,), (states, 2), (states, 9)


LAYOUT = Trajectories(
    "trajectories",
    "conditional trajectories",
    Roles(phi_x="", phi_z=""),
    traits=Traits(cond_networks=("encoder", "prior", "decoder")),
    sampler=Sampler("sample", _examples, sample),
)
