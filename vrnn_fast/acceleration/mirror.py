"""A second tree of modules over the same parameters, and a look at what the first one is made of.

The tree that :func:`mirror` builds holds the very same Parameter objects under the same names in the same order, in
modules of its own: whatever is done to one tree's modules leaves the other alone. Recurrent cells become
:class:`TraceableRecurrence`, since Dynamo refuses any read of an attribute of torch's own, and modules of torch.jit
become plain ones, :class:`Scripted` where their class is not torch's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from ..cell.spec import Activation
from ..layouts.modules import RECURRENT, TraceableRecurrence, parameters_of, shallow
from ..layouts.structure import LayoutError
from ..parameters import Slot, SlotParameter

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.ELU: "elu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
_HARMLESS = (nn.Identity, nn.Softplus, nn.Sigmoid, _Loss)
_TORCHS = "__torch__.torch.nn.modules."  # what torch.jit calls its own classes
_CONSTANTS: dict[type[nn.Module], tuple[str, object]] = {
    nn.LeakyReLU: ("negative_slope", 0.01),
    nn.ELU: ("alpha", 1.0),
    nn.GELU: ("approximate", "none"),
    nn.LayerNorm: ("eps", 1e-5),
    nn.Softplus: ("beta", 1.0),
}


class Scripted(nn.Module):
    """The parameters of a module of torch.jit; calls and all other attributes are that module's.

    ``root`` is the outermost module that was scripted, and ``path`` leads from there.
    """

    def __init__(self, root: torch.jit.ScriptModule, path: str) -> None:
        super().__init__()
        self._skeleton = (root, path)  # in a tuple: not a sub-module

    def forward(self, *args: Any) -> Any:
        """Run as it was scripted."""
        return self._source()(*args)

    def _source(self) -> nn.Module:
        root, path = self._skeleton
        source: nn.Module = root
        for name in filter(None, path.split(".")):
            source = cast(nn.Module, source._modules[name])
        return source

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self._source(), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Scripted:
        root, path = self._skeleton
        if id(root) not in memo:  # it copies its parameters itself, as results of the old ones: they shall be new
            memo[id(root)] = copy.deepcopy(root)
            for old, new in zip(root.parameters(), memo[id(root)].parameters(), strict=True):
                memo[id(old)] = new.detach_().requires_grad_(old.requires_grad)
        twin = memo[id(self)] = Scripted(memo[id(root)], path)
        twin.__dict__.update({n: copy.deepcopy(v, memo) for n, v in vars(self).items() if n != "_skeleton"})
        return twin


def _unscripted(module: torch.jit.ScriptModule, root: torch.jit.ScriptModule, path: str) -> nn.Module:
    """Make a plain module with the parameters of one that was scripted, and without its children."""
    kind = module._c._type().qualified_name()
    twin: nn.Module
    if not kind.startswith(_TORCHS):
        twin = Scripted(root, path)
    elif module.original_name == "Linear":
        twin = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    elif module.original_name == "LayerNorm":
        twin = nn.LayerNorm(tuple(module.normalized_shape), module.eps, device="meta")
    elif module.original_name in ("GRUCell", "LSTMCell", "RNNCell"):
        cell = getattr(nn, module.original_name)
        twin = TraceableRecurrence(cell(module.input_size, module.hidden_size, module.bias, device="meta"))
    else:
        twin = getattr(nn, module.original_name)()
        name, _ = _CONSTANTS.get(type(twin), ("", None))
        if name:
            setattr(twin, name, getattr(module, name))
    twin._parameters = dict(module.named_parameters(recurse=False))
    twin._buffers = dict(module.named_buffers(recurse=False))
    twin.training = module.training
    return twin


def plain(model: nn.Module) -> nn.Module:
    """Return the module itself, or its mirror where parts of it are torch.jit's."""
    return mirror(model) if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()) else model


def switch(model: nn.Module, training: bool | None) -> None:
    """Put into ``train()`` or ``eval()``, what torch.jit holds as well; None leaves all as it is."""
    if training is not None:
        model.train(training)
        for module in model.modules():
            if isinstance(module, Scripted):
                module._source().train(training)


def mirror(module: nn.Module) -> nn.Module:
    """Build the tree over the same parameters. Its root is of the class of ``module``, not made by ``__init__``."""
    return _mirror(module, {})


def _mirror(
    module: nn.Module, known: dict[int, nn.Module], scripted: torch.jit.ScriptModule | None = None, path: str = ""
) -> nn.Module:
    """Mirror a module: ``scripted`` is the outermost module of torch.jit above this one, and ``path`` leads from
    there."""
    if id(module) not in known:
        if isinstance(module, torch.jit.ScriptModule):
            scripted = scripted or module
            twin = _unscripted(module, scripted, path)
        else:
            twin = TraceableRecurrence(module) if isinstance(module, RECURRENT) else shallow(module)
        known[id(module)] = twin
        for name, child in module._modules.items():
            below = f"{path}.{name}" if path else name
            twin._modules[name] = child if child is None else _mirror(child, known, scripted, below if scripted else "")
    return known[id(module)]


def ready(model: nn.Module) -> None:
    """Refuse parameters that hold nothing to run with.

    Raises:
        LayoutError: one has no shape yet. ValueError: one is on the device "meta".
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise LayoutError(f"{name} has no shape yet: run the model once before")
        if parameter.is_meta:
            raise ValueError(f"model must have its parameters on a device that holds numbers, found {name} on meta")


def slots(root: nn.Module, names: Iterable[str]) -> tuple[Slot, ...]:
    """Tell how :func:`vrnn_fast.parameters.gather` finds the parameters of these names, in their order, below a
    mirrored root."""
    places = {name: place for place, name in enumerate(names)}
    needed = {owner for name in places for owner in _owners(name)}
    found = []
    for name, module in root.named_modules(remove_duplicate=False):
        if name not in needed:
            continue
        parent, _, key = name.rpartition(".")
        own = tuple(
            SlotParameter(leaf, places[f"{name}.{leaf}"], tuple(value.shape))
            for leaf, value in parameters_of(module)
            if f"{name}.{leaf}" in places
        )
        kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
        children = 0 if parametrize.is_parametrized(module) else len(module._modules)
        found.append(Slot(name, parent, key, kind, children, own))
    return tuple(found)


def _owners(name: str) -> Iterator[str]:
    """Yield the paths of all modules above a parameter, below the root."""
    parts = name.split(".")[:-1]
    for i in range(len(parts)):
        yield ".".join(parts[: i + 1])


def check_modules(
    model: nn.Module, used: Iterable[str], outside: tuple[str, ...], familiar: tuple[str, ...], layout: str
) -> None:
    """Refuse what a launch cannot do: dropout, batch normalisation, and any sub-module or parameter without a role.

    ``used`` are the names of the parameters that have one, ``outside`` the paths of sub-modules that are called as they
    are, whatever they hold, ``familiar`` those of what the layout knows: dropout and batch normalisation alone are
    refused there.
    """
    used = set(used)
    above = {owner for name in used for owner in _owners(name)} | {""}
    for path, module in model.named_modules():
        if ".parametrizations" in path or (outside and path.startswith(outside)):
            continue
        free = path.startswith(familiar) if familiar else False
        misfit = _misfit(module, path in above, free)
        if misfit is not None:
            raise LayoutError(f"{path} is {type(module).__name__}{misfit.format(layout=layout, path=path)}")
        if free or parametrize.is_parametrized(module):
            continue
        for leaf in (n for n, p in module._parameters.items() if p is not None):
            name = f"{path}.{leaf}" if path else leaf
            if name not in used:
                raise LayoutError(f"{name} ({type(module).__name__}) has no role in {layout}")


def strange(model: nn.Module, path: str, familiar: tuple[str, ...]) -> bool:
    """Tell whether a network holds what no launch runs, or an affine layer without a bias."""
    below = [(name, m) for name, m in model.named_modules() if name == path or name.startswith(f"{path}.")]
    above = {owner for name, m in below for leaf, _ in parameters_of(m) for owner in _owners(f"{name}.{leaf}")}
    return any(
        _misfit(module, name in above, name.startswith(familiar) if familiar else False) is not None
        or (isinstance(module, nn.Linear) and module.bias is None)
        for name, module in below
        if ".parametrizations" not in name
    )


def refuse_draws(model: nn.Module, paths: Iterable[str]) -> None:
    """Raise LayoutError if one of these networks, called behind the launch, draws numbers that the original draws
    before those of later steps."""
    for path in paths:
        for name, module in model.get_submodule(path).named_modules(prefix=path):
            if isinstance(module, _DropoutNd) and module.p:
                raise LayoutError(
                    f"{name} is {type(module).__name__}(p={module.p:g}): dropout behind z draws between the noise of "
                    "two steps, and is not run here"
                )


def _misfit(module: nn.Module, holds: bool, free: bool) -> str | None:
    """Return why a launch cannot do what this module does, or None.

    Args:
        holds: whether parameters with a role lie below it.
        free: whether the layout knows it.
    """
    probability = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
    if isinstance(module, (_DropoutNd, *RECURRENT, TraceableRecurrence)):
        name = "p" if isinstance(module, _DropoutNd) else "dropout"
        return f"({name}={probability:g}): dropout inside of the recurrence is not run here" if probability else None
    if isinstance(module, _BatchNorm):
        return ", which ties the sequences of a batch together: inside of the recurrence it is not run here"
    if free:
        return None
    name, expected = _CONSTANTS.get(type(module), ("", None))
    if name and getattr(module, name) != expected:
        return f"({name}={getattr(module, name)}): only {name}={expected} is run here"
    if isinstance(module, (nn.Linear, *_CONTAINERS, *_HARMLESS, *_ACTIVATIONS)) or holds:
        return None
    return (
        ", a sub-module that {layout} does not know; one that is called outside of the launch is named by "
        "layout={{'outside': ('{path}',), 'outputs': ...}}"
    )


def activations(
    model: nn.Module, hidden: Iterable[tuple[str, tuple[str, ...]]], layout: str
) -> tuple[tuple[str, tuple[Activation, ...]], ...]:
    """Return what follows each hidden layer of each network and head, where ``nn.Sequential`` tells.

    Raises:
        LayoutError: it is neither an activation nor the next affine layer, or another one in another cell.
    """
    found: dict[str, tuple[Activation, ...]] = {}
    for name, prefixes in hidden:
        kinds = tuple(kind for kind in (_activation(model, prefix, layout) for prefix in prefixes) if kind)
        if not kinds or len(kinds) < len(prefixes):
            continue
        if found.setdefault(name, kinds) != kinds:
            raise LayoutError(
                f"{', '.join(kinds)} follow {', '.join(prefixes)}, and {', '.join(found[name])} the same layers of "
                "another agent: the same for all agents are run here"
            )
    return tuple(found.items())


def _activation(model: nn.Module, prefix: str, layout: str) -> Activation | None:
    """Return the activation after an affine layer, or None where its owner does not tell."""
    parent, _, key = prefix.rpartition(".")
    beside = model.get_submodule(parent)
    if not isinstance(beside, nn.Sequential):
        return None
    names = list(beside._modules)[list(beside._modules).index(key) + 1 :]
    if names and isinstance(beside._modules[names[0]], nn.LayerNorm):  # the layer's own, as its parameters tell
        names = names[1:]
    after = next((n for n in names if not isinstance(beside._modules[n], (nn.Identity, _DropoutNd))), None)
    module = None if after is None else beside.get_submodule(after)
    if module is None or any(isinstance(below, nn.Linear) for below in module.modules()):
        return "identity"
    kind = _ACTIVATIONS.get(type(module))
    if kind is None:
        raise LayoutError(
            f"{layout} has one of {', '.join(k.__name__ for k in _ACTIVATIONS)} or nothing after {prefix}, found "
            f"{parent}.{after}, {type(module).__name__}"
        )
    return kind
