"""A layout that the user writes: a mapping of roles to names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from .base import Layout, Objective, Run
from .copied import Copied
from .reading import LayoutError, Roles, Structure, Traits

_ROLES = tuple(f.name for f in fields(Roles))
_OPTIONS = ("activation", "batch_first", "noise", "outputs")


@dataclass(frozen=True)
class Written(Objective):
    """The user's own: what forward returns, and how noise is drawn."""

    outputs: Callable[[Run], Any]
    draw: Callable[[Tensor], Any]

    def noise(self, out: Tensor, mend: frozenset[str]) -> None:
        self.draw(out)

    def output(self, run: Run, mend: frozenset[str]) -> Any:
        return self.outputs(run)


@dataclass(frozen=True)
class Mapped(Copied):
    """Like E in all that the mapping does not say."""

    written: Written | None = None

    def objectives(self, model: nn.Module, structure: Structure) -> Iterator[Objective]:
        return super().objectives(model, structure) if self.written is None else iter((self.written,))


def mapped(layout: Mapping[str, Any]) -> Layout:
    """The layout that a mapping describes.

    Its keys are the roles of :class:`Roles`, each with the path of a sub-module (``decoder_heads`` with a tuple of
    them, ``""`` where there is no such network), and

    - ``"outputs"``: a function of :class:`Run` that gives what the original's forward returns,
    - ``"noise"``: a function that fills (B, Z) with one step's noise in place, ``Tensor.normal_`` by default,
    - ``"activation"``: after hidden layers, where the modules do not tell; ``"relu"`` by default,
    - ``"batch_first"``: whether x is (B, T, X).

    What is left out is as in layout E.

    Raises:
        LayoutError: a key that is none of these, or a value of another kind.
    """
    unknown = [key for key in layout if key not in (*_ROLES, *_OPTIONS)]
    if unknown:
        raise LayoutError(f"layout may hold {', '.join((*_ROLES, *_OPTIONS))}, got {', '.join(map(repr, unknown))}")
    roles = {name: layout[name] for name in _ROLES if name in layout}
    for name, path in roles.items():
        if name == "decoder_heads":
            roles[name] = path = (path,) if isinstance(path, str) else tuple(path)
        if not all(isinstance(p, str) for p in (path if name == "decoder_heads" else (path,))):
            raise LayoutError(f"layout[{name!r}] must be the path of a sub-module, got {path!r}")
    for name in ("outputs", "noise"):
        if name in layout and not callable(layout[name]):
            raise LayoutError(f"layout[{name!r}] must be a function, got {layout[name]!r}")
    if "noise" in layout and "outputs" not in layout:
        raise LayoutError("layout['noise'] goes with layout['outputs']")
    written = None
    if "outputs" in layout:
        written = Written(layout["outputs"], layout.get("noise", Tensor.normal_))
    return Mapped(
        "mapping",
        "the layout given",
        Roles(**roles),
        batch_first=layout.get("batch_first", False),
        traits=Traits(activation=layout.get("activation", "relu")),
        written=written,
    )
