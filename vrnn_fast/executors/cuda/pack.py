"""Which element of which parameter goes where in the weights of a call's kernels: tables for csrc/cuda/rows/pack.h.
Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...cell.spec import CellSpec
from .memory import Memory, image, operand_bytes

ALIGNMENT = 128  # bytes, from which each image begins
MOST_PARAMETERS, MOST_ELEMENTS = 255, 1 << 24  # of a call, and of one of them: what a place can say
_ZERO = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True, eq=False)
class Packing:
    """The images of some kernels, one behind the other.

    Attributes:
        operands: (elements) parameter << 24 | element; of what none fills, all bits.
        biases: (terms, floats) likewise; a bias is the sum of its terms.
        starts: of each kernel, the first byte of its weights in shared memory, of those in the order of lanes, and its
            first bias.
        size: bytes of an operand.
    """

    operands: NDArray[np.uint32]
    biases: NDArray[np.uint32]
    starts: tuple[tuple[int, int, int], ...]
    size: int


def misfit(spec: CellSpec) -> str | None:
    """Return None, or why the parameters cannot be numbered."""
    shapes = [int(np.prod(p.shape)) for p in spec.parameters()]
    if len(shapes) > MOST_PARAMETERS or max(shapes) > MOST_ELEMENTS:
        return (
            f"its tables number {MOST_PARAMETERS} parameters of {MOST_ELEMENTS} elements, and there are {len(shapes)} "
            f"of up to {max(shapes)}"
        )
    return None


@lru_cache(maxsize=256)
def packing(spec: CellSpec, memories: tuple[Memory, ...]) -> Packing:
    """Lay out the images of the kernels that lie in memory like this."""
    sizes = [int(np.prod(p.shape)) for p in spec.parameters()]
    ends = np.cumsum(sizes)
    size = operand_bytes(memories[0].kind)
    starts, operands, biases, bytes_, floats = list[tuple[int, int, int]](), [], [], 0, 0
    for memory in memories:
        found = image(spec, memory)
        own = [_placed(places, sizes, ends) for places in (found.shared, found.streamed)]
        starts.append((bytes_, bytes_ + _whole(own[0].size * size), floats))
        operands += [_padded(places, _whole(places.size * size) // size) for places in own]
        bytes_ += sum(_whole(places.size * size) for places in own)
        biases.append(_placed(found.biases, sizes, ends))
        floats += found.biases.shape[1]
    terms = max(places.shape[0] for places in biases)
    stacked = [np.pad(b, ((0, terms - b.shape[0]), (0, 0)), constant_values=_ZERO) for b in biases]
    return Packing(np.concatenate(operands), np.concatenate(stacked, 1), tuple(starts), size)


def _whole(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _padded(places: NDArray[np.uint32], size: int) -> NDArray[np.uint32]:
    return np.pad(places, (0, size - places.size), constant_values=_ZERO)


def _placed(places: NDArray[np.int64], sizes: Iterable[int], ends: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Turn places among all parameters side by side into parameter and element."""
    own = np.searchsorted(ends, places, side="right")
    first = np.concatenate([[0], ends])[own]
    found: NDArray[np.uint32] = np.where(places >= ends[-1], _ZERO, own << 24 | places - first).astype(np.uint32)
    return found
