"""A second tree of modules over the same parameters, and a look at what the first one is made of.

The tree that :func:`mirror` builds holds the very same Parameter objects under the same names in the same order, in
modules of its own: whatever is done to one tree's modules leaves the other alone. Recurrent cells become
:class:`Recurrence`, since Dynamo refuses any read of an attribute of torch's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss
from torch.nn.utils import parametrize

from ..layout import Held, Slot
from ..spec import Activation
from .reading import LayoutError

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.ELU: "elu",
}
_HARMLESS = (nn.Identity, nn.Softplus, nn.Sigmoid, _Loss)
_CONSTANTS = {nn.LeakyReLU: ("negative_slope", 0.01), nn.ELU: ("alpha", 1.0), nn.Softplus: ("beta", 1.0)}


class Recurrence(nn.Module):
    """The parameters and attributes of one of torch's recurrent modules.

    Called, it computes what that one does: methods of the original that step through time themselves go on working.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        skeleton = shallow(source)
        self.__dict__.update({name: v for name, v in vars(skeleton).items() if not name.startswith("_")})
        self._parameters = copy.copy(source._parameters)
        self._skeleton = (skeleton,)  # in a tuple: not a sub-module

    def forward(self, *args: Any) -> Any:
        """As the module it stands for."""
        return functional_call(self._skeleton[0], dict(self.named_parameters(recurse=False)), args)


def shallow(module: nn.Module) -> nn.Module:
    """A module of the same class with the same attributes, parameters, buffers and children, in dictionaries of its
    own."""
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update({n: copy.copy(v) if isinstance(v, (dict, set, list)) else v for n, v in vars(module).items()})
    return twin


def mirror(module: nn.Module) -> nn.Module:
    """The tree over the same parameters. Its root is of the class of ``module``, not made by ``__init__``."""
    return _mirror(module, {})


def _mirror(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in known:
        twin = Recurrence(module) if isinstance(module, _RECURRENT) else shallow(module)
        known[id(module)] = twin
        for name, child in module._modules.items():
            twin._modules[name] = child if child is None else _mirror(child, known)
    return known[id(module)]


def parameters_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a call of this affine layer or recurrent cell reads, by name; nothing for any other module."""
    if isinstance(module, nn.Linear):
        for name in ("weight", "bias"):
            value = getattr(module, name)
            if value is not None:
                yield name, value
    elif isinstance(module, (*_RECURRENT, Recurrence)):
        yield from module.named_parameters(recurse=False)


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all affine layers and recurrent cells by name, as their calls see them."""
    return {
        f"{path}.{leaf}": tuple(value.shape)
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf, value in parameters_of(module)
    }


def slots(root: nn.Module, names: Iterable[str]) -> tuple[Slot, ...]:
    """How :func:`vrnn_fast.layout.gather` finds the parameters of these names, in their order, below a mirrored
    root."""
    places = {name: place for place, name in enumerate(names)}
    needed = {owner for name in places for owner in _owners(name)}
    found = []
    for name, module in root.named_modules(remove_duplicate=False):
        if name not in needed:
            continue
        parent, _, key = name.rpartition(".")
        held = tuple(
            Held(leaf, places[f"{name}.{leaf}"], tuple(value.shape))
            for leaf, value in parameters_of(module)
            if f"{name}.{leaf}" in places
        )
        kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
        children = 0 if parametrize.is_parametrized(module) else len(module._modules)
        found.append(Slot(name, parent, key, kind, children, held))
    return tuple(found)


def _owners(name: str) -> Iterator[str]:
    """The paths of all modules above a parameter, below the root."""
    parts = name.split(".")[:-1]
    for i in range(len(parts)):
        yield ".".join(parts[: i + 1])


def vet(model: nn.Module, used: Iterable[str], outside: tuple[str, ...], layout: str) -> None:
    """Refuse what a launch cannot do: dropout, batch normalisation, and any sub-module or parameter without a role.

    ``used`` are the names of the parameters that have one, ``outside`` the paths of sub-modules that are called as they
    are: there only dropout and batch normalisation are refused.
    """
    used = set(used)
    above = {owner for name in used for owner in _owners(name)} | {""}
    for path, module in model.named_modules():
        if ".parametrizations" in path:
            continue
        free = path.startswith(outside) if outside else False
        fault = _fault(module, path in above or free)
        if fault is not None:
            raise LayoutError(f"{path} is {type(module).__name__}{fault.format(layout=layout)}")
        if free or parametrize.is_parametrized(module):
            continue
        for leaf in (n for n, p in module._parameters.items() if p is not None):
            name = f"{path}.{leaf}" if path else leaf
            if name not in used:
                raise LayoutError(f"{name} ({type(module).__name__}) has no role in {layout}")


def _fault(module: nn.Module, holds: bool) -> str | None:
    """Why a launch cannot do what this module does, or None. ``holds``: it is above parameters that have a role."""
    probability = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
    if isinstance(module, (_DropoutNd, *_RECURRENT)):
        name = "p" if isinstance(module, _DropoutNd) else "dropout"
        return f"({name}={probability:g}): dropout inside of the recurrence is not run here" if probability else None
    if isinstance(module, _BatchNorm):
        return ", which ties the sequences of a batch together: it is not run here"
    name, expected = _CONSTANTS.get(type(module), ("", None))
    if name and getattr(module, name) != expected:
        return f"({name}={getattr(module, name):g}): only {name}={expected:g} is run here"
    if isinstance(module, (nn.Linear, *_CONTAINERS, *_HARMLESS, *_ACTIVATIONS)) or holds:
        return None
    return ", a sub-module that {layout} does not know"


def activations(
    model: nn.Module, hidden: Iterable[tuple[str, tuple[str, ...]]], layout: str
) -> tuple[tuple[str, Activation], ...]:
    """The activation that follows the hidden layers of each network, where ``nn.Sequential`` tells.

    Raises:
        LayoutError: none follows, or they are not all the same.
    """
    found: dict[str, tuple[str, Activation]] = {}
    for network, prefixes in hidden:
        for prefix in prefixes:
            told = _activation(model, prefix, layout)
            if told is None:
                continue
            first = found.setdefault(network, told)
            if told[1] != first[1]:
                raise LayoutError(
                    f"{first[0]} is {_class(first[1])} and {told[0]} is {_class(told[1])}: one activation for all "
                    "hidden layers of a network is run here"
                )
    return tuple((network, kind) for network, (_, kind) in found.items())


def _activation(model: nn.Module, prefix: str, layout: str) -> tuple[str, Activation] | None:
    """The path and kind of the activation after an affine layer, or None where its owner does not tell."""
    parent, _, key = prefix.rpartition(".")
    beside = model.get_submodule(parent)
    if not isinstance(beside, nn.Sequential):
        return None
    names = list(beside._modules)[list(beside._modules).index(key) + 1 :]
    after = next((n for n in names if not isinstance(beside._modules[n], (nn.Identity, _DropoutNd))), None)
    module = None if after is None else beside._modules[after]
    kind = None if module is None else _ACTIVATIONS.get(type(module))
    if kind is None:
        what = "nothing" if module is None else f"{parent}.{after}, {type(module).__name__}"
        raise LayoutError(
            f"{layout} has one of {', '.join(k.__name__ for k in _ACTIVATIONS)} after {prefix}, found {what}"
        )
    return f"{parent}.{after}", kind


def _class(kind: Activation) -> str:
    return next(c.__name__ for c, k in _ACTIVATIONS.items() if k == kind)


def follows(model: nn.Module, prefix: str) -> type[nn.Module] | None:
    """The class of the module that an ``nn.Sequential`` calls after this layer; None where there is none."""
    parent, _, key = prefix.rpartition(".")
    beside = model.get_submodule(parent)
    if not isinstance(beside, nn.Sequential) or not parent:
        return None
    names = list(beside._modules)
    after = names[names.index(key) + 1 :]
    return type(beside._modules[after[0]]) if after else None
