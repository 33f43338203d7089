"""What a tree of modules is made of: its affine layers and recurrent cells by name, and what is called after each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def shallow(module: nn.Module) -> nn.Module:
    """Make a module of the same class with the same attributes, parameters, buffers and children, in dictionaries of
    its own."""
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update({n: copy.copy(v) if isinstance(v, (dict, set, list)) else v for n, v in vars(module).items()})
    return twin


class TraceableRecurrence(nn.Module):
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
        """Run as the module it stands for."""
        return functional_call(self._skeleton[0], dict(self.named_parameters(recurse=False)), args)


def parameters_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a call of this affine layer, layer normalisation or recurrent cell reads, by name; nothing for any
    other module."""
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        for name in ("weight", "bias"):
            value = getattr(module, name)
            if value is not None:
                yield name, value
    elif isinstance(module, (*RECURRENT, TraceableRecurrence)):
        yield from module.named_parameters(recurse=False)


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all affine layers, normalisations and recurrent cells by name, as their calls see them."""
    return {
        f"{path}.{leaf}": tuple(value.shape)
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf, value in parameters_of(module)
    }


def class_after(model: nn.Module, prefix: str) -> type[nn.Module] | None:
    """Return the class of the module that an ``nn.Sequential`` calls after this layer; None where there is none."""
    parent, _, key = prefix.rpartition(".")
    beside = model.get_submodule(parent)
    if not isinstance(beside, nn.Sequential) or not parent:
        return None
    names = list(beside._modules)
    after = names[names.index(key) + 1 :]
    return type(beside._modules[after[0]]) if after else None
