"""The modules that hold a cell's parameters, and how a call reads them.

Names and shapes are those of the most copied PyTorch VRNN. The modules hold parameters and are never called: the
launch computes what they describe. So whatever would act on a sub-module's call could have no effect, and
:func:`gather` refuses it instead of ignoring it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .spec import Activation, CellSpec, Network

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class Recurrence(nn.Module):
    """The parameters of one GRU or LSTM layer: names, shapes, order and initialisation of torch's own.

    torch's own modules are not used because Dynamo refuses any read of their attributes.
    """

    def __init__(
        self, spec: CellSpec, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(spec.hidden_size)
        for name, shape in spec.parameters():
            owner, _, leaf = name.partition(".")
            if owner == "rnn":
                empty = torch.empty(shape, device=device, dtype=dtype)
                self.register_parameter(leaf, nn.Parameter(nn.init.uniform_(empty, -bound, bound)))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(p.shape)}" for name, p in self.named_parameters())


def modules(
    spec: CellSpec, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """The freshly initialised top-level modules of a cell, by name."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, device=device, dtype=dtype)

    def sequential(network: Network) -> nn.Sequential:
        layers: list[nn.Module] = []
        for layer in network.hidden:
            layers += [linear(layer.inputs, layer.outputs), _ACTIVATIONS[spec.activation]()]
        return nn.Sequential(*layers)

    prefixes = {"phi_x": "phi_x", "phi_z": "phi_z", "encoder": "enc", "prior": "prior", "decoder": "dec"}
    for name, prefix in prefixes.items():
        network = spec.network(name)
        yield prefix, sequential(network)
        for head in network.heads:
            owner, _, place = head.prefix.partition(".")
            module: nn.Module = linear(head.inputs, head.outputs)
            if place:
                module = nn.Sequential(module, nn.Softplus() if owner.endswith("_std") else nn.Sigmoid())
            yield owner, module
    yield "rnn", Recurrence(spec, device, dtype)


class Slot(NamedTuple):
    """A sub-module as it was made: its place, its class, how many children and which parameters it has."""

    name: str
    parent: str
    key: str
    kind: type[nn.Module]
    children: int
    parameters: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def slots(root: nn.Module, spec: CellSpec) -> tuple[Slot, ...]:
    """Every sub-module of ``root``, parents first."""
    shapes = dict(spec.parameters())
    found = []
    for name, module in root.named_modules():
        if name:
            parent, _, key = name.rpartition(".")
            own = tuple(p for p, _ in module.named_parameters(recurse=False))
            own_shapes = tuple(shapes[f"{name}.{p}"] for p in own)
            found.append(Slot(name, parent, key, type(module), len(list(module.children())), own, own_shapes))
    return tuple(found)


def gather(root: nn.Module, layout: tuple[Slot, ...], order: tuple[str, ...]) -> list[Tensor]:
    """The parameters named by ``order`` as they are at this call, parametrizations included.

    Raises:
        RuntimeError: a sub-module was replaced or carries a hook: neither would have any effect.
        ValueError: a parameter has another shape than the cell's.
    """
    found: dict[str, nn.Module] = {"": root}
    values: dict[str, Tensor] = {}
    for slot in layout:
        module = found[slot.parent]._modules.get(slot.key)
        if module is None:
            raise RuntimeError(f"sub-module {slot.name!r} is missing: {_NEVER_CALLED}")
        if type(module) is not slot.kind and not _parametrized(module, slot.kind):
            raise RuntimeError(
                f"sub-module {slot.name!r} was replaced by a {type(module).__name__} (it was made as "
                f"{slot.kind.__name__}): {_NEVER_CALLED}"
            )
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise RuntimeError(f"sub-module {slot.name!r} carries a forward or backward hook: {_NEVER_CALLED}")
        if slot.children and len(module._modules) != slot.children:
            raise RuntimeError(
                f"sub-module {slot.name!r} has {len(module._modules)} children, was made with {slot.children}: "
                f"{_NEVER_CALLED}"
            )
        found[slot.name] = module
        for leaf, shape in zip(slot.parameters, slot.shapes, strict=True):
            value = getattr(module, leaf)
            if value is None or value.shape != shape:
                raise ValueError(
                    f"parameter {slot.name}.{leaf} must have shape {shape}, got "
                    f"{None if value is None else tuple(value.shape)}"
                )
            values[f"{slot.name}.{leaf}"] = value
    return [values[name] for name in order]


_NEVER_CALLED = (
    "sub-modules only hold parameters and are never called, so this would have no effect. "
    "torch.nn.utils.parametrizations and hooks on parameters do work"
)


def _parametrized(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``torch.nn.utils.parametrize`` made this module from one of class ``kind``."""
    return parametrize.is_parametrized(module) and type(module).__bases__ == (kind,)
