"""The modules that hold a cell's parameters, and how a call reads them.

Names and shapes are those of the most copied PyTorch VRNN. The modules hold parameters and are never called: the
launch computes what they describe. So whatever would act on a sub-module's call could have no effect, and
:func:`gather` refuses it instead of ignoring it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .spec import Activation, CellSpec, Layer

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class Recurrence(nn.Module):
    """The parameters of the GRU, LSTM or RNN layers: names, shapes, order and initialisation of torch's own.

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


def _modules(
    spec: CellSpec, device: torch.device | str | None, dtype: torch.dtype | None
) -> Iterator[tuple[str, nn.Module]]:
    """The freshly initialised top-level modules of a cell, by name."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, device=device, dtype=dtype)

    def chain(name: str, layers: Iterable[Layer]) -> Iterator[nn.Module]:
        for layer in layers:
            yield linear(layer.inputs, layer.outputs)
            yield _ACTIVATIONS[spec.activation_of(name)]()

    prefixes = {"phi_x": "phi_x", "phi_z": "phi_z", "encoder": "enc", "prior": "prior", "decoder": "dec"}
    for name, prefix in prefixes.items():
        network = spec.network(name)
        yield prefix, nn.Sequential(*chain(name, network.hidden))
        for *own, head in network.heads:
            owner, _, place = head.prefix.partition(".")
            module: nn.Module = linear(head.inputs, head.outputs)
            if place:
                after = nn.Softplus() if owner.endswith("_std") else nn.Sigmoid() if place == "0" else nn.Identity()
                module = nn.Sequential(*chain(name, own), module, after)
            yield owner, module
    yield "rnn", Recurrence(spec, device, dtype)


class Held(NamedTuple):
    """A parameter of a sub-module: its name there, its place in the order of executors, its shape."""

    leaf: str
    place: int
    shape: tuple[int, ...]


class Slot(NamedTuple):
    """A sub-module as it was made: its name, where it hangs, its class, its children and its parameters."""

    name: str
    parent: str
    key: str
    kind: type[nn.Module]
    children: int
    parameters: tuple[Held, ...]


def install(
    root: nn.Module, spec: CellSpec, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[Slot, ...]:
    """Hang the freshly initialised modules of a cell on ``root``; returns each of them and of their children, parents
    first. Whatever else ``root`` holds is its own affair."""
    places = {name: (place, shape) for place, (name, shape) in enumerate(spec.parameters())}
    found = []
    for top, added in _modules(spec, device, dtype):
        root.add_module(top, added)
        for name, module in added.named_modules(prefix=top):
            parent, _, key = name.rpartition(".")
            held = (Held(leaf, *places[f"{name}.{leaf}"]) for leaf, _ in module.named_parameters(recurse=False))
            found.append(Slot(name, parent, key, type(module), len(module._modules), tuple(held)))
    return tuple(found)


def gather(root: nn.Module, layout: tuple[Slot, ...]) -> list[Tensor]:
    """The parameters in the order of executors as they are at this call, parametrizations included.

    Raises:
        RuntimeError: a sub-module was replaced or carries a hook: neither would have any effect.
        ValueError: a parameter has another shape than the cell's, or another dtype or device than the first one.
    """
    found: dict[str, nn.Module] = {"": root}
    values: dict[int, Tensor] = {}
    for name, parent, key, kind, children, parameters in layout:
        module = found[parent]._modules.get(key)
        if module is None:
            raise RuntimeError(f"sub-module {name!r} is missing: {_NEVER_CALLED}")
        if type(module) is not kind and not _parametrized(module, kind):
            raise RuntimeError(
                f"sub-module {name!r} was replaced by a {type(module).__name__} (it was made as {kind.__name__}): "
                f"{_NEVER_CALLED}"
            )
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise RuntimeError(f"sub-module {name!r} carries a forward or backward hook: {_NEVER_CALLED}")
        if children and len(module._modules) != children:
            raise RuntimeError(
                f"sub-module {name!r} has {len(module._modules)} children, was made with {children}: {_NEVER_CALLED}"
            )
        found[name] = module
        for leaf, place, shape in parameters:
            value = module._parameters.get(leaf)
            if value is None:
                value = getattr(module, leaf)  # parametrized: computed from others
            if value is None or value.shape != shape:
                got = None if value is None else tuple(value.shape)
                raise ValueError(f"parameter {name}.{leaf} must have shape {shape}, got {got}")
            like = values.setdefault(0, value)
            if value.dtype != like.dtype or value.device != like.device:
                raise ValueError(
                    f"parameter {name}.{leaf} must be {like.dtype} on {like.device} as the first one is, got "
                    f"{value.dtype} on {value.device}"
                )
            values[place] = value
    return [values[place] for place in range(len(values))]


_NEVER_CALLED = (
    "sub-modules only hold parameters and are never called, so this would have no effect. "
    "torch.nn.utils.parametrizations and hooks on parameters do work"
)


def _parametrized(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``torch.nn.utils.parametrize`` made this module from one of class ``kind``."""
    return parametrize.is_parametrized(module) and type(module).__bases__ == (kind,)
