"""The eager loop with torch.compile: its cell compiled once, or the whole loop as one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .eager import EagerVRNN, State

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Traceable(EagerVRNN):
    """The loop with torch's single-step recurrent cell, which torch.compile can look into."""

    def __init__(self, *sizes: int, **arguments: Any) -> None:
        super().__init__(*sizes, **arguments)
        holder = nn.Module()
        for name, parameter in self.rnn.named_parameters():
            holder.register_parameter(name, parameter)
        self.rnn = holder

    def recur(self, inputs: Tensor, state: State) -> State:
        """As :meth:`EagerVRNN.recur`."""
        weights: list[Any] = [getattr(self.rnn, name, None) for name in WEIGHTS]
        if isinstance(state, tuple):
            h, c = torch.lstm_cell(inputs, (state[0][0], state[1][0]), *weights)
            return h.unsqueeze(0), c.unsqueeze(0)
        return torch.gru_cell(inputs, state[0], *weights).unsqueeze(0)


class CompiledCell(Traceable):
    """The loop calls one compiled time step."""

    def __init__(self, *sizes: int, **arguments: Any) -> None:
        super().__init__(*sizes, **arguments)
        self.step = torch.compile(self.step, dynamic=False)  # type: ignore[method-assign]

    def start(self, like: Tensor) -> State:
        """As :meth:`EagerVRNN.start`. With gradients from the first step on, so that all steps share one graph."""
        state = super().start(like)
        for part in state if isinstance(state, tuple) else (state,):
            part.requires_grad_(torch.is_grad_enabled())
        return state


class CompiledLoop(Traceable):
    """All time steps unrolled into one graph: minutes of compilation at a dozen steps."""

    def __init__(self, *sizes: int, **arguments: Any) -> None:
        super().__init__(*sizes, **arguments)
        self.loss = torch.compile(self.loss, dynamic=False, fullgraph=True)  # type: ignore[method-assign]
