"""The recurrent state: as the caller sees it, and as executors take it.

The caller has one tensor (num_layers, B, H), for an LSTM a pair (h, c) of them: the parts of the state. Executors have
(B, H) tensors, the layers: h of every layer, then c of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor

from . import checks
from .call import ModelCall

State: TypeAlias = Tensor | tuple[Tensor, Tensor]  # (num_layers, B, H), for an LSTM (h, c)


def layers_of(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the layers of the parts."""
    return tuple(layer for part in parts for layer in part.unbind(0))


def stacked(layers: Sequence[Tensor], parts: int) -> tuple[Tensor, ...]:
    """Stack the layers into so many parts.

    No views, not of one layer either: whoever carries a state on may ``detach_()`` it.
    """
    each = len(layers) // parts
    return tuple(torch.stack(tuple(layers[i : i + each])) for i in range(0, len(layers), each))


def paired(parts: Sequence[Tensor]) -> State:
    """Return the one part of a state, or the pair of an LSTM's."""
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def start(call: ModelCall, state: State | None, batch: int) -> tuple[Tensor, ...]:
    """Return the checked parts of the caller's state, of ``batch`` rows; of None those of its initial state, or zeros.

    Raises:
        ValueError, TypeError: as :func:`given`; the initial state has another shape than the model's.
    """
    if state is not None:
        return given(call, state, batch)
    spec = call.spec
    if call.initial_state is None:
        sizes = spec.num_layers, batch, spec.hidden_size
        return tuple(call.like.new_zeros(sizes) for _ in range(spec.state_parts))
    shape = ("parts", spec.state_parts), ("num_layers", spec.num_layers), ("hidden_size", spec.hidden_size)
    initial = checks.tensor("initial_state", call.initial_state, shape, call.like)
    return tuple(part.unsqueeze(1).repeat(1, batch, 1) for part in initial)  # one row's is a copy too


def given(call: ModelCall, state: State, batch: int | None) -> tuple[Tensor, ...]:
    """Check the parts of the caller's state: of ``batch`` rows, or of as many as it has.

    Raises:
        ValueError, TypeError: a part of the wrong shape, dtype or device; no pair for an LSTM.
    """

    def part(name: str, value: Tensor, rows: int | None) -> Tensor:
        shape = ("num_layers", call.spec.num_layers), ("B", rows), ("hidden_size", call.spec.hidden_size)
        return checks.tensor(name, value, shape, call.like)

    if call.spec.cell != "lstm":
        return (part("state", cast(Tensor, state), batch),)
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"state of an LSTM must be a pair (h, c), got {type(state).__name__}")
    h = part("state[0]", state[0], batch)
    return h, part("state[1]", state[1], h.shape[1])
