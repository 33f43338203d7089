"""The same random numbers for two runs in different dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class RecordNoise(TorchDispatchMode):
    """Keeps every random tensor that is drawn inside."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.drawn.append(result.clone())
        return result


class ReplayNoise(TorchDispatchMode):
    """Hands out what a :class:`RecordNoise` kept, in its order, whatever dtype is asked for."""

    def __init__(self, record: RecordNoise) -> None:
        super().__init__()
        self.left = list(record.drawn)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            result.copy_(self.left.pop(0))
        return result
