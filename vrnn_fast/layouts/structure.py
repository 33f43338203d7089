"""Reading a foreign model by names and shapes: chains of affine layers, a recurrent cell, and what follows each layer.

Nothing here knows any one layout. What cannot be read raises :class:`LayoutError`, naming what was looked for and what
was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell.spec import Activation, Activations, CellSpec, Conditioned, Std
from ..cell.spec import Cell as CellKind
from .widening import Widening

Shapes = Mapping[str, tuple[int, ...]]

PASSED = "(what the decoder reads)"
_STD = Std(floor=0.0)
_CELLS: dict[int, CellKind] = {1: "rnn", 3: "gru", 4: "lstm"}
_NETWORKS = ("phi_x", "phi_z", "encoder", "prior", "decoder")


class LayoutError(ValueError):
    """The model or checkpoint is not of a layout that can be run; the message says what was looked for and found.

    Examples:
        >>> try:
        ...     accelerate(torch.nn.Sequential(torch.nn.Linear(3, 3)))
        ... except LayoutError:
        ...     print("no VRNN")
        no VRNN
    """


@dataclass(frozen=True)
class Roles:
    """Which sub-module plays which part, by its path. A network that a model does not have is ``""``.

    ``phi_x``, ``phi_z``, ``encoder``, ``prior`` and ``decoder`` are hidden layers, with or without activations; the
    others are heads, an affine layer each or hidden layers and one, with or without a transform beside it. Without a
    head for the standard deviation, that for the mean gives both, the mean first. ``decoder_heads`` are in the order
    in which the output is computed from them.
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
        """Return every path that is named, in the order of the fields."""
        values = (value for value in vars(self).values())
        return tuple(p for v in values for p in ((v,) if isinstance(v, str) else v) if p)

    def below(self, index: int) -> Roles:
        """Return the paths of the sub-modules of this index."""
        single = {name: path and f"{path}.{index}" for name, path in vars(self).items() if isinstance(path, str)}
        return replace(self, **single, decoder_heads=tuple(f"{path}.{index}" for path in self.decoder_heads))

    def heads(self, network: str) -> tuple[str, ...]:
        """Return the paths of a network's heads."""
        if network == "decoder":
            return self.decoder_heads
        if network in ("encoder", "prior"):
            return tuple(p for p in (getattr(self, f"{network}_mean"), getattr(self, f"{network}_std")) if p)
        return ()


@dataclass(frozen=True)
class Traits:
    """What names and shapes do not tell of a model, or only together with this.

    Attributes:
        activation: after hidden layers.
        activations: after those of single networks and heads, where it is another one: of all or of each.
        std: of posterior and prior.
        residual: whether the encoder gives what the posterior's mean adds to the prior's.
        cond_networks: the networks that see the conditioning input.
        input_order: of networks, or the cell, that read their sources in another order than those of this package.
    """

    activation: Activation = "relu"
    activations: tuple[tuple[str, Activations], ...] = ()
    std: Std = _STD
    residual: bool = False
    cond_networks: tuple[Conditioned, ...] = ()
    input_order: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Passed(NamedTuple):
    """An affine layer of no weights of its own in the decoder's place, whose output is what it reads.

    Attributes:
        place: of its weight among the parameters; the bias comes next.
        width: of what the decoder reads.
    """

    place: int
    width: int

    def parameters(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the model's own with these two among them."""
        like = parameters[0]
        own = torch.eye(self.width, dtype=like.dtype, device=like.device), like.new_zeros(self.width)
        return [*parameters[: self.place], *own, *parameters[self.place :]]


@dataclass(frozen=True)
class Structure:
    """A foreign model as an executor runs it.

    Attributes:
        spec: the cell.
        names: the model's own name of each parameter, in the order of ``spec.parameters()``.
        hidden: for each network and head, by our name of it, the prefixes of its hidden layers.
        heads: the paths of the decoder's heads, in the order in which ``raw`` holds them.
        widening: how a run gives the raw outputs for standard deviations as well, or None where it does not.
        passed: how a run gives what the decoder reads in place of its heads, or None where it does not.
    """

    spec: CellSpec
    names: tuple[str, ...]
    hidden: tuple[tuple[str, tuple[str, ...]], ...]
    heads: tuple[str, ...]
    widening: Widening | None = None
    passed: Passed | None = None

    @property
    def raw(self) -> tuple[str, ...]:
        """What ``raw`` holds: the decoder's heads, or what the decoder reads."""
        return self.heads if self.passed is None else (PASSED,)


def chain(shapes: Shapes, path: str) -> tuple[str, ...]:
    """Find the prefixes of the affine layers at ``path``, in the order they run: the layer itself, or ``path.0``,
    ``path.2``, ``path.linear1``, ..."""
    if not path:
        return ()
    if f"{path}.weight" in shapes:
        return (path,)
    found = []
    for name in shapes:
        match = re.fullmatch(rf"({re.escape(path)}\.[A-Za-z_]*(\d+))\.weight", name)
        if match and len(shapes[name]) > 1:
            found.append((int(match[2]), match[1]))
    return tuple(prefix for _, prefix in sorted(found))


def read(shapes: Shapes, roles: Roles, traits: Traits) -> Structure:
    """Read the structure of a model whose sub-modules play these roles.

    Raises:
        LayoutError: a layer is missing, or has another shape than its role asks for.
    """
    cell, layers, bias, hidden_size = _cell(shapes, roles.cell)
    heads = {name: tuple(_head(shapes, path) for path in roles.heads(name)) for name in _NETWORKS}
    used = {prefix for name in _NETWORKS for head in heads[name] for prefix in head}
    networks = {name: tuple(p for p in chain(shapes, getattr(roles, name)) if p not in used) for name in _NETWORKS}
    for prefix in (p for name in _NETWORKS for layers_ in (networks[name], *heads[name]) for p in layers_):
        if len(shapes.get(f"{prefix}.weight", ())) != 2 or f"{prefix}.bias" not in shapes:
            raise LayoutError(f"{prefix} must be an affine layer with a bias, found {_found(shapes, prefix)}")

    def widths(prefixes: Sequence[str]) -> tuple[int, ...]:
        return tuple(shapes[f"{p}.weight"][0] for p in prefixes)

    def reads(name: str) -> int:
        return shapes[f"{(*networks[name], *heads[name][0])[0]}.weight"][1]

    packed = not roles.encoder_std
    latent = widths(heads["encoder"][0])[-1] // (2 if packed else 1)
    cond = 0
    if traits.cond_networks:
        inputs = {name: reads(name) for name in ("encoder", "prior", "decoder")}
        inputs["cell"] = shapes[_recurrent(shapes, roles.cell, "weight_ih_l0")][1]
        top_x, top_z = (widths(networks[name])[-1] if networks[name] else None for name in ("phi_x", "phi_z"))
        cond = _conditioning(inputs, traits.cond_networks, hidden_size, top_x, latent if top_z is None else top_z)
    if networks["phi_x"]:
        input_size = shapes[f"{networks['phi_x'][0]}.weight"][1]
    else:
        input_size = reads("encoder") - hidden_size - (cond if "encoder" in traits.cond_networks else 0)
    own = [widths(head[:-1]) for name in _NETWORKS for head in heads[name]]
    normalized = []
    for name in _NETWORKS:
        hidden = [*networks[name], *(prefix for head in heads[name] for prefix in head[:-1])]
        without = [prefix for prefix in hidden if _norm(shapes, prefix) is None]
        if len(without) < len(hidden):
            normalized.append(name)
            if without:
                raise LayoutError(
                    f"{without[0]} has no layer normalisation behind it, as other layers of its network have: all of "
                    "them, or none, are run here"
                )
    try:
        spec = CellSpec(
            input_size,
            hidden_size,
            latent,
            cell=cell,
            num_layers=layers,
            bias=bias,
            phi_x=widths(networks["phi_x"]),
            phi_z=widths(networks["phi_z"]),
            encoder=widths(networks["encoder"]),
            prior=widths(networks["prior"]),
            decoder=widths(networks["decoder"]),
            head_layers=own[0] if len(set(own)) == 1 else (),
            packed_heads=packed,
            activation=traits.activation,
            input_order=traits.input_order,
            residual=traits.residual,
            std=traits.std,
            likelihood="external",
            decoder_heads=tuple((f"dec_{i}", widths(head)[-1]) for i, head in enumerate(heads["decoder"])),
            cond_size=cond,
            cond_networks=traits.cond_networks,
            normalized=tuple(normalized),
        )
        owners = [head for name in _NETWORKS for head in spec.head_names(name)]
        spec = replace(spec, own_layers=tuple(zip(owners, own, strict=True)), activations=traits.activations)
    except ValueError as error:
        first = (*networks["encoder"], *heads["encoder"][0])[0]
        raise LayoutError(f"{first}.weight has shape {_shape(shapes, f'{first}.weight')}: {error}") from error

    theirs: dict[str, str] = {}
    for name in _NETWORKS:
        network = spec.network(name)
        chains = zip((network.hidden, *network.heads), (networks[name], *heads[name]), strict=True)
        pairs = [pair for ours, own_ in chains for pair in zip(ours, own_, strict=True)]
        theirs |= {layer.prefix: prefix for layer, prefix in pairs}
        theirs |= {layer.norm: norm for layer, prefix in pairs if layer.norm and (norm := _norm(shapes, prefix))}
    return Structure(
        spec,
        tuple(_parameter_names(shapes, spec, theirs, roles.cell)),
        (
            *networks.items(),
            *zip(owners, (head[:-1] for name in _NETWORKS for head in heads[name]), strict=True),
        ),
        tuple(head[-1] for head in heads["decoder"]),
    )


def _norm(shapes: Shapes, prefix: str) -> str | None:
    """Find the prefix of the normalisation right behind an affine layer of a sequence, ``path.1`` behind ``path.0``."""
    path, _, key = prefix.rpartition(".")
    after = f"{path}.{int(key) + 1}" if key.isdigit() else ""
    return after if len(shapes.get(f"{after}.weight", ())) == 1 else None


def _parameter_names(shapes: Shapes, spec: CellSpec, theirs: Mapping[str, str], cell: str) -> Iterator[str]:
    """Yield the model's name of each parameter of the cell; ``theirs`` has its layers' prefixes by ours.

    Raises:
        LayoutError: one has another shape than the cell asks for.
    """
    for name, shape in spec.parameters():
        owner, _, leaf = name.rpartition(".")
        found = f"{theirs[owner]}.{leaf}" if owner != "rnn" else _recurrent(shapes, cell, leaf)
        if shapes.get(found) != shape:
            raise LayoutError(
                f"{found} must have shape {shape} for x of {spec.input_size}, z of {spec.latent_size} and h of "
                f"{spec.hidden_size} features, found {_shape(shapes, found)}"
            )
        yield found


def _conditioning(
    inputs: Mapping[str, int], cond_networks: Sequence[str], hidden: int, top_x: int | None, top_z: int
) -> int:
    """Find the width of the conditioning input, out of the width of all that each network and the cell read.

    ``top_x`` is that of phi_x, None where there is none and the width of x is not known either.

    Raises:
        LayoutError: encoder and cell alone read it, beside an x of unknown width.
    """
    if "prior" in cond_networks:
        return inputs["prior"] - hidden
    if "decoder" in cond_networks:
        return inputs["decoder"] - hidden - top_z
    if top_x is None and {"encoder", "cell"} <= set(cond_networks):
        raise LayoutError("without phi_x the widths of x and cond cannot be told where encoder and cell alone read it")
    beside_x = inputs["cell"] - top_z if "cell" not in cond_networks else inputs["encoder"] - hidden
    top_x = beside_x if top_x is None else top_x
    return inputs["encoder"] - hidden - top_x if "encoder" in cond_networks else inputs["cell"] - top_z - top_x


def _cell(shapes: Shapes, path: str) -> tuple[CellKind, int, bool, int]:
    """Find the kind of cell at ``path``, its number of layers, whether it has biases, and the width of its state."""
    leaves = {name.removeprefix(f"{path}."): shape for name, shape in shapes.items() if name.startswith(f"{path}.")}
    suffix = "_l0" if "weight_hh_l0" in leaves else ""
    hidden = leaves.get(f"weight_hh{suffix}")
    if hidden is None or len(hidden) != 2:
        raise LayoutError(f"{path} must be a recurrent cell with weight_hh_l0 or weight_hh, found {_names(leaves)}")
    if any(name.endswith("_reverse") for name in leaves):
        raise LayoutError(f"{path} runs in both directions, and a model of the next step must not")
    gates, rest = divmod(hidden[0], hidden[1])
    if rest or gates not in _CELLS:
        raise LayoutError(f"{path} must be a GRU, an LSTM or a tanh cell, found weight_hh{suffix} {hidden}")
    layers = sum(name.startswith("weight_hh") for name in leaves)
    return _CELLS[gates], layers, f"bias_ih{suffix}" in leaves, hidden[1]


def _recurrent(shapes: Shapes, path: str, leaf: str) -> str:
    """Find the name of a parameter of the cell, which may be one of a single step."""
    name = f"{path}.{leaf}"
    return name if f"{path}.weight_hh_l0" in shapes else name.removesuffix("_l0")


def _head(shapes: Shapes, path: str) -> tuple[str, ...]:
    layers = chain(shapes, path)
    if not layers:
        raise LayoutError(f"{path} must be an affine layer, found {_found(shapes, path)}")
    return layers


def _found(shapes: Shapes, path: str) -> str:
    return _names({n: s for n, s in shapes.items() if n == path or n.startswith(f"{path}.")})


def _names(shapes: Shapes) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()) or "nothing of that name"


def _shape(shapes: Shapes, name: str) -> str:
    return str(shapes[name]) if name in shapes else "nothing of that name"
