"""Reading a foreign model by names and shapes: chains of affine layers, a recurrent cell, and what follows each layer.

Nothing here knows any one layout. What cannot be read raises :class:`LayoutError`, naming what was looked for and what
was found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..spec import Activation, CellSpec, Std
from ..spec import Cell as CellKind

Shapes = Mapping[str, tuple[int, ...]]

_CELLS: dict[int, CellKind] = {3: "gru", 4: "lstm"}


class LayoutError(ValueError):
    """The model or checkpoint is not of a layout that can be run; the message says what was looked for and found."""


@dataclass(frozen=True)
class Roles:
    """Which sub-module plays which part, by its path. A network that a model does not have is ``""``.

    ``phi_x``, ``phi_z``, ``encoder``, ``prior`` and ``decoder`` are hidden layers, each followed by the activation; the
    others are one affine layer each, with or without its transform beside it. ``decoder_heads`` are in the order in
    which the output is computed from them.
    """

    phi_x: str = "phi_x"
    phi_z: str = "phi_z"
    encoder: str = "enc"
    encoder_mean: str = "enc_mean"
    encoder_std: str = "enc_std"
    prior: str = "prior"
    prior_mean: str = "prior_mean"
    prior_std: str = "prior_std"
    decoder: str = "dec"
    decoder_heads: tuple[str, ...] = ("dec_mean", "dec_std")
    cell: str = "rnn"

    def paths(self) -> tuple[str, ...]:
        """Every path that is named, in the order of the fields."""
        values = (value for value in vars(self).values())
        return tuple(p for v in values for p in ((v,) if isinstance(v, str) else v) if p)


@dataclass(frozen=True)
class Structure:
    """A foreign model as an executor runs it.

    Attributes:
        spec: the cell.
        names: the model's own name of each parameter, in the order of ``spec.parameters()``.
        hidden: the prefixes of the affine layers that an activation follows.
        heads: those of the decoder's heads, in the order in which ``raw`` holds them.
    """

    spec: CellSpec
    names: tuple[str, ...]
    hidden: tuple[str, ...]
    heads: tuple[str, ...]


def chain(shapes: Shapes, path: str) -> tuple[str, ...]:
    """The prefixes of the affine layers at ``path``, in the order they run: the layer itself, or ``path.0``,
    ``path.2``, ``path.linear1``, ..."""
    if not path:
        return ()
    if f"{path}.weight" in shapes:
        return (path,)
    found = []
    for name in shapes:
        match = re.fullmatch(rf"({re.escape(path)}\.[A-Za-z_]*(\d+))\.weight", name)
        if match:
            found.append((int(match[2]), match[1]))
    return tuple(prefix for _, prefix in sorted(found))


def read(shapes: Shapes, roles: Roles, activation: Activation, std: Std) -> Structure:
    """The structure of a model whose sub-modules play these roles.

    Raises:
        LayoutError: a layer is missing, or has another shape than its role asks for.
    """
    cell, bias, hidden_size = _cell(shapes, roles.cell)
    networks = {name: chain(shapes, getattr(roles, name)) for name in ("phi_x", "phi_z", "encoder", "prior", "decoder")}
    heads = {
        name: _head(shapes, getattr(roles, name)) for name in ("encoder_mean", "encoder_std", "prior_mean", "prior_std")
    }
    decoder_heads = tuple(_head(shapes, path) for path in roles.decoder_heads)
    for prefix in (*(p for layers in networks.values() for p in layers), *heads.values(), *decoder_heads):
        if len(shapes[f"{prefix}.weight"]) != 2 or f"{prefix}.bias" not in shapes:
            raise LayoutError(f"{prefix} must be an affine layer with a bias, found {_found(shapes, prefix)}")

    def widths(layers: Sequence[str]) -> tuple[int, ...]:
        return tuple(shapes[f"{p}.weight"][0] for p in layers)

    latent = shapes[f"{heads['encoder_mean']}.weight"][0]
    first = (*networks["encoder"], heads["encoder_mean"])[0]
    of_x = networks["phi_x"][0] if networks["phi_x"] else first
    input_size = shapes[f"{of_x}.weight"][1] - (0 if networks["phi_x"] else hidden_size)
    try:
        spec = CellSpec(
            input_size,
            hidden_size,
            latent,
            cell=cell,
            bias=bias,
            phi_x=widths(networks["phi_x"]),
            phi_z=widths(networks["phi_z"]),
            encoder=widths(networks["encoder"]),
            prior=widths(networks["prior"]),
            decoder=widths(networks["decoder"]),
            activation=activation,
            std=std,
            likelihood="external",
            decoder_heads=tuple((f"dec_{i}", w) for i, w in enumerate(widths(decoder_heads))),
        )
    except ValueError as error:
        raise LayoutError(f"{first}.weight has shape {_shape(shapes, f'{first}.weight')}: {error}") from error

    theirs: dict[str, str] = {}
    for name, layers in networks.items():
        ours = spec.network(name)
        mine = [layer.prefix for layer in ours.layers]
        own = (*layers, *{"encoder": (heads["encoder_mean"], heads["encoder_std"]),
                          "prior": (heads["prior_mean"], heads["prior_std"]),
                          "decoder": decoder_heads}.get(name, ()))  # fmt: skip
        theirs |= dict(zip(mine, own, strict=True))
    names = []
    suffix = "_l0" if f"{roles.cell}.weight_ih_l0" in shapes else ""
    for name, shape in spec.parameters():
        owner, _, leaf = name.rpartition(".")
        own_name = f"{roles.cell}.{leaf.removesuffix('_l0')}{suffix}" if owner == "rnn" else f"{theirs[owner]}.{leaf}"
        if shapes.get(own_name) != shape:
            raise LayoutError(
                f"{own_name} must have shape {shape} for x of {spec.input_size}, z of {spec.latent_size} and h of "
                f"{spec.hidden_size} features, found {_shape(shapes, own_name)}"
            )
        names.append(own_name)
    return Structure(spec, tuple(names), tuple(p for layers in networks.values() for p in layers), decoder_heads)


def _cell(shapes: Shapes, path: str) -> tuple[CellKind, bool, int]:
    """The kind of cell at ``path``, whether it has biases, and the width of its state."""
    leaves = {name.removeprefix(f"{path}."): shape for name, shape in shapes.items() if name.startswith(f"{path}.")}
    suffix = "_l0" if "weight_hh_l0" in leaves else ""
    hidden = leaves.get(f"weight_hh{suffix}")
    if hidden is None or len(hidden) != 2:
        raise LayoutError(f"{path} must be a GRU or an LSTM with weight_hh_l0 or weight_hh, found {_names(leaves)}")
    if any(name.endswith("_reverse") for name in leaves):
        raise LayoutError(f"{path} runs in both directions, and a model of the next step must not")
    layers = sum(name.startswith("weight_hh") for name in leaves)
    if layers > 1:
        raise LayoutError(f"{path} needs {_count(layers)} recurrent layers, which this release does not run")
    gates, rest = divmod(hidden[0], hidden[1])
    if rest or gates not in _CELLS:
        what = "a tanh cell" if gates == 1 else f"a cell with weight_hh{suffix} of shape {hidden}"
        raise LayoutError(f"{path} needs {what}, which this release does not run")
    return _CELLS[gates], f"bias_ih{suffix}" in leaves, hidden[1]


def _head(shapes: Shapes, path: str) -> str:
    layers = chain(shapes, path)
    if not layers:
        raise LayoutError(f"{path} must be an affine layer, found {_found(shapes, path)}")
    if len(layers) > 1:
        raise LayoutError(f"{path} needs a head with hidden layers of its own, which this release does not run")
    return layers[0]


def _found(shapes: Shapes, path: str) -> str:
    return _names({n: s for n, s in shapes.items() if n == path or n.startswith(f"{path}.")})


def _names(shapes: Shapes) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()) or "nothing of that name"


def _shape(shapes: Shapes, name: str) -> str:
    return str(shapes[name]) if name in shapes else "nothing of that name"


def _count(number: int) -> str:
    return {2: "two", 3: "three", 4: "four"}.get(number, str(number))
