"""A plain dictionary of arrays, none of which may be missing or left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..layouts.structure import LayoutError


class Arrays:
    """The arrays of a model of the layout ``name``, by name."""

    def __init__(self, name: str, arrays: Mapping[str, Tensor]) -> None:
        self.name = name
        self.arrays = arrays
        self.left = set(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def take(self, name: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
        """Take the array of this name; ``shape`` may hold None where any size will do.

        Raises:
            LayoutError: it is missing, or has another shape.
        """
        if name not in self.arrays:
            raise LayoutError(f"layout {self.name} needs {name}, found {', '.join(sorted(self.arrays))}")
        self.left.discard(name)
        array = self.arrays[name]
        if shape is not None and (
            array.dim() != len(shape) or any(w not in (None, s) for w, s in zip(shape, array.shape, strict=True))
        ):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise LayoutError(f"{name} must have shape ({expected}), found {tuple(array.shape)}")
        return array

    def leave(self, names: Iterable[str]) -> None:
        """Leave these out: the module has no use for them."""
        self.left.difference_update(names)

    def finish(self) -> None:
        """Raise LayoutError if an array was not taken."""
        if self.left:
            raise LayoutError(f"layout {self.name} has no place for {', '.join(sorted(self.left))}")
