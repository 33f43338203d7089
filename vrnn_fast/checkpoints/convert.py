"""A checkpoint of a foreign layout as a :class:`vrnn_fast.VRNN`. Nothing is ever unpickled but tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import likelihoods
from ..cell.spec import Std
from ..description import MARK, arguments_of, described, own_layers
from ..layouts import chosen, lacking
from ..layouts.base import Layout
from ..layouts.structure import LayoutError, Shapes
from ..model import VRNN
from . import chung2015, fivo

HEADER = "arguments"  # of the VRNN that a converted file holds
Model = TypeVar("Model", bound=VRNN)
_Ours: TypeAlias = tuple[Mapping[str, Any], dict[str, Tensor]]  # what a VRNN's file tells of it, and its tensors


class _ArrayLayout(Protocol):
    """A module of this package for a layout that is no state dict of torch."""

    @property
    def NAME(self) -> str: ...

    def recognised(self, arrays: Mapping[str, Tensor]) -> bool: ...

    def module(self, arrays: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> tuple[VRNN, dict[str, Tensor]]: ...


_ARRAYS: tuple[_ArrayLayout, ...] = (chung2015, fivo)


def load_checkpoint(
    state: Mapping[str, Any] | str | PathLike[str],
    layout: str | Mapping[str, Any] = "auto",
    *,
    agent: int | None = None,
    **arguments: Any,
) -> VRNN:
    """Make a module with the parameters of a checkpoint of a known foreign layout, sized by them.

    Names and shapes do not tell which activation a model had: pass ``activation=`` where it was not that of the
    layout. Nor do they tell what follows a mean in an ``nn.Sequential``: pass ``likelihood="bernoulli"`` for a
    sigmoid. ``std=`` is that of posterior and prior, and of a Gaussian output by its name too. A state dict of a
    VRNN tells all, as long as it is torch's own (a plain dictionary of its tensors tells no more than a foreign
    one); only a likelihood of your own must be passed.

    Args:
        state: a state dict or a plain dictionary of arrays, or a file that holds one: of torch.save (legacy ones
            included; nothing but tensors is ever unpickled), of numpy.savez, or of ``vrnn-fast convert``. A prefix
            that all names have goes, and a dictionary with a state dict among other things is searched for it.
        layout: ``"auto"``, the name of one, or a mapping, as :func:`vrnn_fast.accelerate` takes it.
        agent: which one, counted from 0, of a checkpoint with networks for each of several agents.
        arguments: of the module, instead of those that follow from the checkpoint.

    Raises:
        LayoutError: it is damaged, of no known layout, or of one with parts that cannot be run, or it does not tell
            what its output means; the message says what was looked for and what was found.
        TypeError: ``state`` is neither a mapping nor a path.

    Examples:
        >>> load_checkpoint(model.state_dict()).spec == model.spec
        True
    """
    if not isinstance(state, (Mapping, str, PathLike)):
        raise TypeError(
            f"state must be a state dict, a dictionary of arrays or a file's path, got {type(state).__name__}"
        )
    stored, ours = (state, None) if isinstance(state, Mapping) else _read(Path(state))
    if ours is None and layout == "auto":
        ours = _own(stored)
    if ours is not None:
        _alone(agent)
        return made(*ours, arguments, VRNN)
    model, tensors = _translate(_tensors(stored, layout), layout, arguments, agent)
    model.load_state_dict(tensors)
    return model


def convert(old: Path, new: Path, layout: str, arguments: Mapping[str, Any], agent: int | None = None) -> VRNN:
    """Write the model that ``old`` holds as a file that :func:`vrnn_fast.load_checkpoint` reads without further
    arguments.

    Raises:
        LayoutError: the checkpoint is of no known layout or a run's own, or ``new`` does not end in .safetensors.
    """
    if new.suffix != ".safetensors":
        raise LayoutError(f"the new file must end in .safetensors, got {new}")
    model = load_checkpoint(old, layout, agent=agent, **arguments)
    write(model, new)
    return model


def write(model: VRNN, path: Path) -> None:
    """Write a model as a file that :func:`vrnn_fast.load_checkpoint` reads."""
    from . import files

    files.save(path, model.state_dict(), {HEADER: described(model)})


def made(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    kind: type[Model],
) -> Model:
    """Make the module that was :func:`described`, with these tensors; of a ``kind`` with the arguments of VRNN.

    Raises:
        LayoutError: the description makes no module, or not one with such tensors.
    """
    try:
        given = _given(description, tensors, arguments)
        shapes = shapes_of(VRNN(**copy.deepcopy(given), device="meta").state_dict())
    except LayoutError:
        raise
    except Exception as error:  # whatever a damaged file says
        raise LayoutError(
            f"the checkpoint describes no VRNN that can be built: {type(error).__name__}: {error}"
        ) from error
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = f"shape {tuple(tensors[name].shape)}" if name in tensors else "no such tensor"
            raise LayoutError(f"{name} must have shape {shape}, as the checkpoint describes its VRNN, found {found}")
    model = kind(**{**given, **arguments})
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise LayoutError(f"the checkpoint does not fit: {error}") from error
    return model


def _given(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that were :func:`described`, with the likelihood in ``arguments`` if there is one."""
    given = {**description, "std": Std(**description["std"]), "dtype": next(iter(tensors.values())).dtype}
    if "likelihood" in arguments:
        return given | {"likelihood": arguments["likelihood"]}
    kind, constants = description["likelihood"]
    if constants is None:
        raise LayoutError(f"the likelihood {kind} is a class of your own: pass likelihood= to load_checkpoint")
    constants = {name: Std(**value) if isinstance(value, dict) else value for name, value in constants.items()}
    return given | {"likelihood": getattr(likelihoods, kind)(**constants)}


def _own(stored: Mapping[str, Any]) -> _Ours | None:
    """Read what a state dict of a VRNN says of it, and its tensors; None for any other."""
    for candidate in _mappings(stored):
        if not _is_state_dict(candidate):
            continue
        notes = getattr(candidate, "_metadata", None)
        for path, about in notes.items() if isinstance(notes, Mapping) else ():
            prefix = f"{path}." if path else ""
            if isinstance(about, Mapping) and MARK in about and all(name.startswith(prefix) for name in candidate):
                return about[MARK], {name.removeprefix(prefix): t for name, t in candidate.items()}
    return None


def _read(path: Path) -> tuple[Mapping[str, Any], _Ours | None]:
    """Read a file of safetensors, torch.save (legacy ones included) or numpy.savez; of one of ours the description as
    well."""
    try:
        there = path.is_file()
    except OSError as error:  # of a name that no file can have
        raise LayoutError(f"no checkpoint at {str(path)[:80]}...: {error.strerror}") from None
    if not there:
        raise LayoutError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays), None
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader raises on bytes that anybody may have written
        raise LayoutError(
            f"{path} holds no tensors that can be read without running code of its own: {_beside_tensors(path)}; save "
            "model.state_dict()"
        ) from error
    if not isinstance(found, Mapping):
        raise LayoutError(f"{path} must hold a state dict, found {type(found).__name__}")
    return found, None


def _beside_tensors(path: Path) -> str:
    """Say what a file holds that cannot be read."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # no archive of torch.save
        classes = []
    others = sorted(name for name in classes if not name.startswith("torch.nn.modules."))
    if not classes:
        return "it is damaged, of another kind, or has a whole model in it"
    return f"it has a whole model or other objects in it ({', '.join(others or classes)})"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], _Ours | None]:
    from . import files

    tensors, header = files.read(path)
    if header is None:
        return tensors, None
    if HEADER not in header:
        raise LayoutError(
            f"{path} is a run's checkpoint, not a converted file: vrnn-fast eval and sample read it, and "
            "vrnn_fast.training.trainer.load_model"
        )
    return tensors, (header[HEADER], tensors)


def _tensors(stored: Mapping[str, Any], layout: str | Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the state dict in ``stored``, which may hold it beside other things, without a prefix that all names
    have."""
    candidates = [tensors for found in _mappings(stored) if _is_state_dict(found) for tensors in _unwrapped(found)]
    if not candidates:
        raise LayoutError(f"there is no state dict in {{{', '.join(map(str, stored))}}}: names with tensors or arrays")
    arrays = (tensors for tensors in candidates if any(known.recognised(tensors) for known in _ARRAYS))
    return next(arrays, None) or min(candidates, key=lambda tensors: lacking(layout, shapes_of(tensors)))


def _unwrapped(found: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Yield a state dict as tensors, then without each prefix that wrappers may have put before all of its names."""
    tensors = {name: torch.as_tensor(value) for name, value in found.items()}
    yield tensors
    while all("." in name for name in tensors) and len({name.partition(".")[0] for name in tensors}) == 1:
        tensors = {name.partition(".")[2]: t for name, t in tensors.items()}
        yield tensors


def _mappings(stored: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Yield ``stored`` and all mappings in it, the outer ones first; a damaged one may hold itself."""
    found = [stored]
    for outer in found:
        found += [v for v in outer.values() if isinstance(v, Mapping) and not any(v is known for known in found)]
    return found


def _is_state_dict(stored: Mapping[Any, Any]) -> bool:
    """Tell whether all entries are names with tensors or arrays."""
    return bool(stored) and all(isinstance(name, str) and _is_array(value) for name, value in stored.items())


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (np.ndarray, np.number)) and value.dtype.kind in "fiub")


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor, by name."""
    return {name: tuple(t.shape) for name, t in tensors.items()}


def _alone(agent: int | None) -> None:
    """Raise LayoutError if one of several agents was asked for, where there is no list of them."""
    if agent is not None:
        raise LayoutError(f"agent must be left out, since the checkpoint has no list of agents, got {agent!r}")


def _index(agent: int | None, count: int) -> int:
    """Return which of a checkpoint's agents is asked for; with one agent alone, ``agent`` may be None.

    Raises:
        LayoutError: it is None for several agents, or there is no such agent.
    """
    if agent is None and count == 1:
        return 0
    if isinstance(agent, int) and not isinstance(agent, bool) and agent in range(count):
        return agent
    choice = "agent=0" if count == 1 else f"agent=0 to agent={count - 1}"
    raise LayoutError(
        f"the checkpoint holds the networks of {count} agent{'s' * (count > 1)}, and a VRNN those of one: choose it by "
        f"{choice} (--agent on the command line), got {agent!r}"
    )


def _translate(
    tensors: Mapping[str, Tensor], layout: str | Mapping[str, Any], arguments: Mapping[str, Any], agent: int | None
) -> tuple[VRNN, dict[str, Tensor]]:
    """Make the module that fits, and its state dict."""
    for arrays in _ARRAYS:
        if layout == arrays.NAME or (layout == "auto" and arrays.recognised(tensors)):
            _alone(agent)
            return arrays.module(tensors, arguments)
    shapes = shapes_of(tensors)
    known: Layout = chosen(layout, shapes, ", ".join(f"{n} {s}" for n, s in shapes.items()))
    cells = known.cells(shapes)
    structures = [cell.structure(shapes) for cell in cells]
    beside = known.beside(shapes)
    read = {*beside.values(), *(name for structure in structures for name in structure.names)}
    left = [name for name in tensors if name not in read]
    if left:
        raise LayoutError(f"{known} has no place for {', '.join(left)}")
    index = 0
    if known.listed(shapes):
        index = _index(agent, len(cells))
    else:
        _alone(agent)
    known, structure = cells[index], structures[index]
    spec = structure.spec
    like = tensors[structure.names[0]]
    given: dict[str, Any] = {
        **arguments_of(spec),
        "std": spec.std,
        "batch_first": known.batch_first,
        "dtype": like.dtype,
        **arguments,
        **known.arguments(structure, arguments),
    }
    if spec.own_layers and not spec.packed_heads:
        own = own_layers(spec, likelihoods.as_likelihood(given.get("likelihood", "bernoulli")))
        given["head_layers"] = arguments.get("head_layers", own)
    model = VRNN(spec.input_size, spec.hidden_size, spec.latent_size, **given)
    tensors = known.completed(tensors, model.likelihood)
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
    state = {name: theirs[name] for name in wanted}
    return model, state | {name: tensors[own] for name, own in beside.items() if name in model.state_dict()}
