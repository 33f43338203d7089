"""``accelerate``: somebody's own model in, the same model on our backends out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .. import checks, executors
from ..layouts import chosen
from ..layouts.base import Deviation, Layout, Outcome, Sampler
from ..layouts.mapping import Named, check_names
from ..layouts.modules import parameter_shapes, shallow
from ..layouts.recipe import Recipe, Sampling
from ..layouts.structure import LayoutError, Shapes
from ..model import VRNN
from .difference import ProofError
from .mirror import activations, check_modules, plain, ready, refuse_draws, strange
from .module import Accelerated, arguments_of, build
from .proof import prove, samples

Module = TypeVar("Module", bound=nn.Module)

_ALONE = "module"  # the child of nn.DataParallel and its like


def accelerate(
    model: Module,
    *,
    layout: str | Mapping[str, Any] = "auto",
    fix: Collection[str] = (),
    example: Tensor | tuple[Any, ...] | None = None,
    backend: str = "auto",
) -> Module:
    """Return a module that computes what ``model`` computes, all time steps in one launch.

    It has the model's class among its own, its forward's signature and return structure, its attributes, the very same
    Parameter objects under the same names, and with the same seed its numbers up to rounding. Losses, noise and
    reductions are the model's own, deviations included. One warning lists the deviations; those that give NaN or an
    exception instead of a number are always fixed. Before it is returned it has been proven: in a forked random state
    the model's own forward and the accelerated one ran on a small input in float64, in ``train()`` and ``eval()``, with
    and without gradients, and every returned field and every gradient was the same.

    The model itself goes on working. ``sample`` of the layouts eager-vrnn and trajectories runs on our backends as
    well, if it is proven to give the same samples from the same seed; else a warning tells why not. Other methods of
    the class run as they are written.

    Args:
        model: a VRNN of a known layout, alone or in ``nn.DataParallel``, ``DistributedDataParallel`` or another module
            with a single child named ``module``, which then is in such a wrapper as well. Move it to its device before.
        layout: ``"auto"``, the name of one (see ``vrnn_fast.layouts.LAYOUTS``), or a mapping of your own.
        fix: the names of deviations to fix, as the warning lists them.
        example: an x for the proof, or the tuple of all arguments of forward; random numbers by default.
        backend: as in :class:`vrnn_fast.VRNN`. One that does not know float64 is stood in for in the proof by
            ``"reference"``.

    Raises:
        LayoutError: the model is of no known layout, or holds what cannot be run; the message says what was looked for
            and what was found.
        ProofError: the accelerated module would not compute what the model computes; the message names the first
            field that differs, its size, and the mode in which it does.
        TypeError, ValueError: an argument out of its domain, naming it. What the model's own code raises is told by one
            of the errors above.

    Examples:
        >>> fast = accelerate(theirs)
        >>> isinstance(fast, type(theirs))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, Accelerated):
        raise ValueError(f"model has been accelerated already, as {model._recipe.layout}")
    if isinstance(model, VRNN):
        raise ValueError("model is a vrnn_fast.VRNN: it runs on these backends as it is")
    checks.one_of("backend", backend, executors.names())
    checks.several("fix", fix)
    if list(model._modules) == [_ALONE] and not model._parameters:
        return _wrapped(model, layout=layout, fix=fix, example=example, backend=backend)

    ready(model)
    looked_at = plain(model)
    shapes = parameter_shapes(looked_at)
    every = {name: tuple(p.shape) for name, p in looked_at.named_parameters()} | shapes
    known = chosen(layout, every, _children(model)).refined(model)
    known = replace(known, apart=_apart(looked_at, known, shapes))
    called = [path for role in known.apart for path in _paths(known, role)]
    refuse_draws(looked_at, _paths(known, "decoder") if "decoder" in known.apart else ())
    cells = known.structures(shapes)
    used = [name for cell in cells for name in cell.names]
    check_modules(looked_at, used, (*known.outside, *called), known.familiar, str(known))
    found = activations(looked_at, (network for cell in cells for network in cell.hidden), str(known))
    cells = known.structures(shapes, found)
    features = sum(cell.spec.input_size for cell in cells)
    arguments = arguments_of(model)
    if isinstance(layout, Mapping):
        check_names(layout, arguments)
    proving = executors.in_float64(backend, cells[0].spec, next(looked_at.parameters()))

    def recipe_of(
        outcome: Outcome,
        noise: torch.dtype | None,
        sampling: Sampling | None = None,
        *,
        fixed: Iterable[str] = (),
        on: str = proving,
    ) -> Recipe:
        return Recipe(known, cells, outcome, frozenset(fixed), on, arguments, noise, sampling)

    def inputs(steps: int, batch: int) -> tuple[Any, ...]:
        if example is not None:
            return example if isinstance(example, tuple) else (example,)
        if isinstance(known.made, Named) and "phi_x" not in known.apart:
            return known.made.example(arguments, features, cells[0].spec.cond_size, steps, batch)
        return known.example(model, features, steps, batch)

    proven = prove(
        model,
        lambda twin, outcome, noise: build(twin, recipe_of(outcome, noise)),
        known.outcomes(model, cells[0]) if known.written is None else iter((known.written,)),
        inputs,
        search=known.written is None,
    )
    _check_fix(known, proven.outcome.deviations, fix)
    sampling = None
    if known.sampler is not None and len(cells) == 1 and not known.apart:

        def built(twin: nn.Module, tried: Sampling) -> nn.Module:
            return build(twin, recipe_of(proven.outcome, proven.noise, tried))

        sampling = _proven_sampling(model, known.sampler, features, built)
    return cast(Module, build(model, recipe_of(proven.outcome, proven.noise, sampling, fixed=fix, on=backend)))


def _proven_sampling(
    model: nn.Module, sampler: Sampler, features: int, built: Callable[[nn.Module, Sampling], nn.Module]
) -> Sampling | None:
    """Return how the accelerated model samples; None, and a warning, where its samples are not proven."""
    tried = Sampling(sampler, gradients=False)
    try:
        gradients = samples(model, lambda twin: built(twin, tried), sampler, features)
    except (ProofError, LayoutError) as error:
        warnings.warn(f"{sampler.method} runs as its class is written, not on a backend: {error}", stacklevel=3)
        return None
    return None if gradients is None else Sampling(sampler, gradients)


def _check_fix(known: Layout, deviations: Mapping[str, Deviation], fix: Collection[str]) -> None:
    """Raise ValueError if ``fix`` names what cannot be fixed, and warn of the deviations that it leaves."""
    fixable = [name for name, deviation in deviations.items() if not deviation.outside]
    unknown = [name for name in fix if name not in fixable]
    if unknown:
        raise ValueError(
            f"fix may hold {', '.join(fixable) or 'nothing'} for {known}, got {', '.join(map(repr, unknown))}"
        )
    left = {name: deviation for name, deviation in deviations.items() if name not in fix}
    if left:
        listed = "; ".join(f"{name}: {f.text} ({_fate(f)})" for name, f in left.items())
        warnings.warn(f"accelerated as {known}, faithfully; fix= takes the deviations by name. {listed}", stacklevel=3)


def _apart(model: nn.Module, known: Layout, shapes: Shapes) -> tuple[str, ...]:
    """Return the networks that are needed outside of the scan only and hold what no launch runs."""
    if known.listed(shapes):
        return ()
    roles = {"phi_x": known.roles.phi_x, "decoder": known.roles.decoder}
    return tuple(role for role, path in roles.items() if path and strange(model, path, known.familiar))


def _paths(known: Layout, role: str) -> tuple[str, ...]:
    """Return the paths of a network and of its heads."""
    return (getattr(known.roles, role), *known.roles.heads(role))


def _fate(deviation: Deviation) -> str:
    if deviation.no_number:
        return "always fixed: it leaves no number"
    return "outside of forward, kept" if deviation.outside else "kept"


def _wrapped(model: Module, **options: Any) -> Module:
    """Rebuild the wrapper around its accelerated child: one of DistributedDataParallel reduces the gradients of the
    same parameters, with all that it has set up for them."""
    twin = shallow(model)
    twin._modules[_ALONE] = accelerate(model.get_submodule(_ALONE), **options)
    return cast(Module, twin)


def _children(model: nn.Module) -> str:
    return ", ".join(f"{name} ({type(child).__name__})" for name, child in model.named_children()) or "no sub-modules"
