"""The eager loop with torch.compile: its cell compiled once, the whole loop as one graph, or a scan over its steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan

from vrnn_fast.state import State

from .eager import EagerVRNN

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Traceable(EagerVRNN):
    """The loop with torch's single-step recurrent cell, which torch.compile can look into."""

    def __init__(self, *sizes: int, **arguments: Any) -> None:
        super().__init__(*sizes, **arguments)
        holder = nn.Module()
        for name, parameter in self.rnn.named_parameters():
            holder.register_parameter(name, parameter)
        self.rnn = holder

    def recur(self, inputs: Tensor, state: State) -> State:
        """Do as :meth:`EagerVRNN.recur`."""
        hs, cs = [], []
        for i in range(self.num_layers):
            weights: list[Any] = [getattr(self.rnn, f"{name}_l{i}", None) for name in WEIGHTS]
            if isinstance(state, tuple):
                inputs, c = torch.lstm_cell(inputs, (state[0][i], state[1][i]), *weights)
                cs.append(c)
            else:
                inputs = torch.gru_cell(inputs, state[i], *weights)
            hs.append(inputs)
        return (torch.stack(hs), torch.stack(cs)) if cs else torch.stack(hs)


class CompiledCell(Traceable):
    """The loop calls one compiled time step."""

    def __init__(self, *sizes: int, **arguments: Any) -> None:
        super().__init__(*sizes, **arguments)
        self.step = torch.compile(self.step, dynamic=False)  # type: ignore[method-assign]

    def start(self, like: Tensor) -> State:
        """Do as :meth:`EagerVRNN.start`, with gradients from the first step on, so that all steps share one graph."""
        state = super().start(like)
        for part in state if isinstance(state, tuple) else (state,):
            part.requires_grad_(torch.is_grad_enabled())
        return state


class CompiledLoop(Traceable):
    """All time steps unrolled into one graph: minutes of compilation at a dozen steps."""

    def __init__(self, *sizes: int, **arguments: Any) -> None:
        super().__init__(*sizes, **arguments)
        self.loss = torch.compile(self.loss, dynamic=False, fullgraph=True)  # type: ignore[method-assign]


class CompiledScan(CompiledLoop):
    """The steps are one operator, torch's own scan, a prototype."""

    def loss(self, x: Tensor, eps: Tensor, cond: Tensor | None = None) -> Tensor:
        """Do as :meth:`EagerVRNN.loss`."""

        def advance(state: State, frame: tuple[Tensor, ...]) -> tuple[State, Tensor]:
            kl, nll, following = self.step(frame[0], frame[1], state, *frame[2:])
            return following, nll + kl

        frames = (x, eps) if cond is None else (x, eps, cond)
        losses: Tensor = scan(advance, self.start(x[0]), frames)[1]
        return losses.sum() / (x.size(0) * x.size(1))
