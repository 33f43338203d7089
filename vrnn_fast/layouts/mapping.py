"""A layout that the user writes: a mapping of roles to names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from .. import checks
from ..cell.spec import ACTIVATIONS, Conditioned, Std
from .base import Layout, Outcome, Run, Sequences, sequence
from .structure import LayoutError, Roles
from .words import in_words

_ROLES = tuple(f.name for f in fields(Roles))
_NAMES = ("x", "cond", "target", "lengths", "state")  # of forward's arguments
_OPTIONS = (
    "activation",
    "batch_first",
    "input_order",
    "cond_networks",
    "like",
    "noise",
    "outputs",
    "outside",
    "residual",
    "sequences",
    "skip",
    "std",
)
_KEYS = (*_ROLES, *_NAMES, *_OPTIONS)
_INSTEAD = ("x", "cond", "target", "lengths", "batch_first", "skip")  # that a function for sequences stands for
_COND_TO = ("encoder", "prior", "decoder")


@dataclass(frozen=True)
class Written(Outcome):
    """The user's own: what forward returns, and how noise is drawn."""

    alone: ClassVar[bool] = False

    outputs: Callable[[Run], Any]
    draw: Callable[[Tensor], Any] | None

    def noise(self, out: Tensor, fix: frozenset[str]) -> None:
        if self.draw is None:
            super().noise(out, fix)
        else:
            self.draw(out)

    def output(self, run: Run, fix: frozenset[str]) -> Any:
        return self.outputs(run)


@dataclass(frozen=True)
class Named:
    """Sequences by the names of forward's arguments, ``""`` where there is none; x is the first by default."""

    x: str
    cond: str
    target: str
    lengths: str
    skip: int
    batch_first: bool

    def __call__(self, module: nn.Module, **arguments: Any) -> Sequences:
        """Return each of them without its first ``skip`` steps."""
        x = self.x or next(iter(arguments))

        def steps(name: str, *, features: bool = True) -> Tensor | None:
            if not name:
                return None
            found = sequence(name, arguments[name], self.batch_first, features=features)
            if found.shape[0] <= self.skip:
                raise ValueError(f"{name} must have T > {self.skip} steps, got shape {tuple(found.shape)}")
            return found[self.skip :]

        lengths = arguments.get(self.lengths)
        if isinstance(lengths, Tensor):
            lengths = (lengths - self.skip).clamp(min=0)
        seen, target = steps(x, features=False), steps(self.target, features=False)
        return Sequences(seen, steps(self.cond), lengths, target)  # type: ignore[arg-type]

    def example(
        self, arguments: Mapping[str, Any], features: int, cond: int, steps: int, batch: int
    ) -> tuple[Any, ...]:
        """Return all arguments of forward: sequences for those that are named, defaults for others.

        Raises:
            LayoutError: another one has no default.
        """
        widths = {self.x or next(iter(arguments)): features, self.target: features, self.cond: cond}
        given = dict(arguments)
        for name in filter(None, widths):
            x = torch.rand(steps + self.skip, batch, widths[name])
            given[name] = x.transpose(0, 1) if self.batch_first else x
        if self.lengths:
            given[self.lengths] = (self.skip + steps - torch.arange(batch)).clamp(min=1)
        for name, value in given.items():
            if value is inspect.Parameter.empty:
                raise LayoutError(f"forward takes {name}, which no key of the layout names: pass example=")
        return tuple(given.values())


def mapped(layout: Mapping[str, Any], known: Iterable[Layout]) -> Layout:
    """Describe a layout by a mapping.

    Its keys are the roles of :class:`Roles`, each with the path of a sub-module (``decoder_heads`` with a tuple of
    them, ``""`` where there is no such network), and these. What the cell is:

    - ``"activation"``: after hidden layers, where the modules do not tell; as :class:`vrnn_fast.VRNN` takes it,
    - ``"std"``: the :class:`vrnn_fast.Std` of posterior and prior,
    - ``"residual"``: whether the encoder gives what the posterior's mean adds to the prior's,
    - ``"cond_networks"``: which of ``"encoder"``, ``"prior"``, ``"decoder"`` and ``"cell"`` read the conditioning
      input; all but the cell by default, if there is one,
    - ``"input_order"``: a mapping of ``"encoder"``, ``"prior"``, ``"decoder"`` or ``"cell"`` to the order of what it
      reads, of ``"phi_x"``, ``"phi_z"``, ``"h"`` and ``"cond"``.

    What goes in, by the names of forward's arguments:

    - ``"x"``: the first one by default; ``"batch_first"``: whether it, and all below, are (B, T, ...),
    - ``"cond"``: (T, B, C) the conditioning input,
    - ``"target"``: (T, B, ...) what the outputs are compared with, if that is not x; ``outputs`` finds it in the run,
    - ``"lengths"``: (B,) of the rows, and ``"state"``: the state to start from,
    - ``"skip"``: how many of the first steps are left out of all of them: 1 where the loop begins at x[1],
    - ``"sequences"``: in place of all these but the state, a function of the module and forward's arguments, as a
      method would be, that returns the tuple (x, cond, lengths, target), time first and with None for what there is
      not. It may call sub-modules that ``"outside"`` names. Give an ``example=`` if forward takes several arguments.

    What comes out:

    - ``"outputs"``: a function of :class:`Run` that gives what the original's forward returns; without it that is found
      by running,
    - ``"noise"``: a function that fills (B, Z) with one step's noise in place, ``Tensor.normal_`` by default,
    - ``"outside"``: a tuple of paths of sub-modules that ``outputs`` or ``sequences`` call.

    And ``"like"`` is the name of a known layout, ``"eager-vrnn"`` by default, of which all is taken that is left out
    here.

    Raises:
        LayoutError: a key that is none of these, a value of another kind, or keys that exclude each other.

    Examples:
        >>> fast = accelerate(theirs, layout={"like": "eager-vrnn"})
    """
    unknown = [key for key in layout if key not in _KEYS]
    if unknown:
        raise LayoutError(f"layout may hold {', '.join(_KEYS)}, got {', '.join(map(repr, unknown))}")
    bases = {base.name: base for base in known}
    base = bases.get(layout.get("like", "eager-vrnn"))
    if base is None:
        raise LayoutError(f"layout['like'] must be one of {', '.join(bases)}, got {in_words(layout['like'])}")
    _check(layout)
    roles = {name: layout[name] for name in _ROLES if name in layout}
    if "decoder_heads" in roles:
        heads = roles["decoder_heads"]
        roles["decoder_heads"] = (heads,) if isinstance(heads, str) else tuple(heads)
    traits = {name: layout[name] for name in ("activation", "std", "residual") if name in layout}
    if isinstance(layout.get("activation"), Mapping):
        traits["activations"] = tuple(traits.pop("activation").items())
    if "input_order" in layout:
        traits["input_order"] = tuple((network, tuple(order)) for network, order in layout["input_order"].items())
    if "cond_networks" in layout or "cond" in layout:
        traits["cond_networks"] = tuple(layout.get("cond_networks", base.traits.cond_networks or _COND_TO))
    written = None
    if "outputs" in layout:
        written = Written(layout["outputs"], layout.get("noise"))
    batch_first = layout.get("batch_first", base.batch_first)
    made = layout.get("sequences")
    if any(name in layout for name in ("x", "cond", "target", "skip")):
        names = {name: layout.get(name, "") for name in ("x", "cond", "target", "lengths")}
        made = Named(**names, skip=layout.get("skip", 0), batch_first=batch_first)
    return replace(
        base,
        name="mapping",
        title="the layout given",
        roles=replace(base.roles, **roles),
        batch_first=batch_first,
        traits=replace(base.traits, **traits),
        outside=(*base.outside, *layout.get("outside", ())),
        lengths=layout.get("lengths", ""),
        state=layout.get("state", ""),
        written=written,
        made=made,
    )


def _check(layout: Mapping[str, Any]) -> None:
    """Raise LayoutError for a value of the wrong kind, and for keys that exclude each other."""
    try:
        for name, value in layout.items():
            _check_value(name, f"layout[{name!r}]", value)
    except (TypeError, ValueError) as error:
        raise LayoutError(str(error)) from None
    for name in ("noise", "x", "cond", "target"):
        if name in layout and "outputs" not in layout:
            raise LayoutError(f"layout[{name!r}] goes with layout['outputs']")
    beside = [name for name in _INSTEAD if name in layout]
    if "sequences" in layout and beside:
        raise LayoutError(f"layout['sequences'] stands for {', '.join(map(repr, beside))}: leave out one or the other")


def _check_value(key: str, name: str, value: object) -> None:
    """Raise TypeError or ValueError for a value that its key does not take; ``name`` is what the message calls it."""
    match key:
        case "outputs" | "noise" | "sequences":
            checks.function(name, value)
        case "batch_first" | "residual":
            checks.flag(name, value)
        case "skip":
            checks.integer(name, value, least=0)
        case "activation" if not isinstance(value, Mapping):
            checks.one_of(name, value, ACTIVATIONS)
        case "std":
            checks.instance(name, value, Std, "a vrnn_fast.Std")
        case "cond_networks":
            checks.names(name, value, get_args(Conditioned))
        case "outside":
            checks.several(name, value)
        case "decoder_heads":
            checks.several(name, (value,) if isinstance(value, str) else value, "paths of sub-modules")
        case _ if key in _NAMES:
            checks.instance(name, value, str, "the name of an argument of forward")
        case _ if key in _ROLES:
            checks.instance(name, value, str, "the path of a sub-module")


def check_names(layout: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise LayoutError if a mapping names an argument that forward does not take."""
    for key in _NAMES:
        if layout.get(key, "") not in ("", *arguments):
            raise LayoutError(
                f"layout[{key!r}] must be one of forward's {', '.join(arguments)}, got {in_words(layout[key])}"
            )
