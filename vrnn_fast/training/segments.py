"""The states that segments leave to the next ones: of each rank and part, and of the whole batch in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.order import share
from ..state import State
from .ranks import Ranks


def gathered(own: Sequence[State | None], ranks: Ranks, rows: Callable[[], int]) -> Tensor | None:
    """Gather what the ranks carry on in their parts, (1 or 2, num_layers, B, H) in the order of the batch, of which
    there are ``rows()``; None where a batch begins."""
    stacks = [None if state is None else stacked(state).cpu() for state in own]
    if stacks[0] is None:
        return None
    found, like, count = ranks.gather(stacks), stacks[0], rows()
    whole = like.new_zeros((*like.shape[:2], count, like.shape[3]))
    for rank, states in enumerate(found):
        for part, state in enumerate(states):
            places = share(range(count), rank, ranks.size, part, len(own))
            assert state is not None
            whole[:, :, list(places)] = state[:, :, : len(places)]
    return whole


def shared(whole: Tensor, ranks: Ranks, parts: int) -> list[State | None]:
    """Take what this rank carries on in each of its parts."""
    return [_own(whole, list(ranks.share(range(whole.shape[2]), part, parts)), ranks.device) for part in range(parts)]


def _own(whole: Tensor, places: list[int], device: torch.device) -> State:
    own = whole[:, :, places] if places else whole.new_zeros((*whole.shape[:2], 1, whole.shape[3]))
    own = own.to(device)
    return own[0] if len(own) == 1 else (own[0], own[1])


def stacked(state: State) -> Tensor:
    """Stack the parts of a state, (1 or 2, num_layers, B, H)."""
    return torch.stack(state) if isinstance(state, tuple) else state.unsqueeze(0)


def detached(state: State) -> State:
    """Take a state without the way that its gradient would go."""
    return (state[0].detach(), state[1].detach()) if isinstance(state, tuple) else state.detach()
