"""Run a kernel's source on the CPU: every thread a fiber, in an order that can be chosen. Slow, strict and exact."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from torch import Tensor

from . import build
from .driver import Struct, structs

Order = Literal["round robin", "ahead", "behind", "random", "one ahead", "one behind"]


@dataclass(frozen=True)
class Schedule:
    """Whose turn it is: csrc/cuda/device/emulator.h.

    Attributes:
        order: turn by turn; one warp of each block, or one block, ahead of all others, or behind them; by chance; one
            warp of the whole grid ahead, or behind.
        warp: which one; -1 - b for block b.
        seed: of chance.
        late: whether a copy lands when it is waited for, else at once.
        without: the number of a barrier or a wait that is left out, to see that somebody notices; -1 for none.
    """

    order: Order = "round robin"
    warp: int = 0
    seed: int = 1
    late: bool = True
    without: int = -1


schedule = Schedule()


class Fault(RuntimeError):
    """What a kernel may not do: a race that shows, a deadlock, an address outside."""


def launch(text: str, tensors: Sequence[Tensor | None], numbers: Sequence[int], more: Sequence[Struct] = ()) -> None:
    """Run a kernel over its whole grid.

    Args:
        text: its source.
        tensors: the pointers of its struct Call.
        numbers: what stands behind them there.
        more: pointers and numbers of further structs in it.

    Raises:
        Fault: with the emulator's message.
    """
    arguments = structs(((tensors, numbers), *more))
    own = schedule
    chosen = get_args(Order).index(own.order), own.warp, own.seed, own.late, own.without
    said = _kernel(text)(arguments, *chosen).decode()
    if said:
        raise Fault(said)


@lru_cache(maxsize=256)
def _kernel(text: str) -> ctypes._NamedFuncPointer:
    function = build.library(text).vrnn_scan
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
    return function
