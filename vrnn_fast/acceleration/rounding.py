"""How much of a result is rounding: the same computation with functions that are wrong in the last bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FUNCTIONS = ("sigmoid", "softplus", "exp", "tanh")
_BITS = 4  # units in the last place: as far as two libraries of such functions may be apart


class Shaken(TorchDispatchMode):
    """Lets functions that end in a plateau give results that are wrong in the last bits, the same ones every time.

    A number that was made of 1 - sigmoid(16) moves by 2**23 times as much, and one that has all of its digits does not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.errors = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ not in _FUNCTIONS or not isinstance(result, Tensor):
            return result
        errors = torch.rand(result.shape, generator=self.errors, dtype=result.dtype).to(result.device)
        return result * (1 + _BITS * torch.finfo(result.dtype).eps * (2 * errors - 1))
