"""The modules that hold a cell's parameters, and how a call reads them.

Names and shapes are those of the most copied PyTorch VRNN. The modules hold parameters and are never called: the
launch computes what they describe. So whatever would act on a sub-module's call could have no effect, and
:func:`gather` refuses it instead of ignoring it.

A call reads the parameters through a :class:`Reader`, which looks closely once and from then on only whether all is as
it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple, Protocol, TypeVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import checks
from .cell.spec import Activation, CellSpec, Layer


class Derived(Protocol):
    """Something made of parameters once, which can tell whether it is still current."""

    def is_current(self, thorough: bool) -> bool:
        """Tell whether the parameters are still the same, by a few values of each or, if ``thorough``, by all."""


Made = TypeVar("Made", bound=Derived)

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "identity": nn.Identity,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
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
    """Make the freshly initialised top-level modules of a cell, by name."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, device=device, dtype=dtype)

    def activated(layers: Iterable[Layer]) -> Iterator[nn.Module]:
        for layer in layers:
            yield linear(layer.inputs, layer.outputs)
            if layer.norm is not None:
                yield nn.LayerNorm(layer.outputs, eps=spec.norm_eps, device=device, dtype=dtype)
            yield _ACTIVATIONS[layer.activation]()

    prefixes = {"phi_x": "phi_x", "phi_z": "phi_z", "encoder": "enc", "prior": "prior", "decoder": "dec"}
    for name, prefix in prefixes.items():
        network = spec.network(name)
        yield prefix, nn.Sequential(*activated(network.hidden))
        for *own, head in network.heads:
            owner, _, place = head.prefix.partition(".")
            module: nn.Module = linear(head.inputs, head.outputs)
            if place:
                after = nn.Softplus() if owner.endswith("_std") else nn.Sigmoid() if place == "0" else nn.Identity()
                module = nn.Sequential(*activated(own), module, after)
            yield owner, module
    yield "rnn", Recurrence(spec, device, dtype)


class SlotParameter(NamedTuple):
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
    parameters: tuple[SlotParameter, ...]


def install(
    root: nn.Module, spec: CellSpec, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[Slot, ...]:
    """Hang the freshly initialised modules of a cell on ``root``; returns each of them and of their children, parents
    first. Other modules of ``root`` are not looked at."""
    places = {name: (place, shape) for place, (name, shape) in enumerate(spec.parameters())}
    found = []
    for top, added in _modules(spec, device, dtype):
        root.add_module(top, added)
        for name, module in added.named_modules(prefix=top):
            parent, _, key = name.rpartition(".")
            own = (SlotParameter(leaf, *places[f"{name}.{leaf}"]) for leaf, _ in module.named_parameters(recurse=False))
            found.append(Slot(name, parent, key, type(module), len(module._modules), tuple(own)))
    return tuple(found)


def gather(root: nn.Module, layout: tuple[Slot, ...]) -> list[Tensor]:
    """Gather the parameters in the order of executors as they are at this call, parametrizations included.

    Raises:
        RuntimeError: a sub-module was replaced or carries a hook: neither would have any effect.
        TypeError: a parameter is a DTensor.
        ValueError: a parameter has another shape than the cell's, or another dtype or device than the first one.
    """
    found: dict[str, nn.Module] = {"": root}
    values: dict[int, Tensor] = {}
    for name, parent, key, kind, children, parameters in layout:
        module = found[parent]._modules.get(key)
        if module is None:
            raise RuntimeError(f"sub-module {name!r} is missing: {_NEVER_CALLED}")
        if type(module) is not kind and not _parametrized(module, kind):
            for leaf, parameter in module.named_parameters():
                checks.local(f"parameter {name}.{leaf}", parameter, _ONE_UNIT)
            raise RuntimeError(
                f"sub-module {name!r} was replaced by a {type(module).__name__} (it was made as {kind.__name__}): "
                f"{_NEVER_CALLED}"
            )
        if any(_hooks(module)):
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
            if isinstance(value, Tensor):
                checks.local(f"parameter {name}.{leaf}", value, _ONE_UNIT)
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


@final
class Reading(tuple[Tensor, ...]):
    """The parameters of a module in the order of executors, and what tells that they are still those.

    Only of plain tensors that torch counts the changes of, outside any parametrization.
    """

    def __new__(cls, root: nn.Module, layout: tuple[Slot, ...], parameters: Sequence[Tensor]) -> Reading:
        return super().__new__(cls, parameters)

    def __init__(self, root: nn.Module, layout: tuple[Slot, ...], parameters: Sequence[Tensor]) -> None:
        modules = [root.get_submodule(slot.name) for slot in layout]
        places = {p.place: (m._parameters, p.leaf) for s, m in zip(layout, modules, strict=True) for p in s.parameters}
        self._owners, self._leaves = zip(*(places[i] for i in range(len(places))), strict=True)
        self._hooks = tuple(chain.from_iterable(map(_hooks, modules)))
        self._containers = (root._modules, *(m._modules for m in modules if m._modules))
        self._children = list(chain.from_iterable(map(dict.values, self._containers)))
        self._storages = [p.untyped_storage() for p in self]  # held, or other memory could come to lie there
        self._addresses = list(map(Tensor.data_ptr, self))
        self._matrices = [p for p in self if p.dim() > 1]  # with as many rows as columns, a transposed one looks alike
        self._strides = list(map(Tensor.stride, self._matrices))
        self._made: dict[object, tuple[CellSpec, list[int], Any]] = {}

    def is_current(self, root: nn.Module) -> bool:
        """Tell whether :func:`gather` would find the same tensors, laid out in the same memory, whatever their
        values."""
        return (
            self._containers[0] is root._modules
            and not any(self._hooks)
            and list(chain.from_iterable(map(dict.values, self._containers))) == self._children
            and all(map(is_, map(dict.get, self._owners, self._leaves), self))
            and list(map(Tensor.data_ptr, self)) == self._addresses
            and list(map(Tensor.stride, self._matrices)) == self._strides
        )

    def once(self, make: Callable[..., Made], spec: CellSpec, *arguments: object, thorough: bool) -> Made:
        """Return ``make(spec, parameters, *arguments)``, remembered for a spec until torch counts a change of a
        parameter or the result is no longer :meth:`current <Derived.is_current>`."""
        call, versions = (make, *arguments), list(map(_version, self))
        known, seen, made = self._made.get(call, _NOTHING)
        if known is not spec or seen != versions or not made.is_current(thorough):
            made = make(spec, self, *arguments)
            self._made[call] = spec, versions, made
        return cast(Made, made)


_NOTHING: tuple[None, list[int], Any] = None, [], None
_version: Callable[[Tensor], int] = attrgetter("_version")


def _readable(root: nn.Module, layout: tuple[Slot, ...], parameters: list[Tensor]) -> bool:
    """Tell whether identities, addresses and versions show every change of the parameters, and keeping them keeps no
    graph alive."""
    return all(
        type(p) in (Tensor, nn.Parameter)
        and p.layout == torch.strided
        and p.is_leaf
        and not p.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(p)
        for p in parameters
    ) and not any(parametrize.is_parametrized(root.get_submodule(slot.name)) for slot in layout)


class Reader:
    """Reads a module's parameters at every call. Its copies and pickles have read nothing yet."""

    def __init__(self, layout: tuple[Slot, ...]) -> None:
        self._layout = layout
        self._last: Reading | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self._layout,)

    def __call__(self, root: nn.Module) -> Sequence[Tensor]:
        """Read the parameters of ``root`` as they are now, in the order of executors: a :class:`Reading` where
        possible.

        Raises:
            RuntimeError, TypeError, ValueError: as :func:`gather`.
        """
        if torch.compiler.is_compiling():
            return gather(root, self._layout)
        last = self._last  # fetched once: threads may share a module
        if last is not None and last.is_current(root):
            return last
        self._last = None
        parameters = gather(root, self._layout)
        if not _readable(root, self._layout, parameters):
            return parameters
        last = self._last = Reading(root, self._layout, parameters)
        return last

    def forget(self) -> None:
        """Read anew at the next call."""
        self._last = None


def _hooks(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


_NEVER_CALLED = (
    "sub-modules only hold parameters and are never called, so this would have no effect. "
    "torch.nn.utils.parametrizations and hooks on parameters do work"
)


_ONE_UNIT = (
    "shard the VRNN as one unit, by fully_shard on it or on a parent, and on none of its sub-modules; other methods "
    "than forward need torch.distributed.fsdp.register_fsdp_forward_method(model, 'step')"
)


def _parametrized(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether ``torch.nn.utils.parametrize`` made this module from one of class ``kind``."""
    return parametrize.is_parametrized(module) and type(module).__bases__ == (kind,)
