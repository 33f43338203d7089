"""A checkpoint of a foreign layout as a :class:`vrnn_fast.VRNN`. Nothing is ever unpickled but tensors."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import likelihoods
from ..model import VRNN
from ..spec import CellSpec, Std
from . import filtering, paper
from .base import Layout
from .reading import LayoutError, Shapes
from .recognition import chosen

_PREFIXES = ("module.", "_orig_mod.")
_SHARED = (
    "cell",
    "num_layers",
    "bias",
    "nonlinearity",
    "phi_x",
    "phi_z",
    "encoder",
    "prior",
    "decoder",
    "head_layers",
    "packed_heads",
    "residual",
)  # arguments of VRNN that are fields of its spec
_HEADER = "arguments"  # of the VRNN that a converted file holds


class _ArrayLayout(Protocol):
    """A module of this package for a layout that is no state dict of torch."""

    @property
    def NAME(self) -> str: ...

    def recognised(self, arrays: Mapping[str, Tensor]) -> bool: ...

    def module(self, arrays: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> tuple[VRNN, dict[str, Tensor]]: ...


_ARRAYS: tuple[_ArrayLayout, ...] = (paper, filtering)


def from_state_dict(
    source: Mapping[str, Any] | str | PathLike[str], layout: str | Mapping[str, Any], arguments: Mapping[str, Any]
) -> VRNN:
    """See :meth:`vrnn_fast.VRNN.from_state_dict`."""
    if isinstance(source, Mapping):
        stored: Mapping[str, Any] = source
    elif Path(source).suffix == ".safetensors":
        return _converted(Path(source), arguments)
    else:
        stored = _read(Path(source))
    model, tensors = _translate(_tensors(stored, layout), layout, arguments)
    model.load_state_dict(tensors)
    return model


def convert(old: Path, new: Path, layout: str, arguments: Mapping[str, Any]) -> VRNN:
    """Write a foreign checkpoint as a file that :meth:`vrnn_fast.VRNN.from_state_dict` reads without being told more.

    Raises:
        LayoutError: the checkpoint is of no known layout.
        ValueError: ``new`` does not end in .safetensors.
    """
    from ..training import checkpoint

    if new.suffix != ".safetensors":
        raise LayoutError(f"the new file must end in .safetensors, got {new}")
    model, tensors = _translate(_tensors(_read(old), layout), layout, arguments)
    model.load_state_dict(tensors)
    checkpoint.save(new, model.state_dict(), {_HEADER: _described(model)})
    return model


def _converted(path: Path, arguments: Mapping[str, Any]) -> VRNN:
    from ..training import checkpoint

    tensors, header = checkpoint.load(path)
    if _HEADER not in header:
        raise LayoutError(f"{path} is a run's checkpoint, not a converted file: vrnn-fast eval and sample read it")
    like = next(iter(tensors.values()))
    told = header[_HEADER]
    kind, constants = told["likelihood"]
    likelihood = getattr(likelihoods, kind)(**{n: Std(**c) if isinstance(c, dict) else c for n, c in constants.items()})
    model = VRNN(**{**told, "std": Std(**told["std"]), "likelihood": likelihood, "dtype": like.dtype, **arguments})
    model.load_state_dict(tensors)
    return model


def _shared(spec: CellSpec) -> dict[str, Any]:
    """Arguments of a VRNN with this cell, beside its sizes, its standard deviation and its likelihood."""
    about = {name: getattr(spec, name) for name in _SHARED}
    kinds = {name: spec.activation_of(name) for name in ("phi_x", "phi_z", "encoder", "prior", "decoder")}
    about["activation"] = kinds if len(set(kinds.values())) > 1 else kinds["phi_x"]
    about["columns"] = dict(spec.columns)
    return about | ({"cond_size": spec.cond_size, "cond_to": spec.cond_to} if spec.cond_size else {})


def _described(model: VRNN) -> dict[str, Any]:
    spec = model.spec
    about = {name: getattr(spec, name) for name in ("input_size", "hidden_size", "latent_size")} | _shared(spec)
    constants = {name: getattr(model.likelihood, name) for name in inspect.signature(type(model.likelihood)).parameters}
    constants = {name: asdict(value) if isinstance(value, Std) else value for name, value in constants.items()}
    likelihood = type(model.likelihood).__name__, constants
    return about | {"std": asdict(spec.std), "likelihood": likelihood, "batch_first": model.batch_first}


def _read(path: Path) -> Mapping[str, Any]:
    """What a file of torch.save (legacy ones included) or numpy.savez holds."""
    if not path.is_file():
        raise LayoutError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise LayoutError(
            f"{path} holds no tensors that can be read without running code of its own; save model.state_dict() "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    if not isinstance(found, Mapping):
        raise LayoutError(f"{path} must hold a state dict, found {type(found).__name__}")
    return found


def _tensors(stored: Mapping[str, Any], layout: str | Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in ``stored``, which may hold it beside other things, without the prefixes of wrappers."""
    candidates = []
    for found in _state_dicts(stored):
        tensors = {name: torch.as_tensor(value) for name, value in found.items()}
        for prefix in _PREFIXES * 2:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
        candidates.append(tensors)
    if not candidates:
        raise LayoutError(f"there is no state dict in {{{', '.join(map(str, stored))}}}: names with tensors or arrays")
    for tensors in candidates:
        if any(known.recognised(tensors) for known in _ARRAYS):
            return tensors
        try:
            chosen(layout, shapes_of(tensors), "")
        except LayoutError:
            continue
        return tensors
    return candidates[0]


def _state_dicts(stored: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if stored and all(isinstance(v, (Tensor, np.ndarray, np.number)) for v in stored.values()):
        yield stored
        return
    for value in stored.values():
        if isinstance(value, Mapping):
            yield from _state_dicts(value)


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor, by name."""
    return {name: tuple(t.shape) for name, t in tensors.items()}


def _translate(
    tensors: Mapping[str, Tensor], layout: str | Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[VRNN, dict[str, Tensor]]:
    """The module that fits, freshly made, and its state dict."""
    for arrays in _ARRAYS:
        if layout == arrays.NAME or (layout == "auto" and arrays.recognised(tensors)):
            return arrays.module(tensors, arguments)
    shapes = shapes_of(tensors)
    known: Layout = chosen(layout, shapes, ", ".join(f"{n} {s}" for n, s in shapes.items()))
    structure = known.structure(shapes)
    left = [name for name in tensors if name not in structure.names]
    if left:
        raise LayoutError(f"{known} has no place for {', '.join(left)}")
    spec = structure.spec
    like = tensors[structure.names[0]]
    given: dict[str, Any] = {
        **_shared(spec),
        "batch_first": known.batch_first,
        "dtype": like.dtype,
        **known.arguments(structure),
        **arguments,
    }
    model = VRNN(spec.input_size, spec.hidden_size, spec.latent_size, **given)
    theirs = {name: tensors[own] for (name, _), own in zip(spec.parameters(), structure.names, strict=True)}
    for ours, found in zip(model.spec.network("decoder").heads, spec.network("decoder").heads, strict=False):
        for layer, placeholder in zip(ours, found, strict=True):
            if layer.outputs != placeholder.outputs:
                raise LayoutError(
                    f"{model.likelihood} needs a decoder head {layer.prefix} of width {layer.outputs}, found "
                    f"{placeholder.outputs}"
                )
            for leaf in ("weight", "bias"):
                theirs[f"{layer.prefix}.{leaf}"] = theirs.pop(f"{placeholder.prefix}.{leaf}")
    wanted = [name for name, _ in model.spec.parameters()]
    lacking = [name for name in wanted if name not in theirs]
    if lacking:
        raise LayoutError(f"{model.likelihood} needs {', '.join(lacking)}, which the checkpoint does not have")
    return model, {name: theirs[name] for name in wanted}
