"""The module that stands in for a foreign one: its class, its attributes, its very parameters, and one launch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn

from .. import checks, executors
from ..cell.spec import Network
from ..executors.base import full_precision
from ..layouts.base import Run
from ..layouts.outside import at_once, by_steps, decoded
from ..layouts.recipe import Recipe, RunsByRecipe, Sampling
from ..layouts.structure import LayoutError, Structure
from ..parameters import gather
from .mirror import mirror, slots

_SATURATED = 800.0  # beyond 745 exp of a number in double precision is zero or infinite


class Accelerated(RunsByRecipe):
    """The first base of every class that :func:`build` makes; the second is the original's class."""

    _original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Make its class anew where it is read, of the original's, which must be importable there."""
        return _restored, (self._original, self._recipe), self.__getstate__()  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"accelerated by vrnn_fast as {self._recipe.layout}, {self._recipe.structures[0].spec}"


def build(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Build the module that computes what ``model`` computes by ``recipe``, over the same parameters."""
    fast = mirror(model)
    fast.__class__ = _class(type(model), recipe)
    vars(fast).update(
        _recipe=recipe, _slots=slots(fast, [name for structure in recipe.structures for name in structure.names])
    )
    return fast


def saturate(fast: Accelerated) -> None:
    """Put the decoder's outputs, in turn, where sigmoid and exp end on either side."""
    with torch.no_grad():
        for head in (head for structure in fast._recipe.structures for head in structure.heads):
            bias = cast(Tensor, fast.get_submodule(head).bias)
            signs = 1 - 2 * (torch.arange(len(bias), device=bias.device) % 2)
            bias.copy_(_SATURATED * signs)


def _class(original: type[nn.Module], recipe: Recipe) -> type[nn.Module]:
    """Make the class whose forward, and whatever else ``recipe`` changes, runs by it."""

    @wraps(original.forward)
    def forward(self: Accelerated, *args: Any, **kwargs: Any) -> Any:
        return _run(self, args, kwargs)

    methods: dict[str, Any] = {"forward": forward, **recipe.outcome.methods(original, recipe.fix)}
    if recipe.outcome.finishes:
        methods["forward"] = _finished(forward, recipe.outcome.finish)
    if recipe.sampling is not None:
        methods[recipe.sampling.sampler.method] = _sampling(original, recipe.sampling)
    return type(f"Accelerated{original.__name__}", (Accelerated, original), {**methods, "_original": original})


def _restored(original: type[nn.Module], recipe: Recipe) -> nn.Module:
    """Make a module of that class that has no state yet."""
    kind = _class(original, recipe)
    return kind.__new__(kind)


def _finished(forward: Callable[..., Any], finish: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make the forward that compiled code enters untraced, so that it begins a graph inside, and ends it before
    finish."""
    finish = torch.compiler.disable(finish)

    @wraps(forward)
    def finished(self: Accelerated, *args: Any, **kwargs: Any) -> Any:
        return finish(forward(self, *args, **kwargs))

    return cast(Callable[..., Any], torch.compiler.disable(finished, recursive=False))


def _sampling(original: type[nn.Module], sampling: Sampling) -> Callable[..., Any]:
    """Make the method that samples without gradients on our backends, and else as the original does."""
    theirs = getattr(original, sampling.sampler.method)

    @wraps(theirs)
    def sample(self: Accelerated, *args: Any, **kwargs: Any) -> Any:
        tracked = sampling.gradients and torch.is_grad_enabled()
        return (theirs if tracked else sampling.sampler.sample)(self, *args, **kwargs)

    return sample


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """Return the parameters of a module's forward and their defaults.

    Raises:
        LayoutError: it takes none, or any.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if not parameters or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise LayoutError(f"forward must take x by a name, found forward{inspect.signature(model.forward)}")
    return {p.name: p.default for p in parameters}


def _bind(recipe: Recipe, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, as the original would receive them."""
    names, defaults = list(recipe.arguments), recipe.arguments
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    known = names[:1] if recipe.outcome.alone else names
    strange = [name for name in given if name not in known]
    lacking = [name for name in known if name not in given and defaults[name] is inspect.Parameter.empty]
    if len(args) > len(names) or strange or lacking or any(name in kwargs for name in names[: len(args)]):
        came = f"{len(args)} arguments and {', '.join(kwargs) or 'no keywords'}"
        raise TypeError(f"an accelerated forward takes {', '.join(known)}{' alone' * (len(known) == 1)}, got {came}")
    return {name: given[name] if name in given else defaults[name] for name in known}


def _run(self: Accelerated, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    recipe = self._recipe
    layout, outcome, cells = recipe.layout, recipe.outcome, recipe.structures
    parameters = gather(self, self._slots)
    like = parameters[0]
    arguments = _bind(recipe, args, kwargs)
    given = layout.given(self, arguments)
    x, noise = _seen(recipe, self, given.x, next(iter(arguments)), like)
    steps, batch = x.shape[0], x.shape[1]
    lengths = None if given.lengths is None else checks.lengths(given.lengths, steps, batch, x.device)
    cond = _conditioning(given.cond, cells[0].spec.cond_size, steps, batch, like)
    start = layout.start(arguments)
    if start is None:
        start = tuple(x.new_zeros((batch, s.spec.hidden_size)) for s in cells for _ in range(s.spec.state_tensors))
    else:
        shape = ("B", batch), ("H", cells[0].spec.hidden_size)
        start = tuple(checks.tensor(layout.state, state, shape, like) for state in start)
    runs, begin, places = [], 0, iter(parameters)
    features = [structure.spec.input_size for structure in cells]
    with full_precision(like.device):
        for structure, x_, eps in zip(cells, x.split(features, -1), noise, strict=True):
            parameters = list(itertools.islice(places, len(structure.names)))
            end = begin + structure.spec.state_tensors
            sequences = executors.Batch(x_, eps, start[begin:end], lengths, cond)
            latent, heads, state, before = _walk(recipe, structure, parameters, sequences)
            z, mean, std, prior_mean, prior_std, *raws = latent
            runs.append(
                Run(self, arguments, x_, z, mean, std, prior_mean, prior_std, heads, state, before, tuple(raws))
            )
            begin = end
        run = runs[0] if len(runs) == 1 else _side_by_side(runs)
        if "phi_x" in layout.apart:
            run = run._replace(x=given.x)
        if "decoder" in layout.apart:
            run = run._replace(heads=decoded(self, layout.roles, cells[0].heads, run.heads[0]))
        run = run._replace(target=run.x if given.target is None else given.target)
        for attribute, value in outcome.attributes(run).items():
            setattr(self, attribute, value)
        return outcome.output(run, recipe.fix)


def _seen(recipe: Recipe, module: nn.Module, x: Tensor, name: str, like: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return what the cells read of x, (T, B, X), and the noise of each; drawn in turn where the original's phi_x
    draws."""
    shape = ("T", None), ("B", None), ("X", sum(structure.spec.input_size for structure in recipe.structures))
    if "phi_x" not in recipe.layout.apart:
        x = checks.tensor(name, x, shape, like)
        return x, _draw(recipe, x.shape[0], x.shape[1], like)
    path = recipe.layout.roles.phi_x
    network, (steps, batch) = module.get_submodule(path), x.shape[:2]
    if not steps or not batch:
        raise ValueError(f"{name} must have T >= 1 and B >= 1, got shape {tuple(x.shape)}")
    if by_steps(network):
        made: list[Tensor] = []
        noise = _draw(recipe, steps, batch, like, lambda t: made.append(network(x[t])))
        features = torch.stack(made)
    else:
        features = at_once(network, x)
        noise = _draw(recipe, steps, batch, like)
    return checks.tensor(f"the output of {path}", features, shape, like), noise


def _draw(
    recipe: Recipe, steps: int, batch: int, like: Tensor, before: Callable[[int], None] | None = None
) -> list[Tensor]:
    """Draw the noise of each cell, (T, B, Z): step by step, and in each step cell by cell, ``before`` called first.

    All draws fill one buffer, since traced code may change the order of those that have nothing to do with one another.
    """
    sizes = [structure.spec.latent_size for structure in recipe.structures]
    drawn = like.new_empty((steps, batch * sum(sizes)), dtype=recipe.noise)
    views = [part.unflatten(1, (batch, -1)) for part in drawn.split([batch * size for size in sizes], 1)]
    for t in range(steps):
        if before is not None:
            before(t)
        for view in views:
            recipe.outcome.noise(view[t], recipe.fix)
    return [view.to(like.dtype) for view in views]


def _conditioning(cond: Tensor | None, size: int, steps: int, batch: int, like: Tensor) -> Tensor | None:
    if cond is None and not size:
        return None
    if cond is None or not size:
        raise ValueError(
            f"the networks read a conditioning input of {size} features, as layout['cond_networks'] says, and "
            f"{'none' if cond is None else 'one'} is given, as layout['cond'] or ['sequences'] says"
        )
    return checks.tensor("cond", cond, (("T", steps), ("B", batch), ("C", size)), like)


Latent: TypeAlias = tuple[Tensor, ...]  # z, mean, std, prior_mean, prior_std, and raws of a layout that wants them


def _walk(
    recipe: Recipe, structure: Structure, parameters: list[Tensor], batch: executors.Batch
) -> tuple[Latent, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """Run all time steps of one cell: return its latent variable, its decoder's heads apart, its state and, if asked
    for, that before the last step."""

    def part(steps: slice, start: tuple[Tensor, ...]) -> executors.Batch:
        cond = None if batch.cond is None else batch.cond[steps]
        return batch._replace(x=batch.x[steps], eps=batch.eps[steps], state=start, cond=cond)

    if not recipe.outcome.asks_before(recipe.fix):
        return *_launch(recipe, structure, parameters, batch), None
    if batch.x.shape[0] == 1:
        return *_launch(recipe, structure, parameters, batch), batch.state
    latent, heads, before = _launch(recipe, structure, parameters, part(slice(None, -1), batch.state))
    last, last_heads, state = _launch(recipe, structure, parameters, part(slice(-1, None), before))
    joined = tuple(map(torch.cat, zip(latent, last, strict=True)))
    return joined, tuple(map(torch.cat, zip(heads, last_heads, strict=True))), state, before


def _launch(
    recipe: Recipe, structure: Structure, parameters: list[Tensor], batch: executors.Batch
) -> tuple[Latent, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Launch one cell: return its latent variable, its decoder's heads apart, and its state."""
    spec = structure.spec
    if structure.passed is not None:
        parameters = structure.passed.parameters(parameters)
    reached = Reached(structure) if torch.is_grad_enabled() and not torch.compiler.is_compiling() else None
    if reached is not None:
        parameters = reached.only_if_reached(parameters)
    latents, wider = spec.latent_size, structure.widening
    if wider is not None:
        parameters, spec = wider.parameters(parameters), wider.spec
        batch = batch._replace(eps=torch.cat([batch.eps, torch.zeros_like(batch.eps)], -1))
    executor = executors.choose(recipe.backend, spec, batch.x)
    result = executor.run(spec, parameters, batch, executors.Want(prior=True, raw=True))
    prior_mean, prior_std = cast(Tensor, result.prior_mean), cast(Tensor, result.prior_std)
    fields = {"prior_mean": prior_mean[..., :latents], "prior_std": prior_std[..., :latents]}
    if wider is not None:
        fields["prior_raw"] = prior_mean[..., latents:]
    widths = [width for _, width in spec.decoder_heads]
    fields |= dict(zip(structure.raw, cast(Tensor, result.raw).split(widths, -1), strict=True))
    if reached is not None:
        fields = reached.noted(fields)
    posterior = tuple(t[..., :latents] for t in (result.z, result.mean, result.std))
    latent = (*posterior, fields["prior_mean"], fields["prior_std"])
    if wider is not None:
        latent = (*latent, result.mean[..., latents:], fields["prior_raw"])
    return latent, tuple(fields[head] for head in structure.raw), result.state


def _side_by_side(runs: list[Run]) -> Run:
    """Join the runs of several cells: their features beside one another, their states one after another."""

    def beside(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(parts), -1)

    return Run(
        runs[0].module,
        runs[0].arguments,
        beside(run.x for run in runs),
        beside(run.z for run in runs),
        beside(run.mean for run in runs),
        beside(run.std for run in runs),
        beside(run.prior_mean for run in runs),
        beside(run.prior_std for run in runs),
        tuple(beside(parts) for parts in zip(*(run.heads for run in runs), strict=True)),
        tuple(part for run in runs for part in run.state),
    )


class Reached:
    """Which results of one run a gradient has come through.

    A launch gives every parameter a gradient, zero where none came. An original leaves that of a network whose result
    is not used at None, and an optimiser with weight decay knows the difference.
    """

    def __init__(self, structure: Structure) -> None:
        self.seen: set[str] = set()
        spec = structure.spec
        leads: dict[str, set[str]] = {}
        if not spec.residual:  # then the prior's mean is in the posterior's, and all of its network with it
            leads |= _leads(spec.network("prior"), ("prior_mean", "prior_std"))
        leads |= _leads(spec.network("decoder"), structure.raw)
        self.leads = [leads.get(name.rpartition(".")[0]) for name, _ in spec.parameters()]

    def only_if_reached(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return parameters that get a gradient only if one came through a result that depends on them."""
        return [
            p if fields is None else _OnlyIfReached.apply(self.seen, fields, p)  # type: ignore[no-untyped-call]
            for p, fields in zip(parameters, self.leads, strict=True)
        ]

    def noted(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the results, which note the gradient that comes through."""
        parts = {"prior_raw": "prior_std"}  # of which it is a part
        return {n: _Noted.apply(self.seen, parts.get(n, n), t) for n, t in fields.items()}  # type: ignore[no-untyped-call]


def _leads(network: Network, fields: Sequence[str]) -> dict[str, set[str]]:
    """Find the fields, one of each head, that the layers of a network lead to."""
    if len(network.heads) != len(fields):  # packed
        return {layer.prefix: set(fields) for layer in network.layers}
    hidden = {layer.prefix: set(fields) for layer in network.hidden}
    return hidden | {layer.prefix: {f} for head, f in zip(network.heads, fields, strict=True) for layer in head}


class _Noted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, seen: set[str], name: str, tensor: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.seen, ctx.name = seen, name
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[None, None, Tensor | None]:
        if gradient is not None:
            ctx.seen.add(ctx.name)
        return None, None, gradient


class _OnlyIfReached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, seen: set[str], fields: set[str], parameter: Tensor) -> Tensor:
        ctx.seen, ctx.fields = seen, fields
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor | None]:
        return None, None, gradient if ctx.seen & ctx.fields else None
