"""A layout that the user writes: a mapping of roles to names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor

from .base import Layout, Objective, Run
from .reading import LayoutError, Roles
from .words import in_words

_ROLES = tuple(f.name for f in fields(Roles))
_OPTIONS = ("activation", "batch_first", "columns", "lengths", "like", "noise", "outputs", "outside", "state", "std")


@dataclass(frozen=True)
class Written(Objective):
    """The user's own: what forward returns, and how noise is drawn."""

    alone: ClassVar[bool] = False

    outputs: Callable[[Run], Any]
    draw: Callable[[Tensor], Any] | None

    def noise(self, out: Tensor, mend: frozenset[str]) -> None:
        if self.draw is None:
            super().noise(out, mend)
        else:
            self.draw(out)

    def output(self, run: Run, mend: frozenset[str]) -> Any:
        return self.outputs(run)


def mapped(layout: Mapping[str, Any], known: Iterable[Layout]) -> Layout:
    """The layout that a mapping describes.

    Its keys are the roles of :class:`Roles`, each with the path of a sub-module (``decoder_heads`` with a tuple of
    them, ``""`` where there is no such network), and

    - ``"outputs"``: a function of :class:`Run` that gives what the original's forward returns; without it that is found
      by running,
    - ``"noise"``: a function that fills (B, Z) with one step's noise in place, ``Tensor.normal_`` by default,
    - ``"activation"``: after hidden layers, where the modules do not tell,
    - ``"columns"``: a mapping of ``"encoder"``, ``"prior"``, ``"decoder"`` or ``"cell"`` to the order of what it reads,
      of ``"phi_x"``, ``"phi_z"``, ``"h"`` and ``"cond"``,
    - ``"std"``: the :class:`vrnn_fast.Std` of posterior and prior,
    - ``"batch_first"``: whether x is (B, T, X),
    - ``"lengths"``, ``"state"``: the names of forward's arguments for the rows' lengths and the state to start from,
    - ``"outside"``: a tuple of paths of sub-modules that ``outputs`` calls,
    - ``"like"``: the name of a known layout, E by default, of which all is taken that is left out here.

    Raises:
        LayoutError: a key that is none of these, or a value of another kind.
    """
    unknown = [key for key in layout if key not in (*_ROLES, *_OPTIONS)]
    if unknown:
        raise LayoutError(f"layout may hold {', '.join((*_ROLES, *_OPTIONS))}, got {', '.join(map(repr, unknown))}")
    bases = {base.name: base for base in known}
    base = bases.get(layout.get("like", "E"))
    if base is None:
        raise LayoutError(f"layout['like'] must be one of {', '.join(bases)}, got {layout['like']!r}")
    roles = {name: layout[name] for name in _ROLES if name in layout}
    for name, path in roles.items():
        if name == "decoder_heads":
            roles[name] = path = (path,) if isinstance(path, str) else tuple(path)
        if not all(isinstance(p, str) for p in (path if name == "decoder_heads" else (path,))):
            raise LayoutError(f"layout[{name!r}] must be the path of a sub-module, got {in_words(path)}")
    for name in ("outputs", "noise"):
        if name in layout and not callable(layout[name]):
            raise LayoutError(f"layout[{name!r}] must be a function, got {in_words(layout[name])}")
    if "noise" in layout and "outputs" not in layout:
        raise LayoutError("layout['noise'] goes with layout['outputs']")
    traits = {name: layout[name] for name in ("activation", "std") if name in layout}
    if "columns" in layout:
        traits["columns"] = tuple((network, tuple(order)) for network, order in layout["columns"].items())
    written = None
    if "outputs" in layout:
        written = Written(layout["outputs"], layout.get("noise"))
    return replace(
        base,
        name="mapping",
        title="the layout given",
        roles=replace(base.roles, **roles),
        batch_first=layout.get("batch_first", base.batch_first),
        traits=replace(base.traits, **traits),
        outside=(*base.outside, *layout.get("outside", ())),
        lengths=layout.get("lengths", ""),
        state=layout.get("state", ""),
        written=written,
    )
