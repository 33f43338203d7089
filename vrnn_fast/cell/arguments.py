"""How the arguments of :class:`vrnn_fast.VRNN` say what a cell is: brought into the form that a CellSpec has them in.

What they say is checked there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from .. import checks
from .spec import MOST_DEPTH, SOURCES, Activation, Activations

Widths: TypeAlias = Sequence[int] | None
HeadLayers: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]
ActivationNames: TypeAlias = Activation | Mapping[str, Activation | Sequence[Activation]]


def widths(name: str, given: Widths, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return the widths of hidden layers, or for None those of the original.

    Raises:
        ValueError: they are none.
    """
    if given is None:
        return default
    found = tuple(given) if isinstance(given, list) else given
    checks.widths(name, found, MOST_DEPTH)
    return cast(tuple[int, ...], found)


def prior(given: Widths | str, default: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the widths of the prior's hidden layers; None for a standard normal prior.

    Raises:
        ValueError: it is neither.
    """
    if given == "standard_normal":
        return None
    if isinstance(given, str):
        raise ValueError(f"prior must be 'standard_normal' or a tuple of positive layer widths, got {given!r}")
    return widths("prior", given, default)


def of_heads(given: HeadLayers) -> tuple[tuple[int, ...], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Return the hidden layers of every head, and those of the heads that have other ones."""
    if not isinstance(given, Mapping):
        return widths("head_layers", given), ()
    return (), tuple((head, widths(f"head_layers of {head}", own)) for head, own in given.items())


def activations(given: ActivationNames) -> tuple[Activation, tuple[tuple[str, Activations], ...]]:
    """Return the activation of every network, and those of the networks and heads that have another one."""
    if not isinstance(given, Mapping):
        return given, ()
    several = {name: tuple(value) for name, value in given.items() if isinstance(value, (tuple, list))}
    return "relu", tuple((name, several.get(name, cast(Activation, value))) for name, value in given.items())


def normalized(given: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the networks whose hidden layers are normalised."""
    networks = tuple(name for name in SOURCES if name != "cell")
    if isinstance(given, bool):
        return networks if given else ()
    return tuple(checks.names("layer_norm", given, networks))


def orders(given: Mapping[str, Sequence[str]] | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the orders of columns that are not the original's.

    Raises:
        TypeError: they are no mapping of names to tuples.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"input_order must be a mapping of networks to tuples of sources, got {given!r}")
    for name, order in (given or {}).items():
        if not isinstance(order, (tuple, list)):
            raise TypeError(f"input_order of {name} must be a tuple of sources, got {order!r}")
    return tuple((name, tuple(order)) for name, order in (given or {}).items())
