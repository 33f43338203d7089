"""Parts of a foreign model that are called as they are, outside of the launch: phi_x before it, the decoder behind it.

What is needed inside of the scan alone must be what an executor runs. These two may hold anything: convolutions,
embeddings, normalisations. The launch then reads what phi_x gave, and hands out what the decoder reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .structure import LayoutError, Roles


def by_steps(network: nn.Module) -> bool:
    """Tell whether a call for all steps at once is not the same as one for each step: it ties its rows together or
    draws."""
    return any(_ties(module) for module in network.modules())


def _ties(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, _DropoutNd) and module.training and module.p > 0


def at_once(network: nn.Module, x: Tensor) -> Tensor:
    """Compute what a network of one step (B, ...) makes of all steps (T, B, ...)."""
    made: Tensor = network(x.flatten(0, 1))
    return made.view(*x.shape[:2], *made.shape[1:])


def decoded(module: nn.Module, roles: Roles, heads: Sequence[str], inputs: Tensor) -> tuple[Tensor, ...]:
    """Compute the decoder's heads (T, B, .) before any transform, out of what the decoder reads (T, B, .).

    ``heads`` are the paths of their last affine layers.
    """
    decoder = module.get_submodule(roles.decoder)
    parts = [decoder, *(module.get_submodule(path) for path in roles.decoder_heads)]
    steps = inputs.unbind(0) if any(map(by_steps, parts)) else (inputs.flatten(0, 1),)
    found: list[list[Tensor]] = [[] for _ in heads]
    for step in steps:
        within = [_until(module, roles.decoder, head, step) for head in heads]
        features = decoder(step) if None in within else None
        for into, raw, path, head in zip(found, within, roles.decoder_heads, heads, strict=True):
            into.append(raw if raw is not None else _head(module, path, head, features))
    return tuple(torch.stack(raws).view(*inputs.shape[:2], -1) for raws in found)


def _head(module: nn.Module, path: str, last: str, features: Any) -> Tensor:
    raw: Tensor = module.get_submodule(path)(features) if path == last else _until(module, path, last, features)
    return raw


def _until(module: nn.Module, path: str, last: str, x: Any) -> Any:
    """Compute what the Sequential at ``path`` has made of x behind its child ``last``; None if that is no child of
    it."""
    if not last.startswith(f"{path}."):
        return None
    for name, child in module.get_submodule(path).named_children():
        x = child(x)
        if f"{path}.{name}" == last:
            return x
    raise LayoutError(f"{last} must be a child of {path}, which is called outside of the launch")


def example(path: str, network: nn.Module, steps: int, batch: int) -> Tensor:
    """Make x (T, B, ...) that such a phi_x is meant for, by what it begins with.

    Raises:
        LayoutError: that does not tell.
    """
    first = next((module for module in network.modules() if module._parameters), network)
    if isinstance(first, nn.Embedding):
        return torch.randint(first.num_embeddings, (steps, batch))
    if isinstance(first, nn.Linear):
        return torch.rand(steps, batch, first.in_features)
    if isinstance(first, nn.BatchNorm1d):
        return torch.rand(steps, batch, first.num_features)
    raise LayoutError(f"{path} begins with {type(first).__name__}, which does not tell the shape of x: pass example=")
