"""What a layout says of a foreign model: its names, its noise, its outcome, and their deviations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..cell.spec import Activations, Std
from ..likelihoods import Gaussian, Likelihood
from . import outside
from .structure import PASSED, LayoutError, Passed, Roles, Shapes, Structure, Traits, chain, read
from .widening import widening

_TRAITS = Traits()


class Deviation(NamedTuple):
    """A known deviation of a foreign model.

    Attributes:
        text: what is wrong.
        no_number: it gives NaN or an exception instead of a number, and is always fixed.
        outside: it is not in forward, and stays whatever ``fix`` says.
    """

    text: str
    no_number: bool = False
    outside: bool = False


class Sequences(NamedTuple):
    """What a call gives to a launch.

    Attributes:
        x: (T, B, X) what the encoder sees, or what phi_x does where that is called outside of the launch.
        cond: (T, B, C) a conditioning input.
        lengths: (B,) of the rows.
        target: (T, B, ...) what the outputs are compared with, where that is not x.
    """

    x: Tensor
    cond: Tensor | None = None
    lengths: Tensor | None = None
    target: Tensor | None = None


class Run(NamedTuple):
    """One run over a batch of sequences.

    Attributes:
        module: the accelerated module, whose sub-modules may be called.
        arguments: of the call, by name.
        x: (T, B, X) the input.
        z: (T, B, Z) the latent sample.
        mean, std: (T, B, Z) of the posterior.
        prior_mean, prior_std: (T, B, Z) of the prior.
        heads: the decoder's heads before any transform, (T, B, .) each.
        state: (B, H) tensors after the last step: h of every layer, for an LSTM then c of every layer.
        before: the same before the last step, where the outcome asks for it; else None.
        raws: (T, B, Z) what posterior and prior have their standard deviations from, where the layout wants them.
        target: (T, B, ...) what the outputs are compared with: x, unless the layout says otherwise.

    Examples:
        >>> class Means(type(theirs)):
        ...     def forward(self, x):
        ...         return torch.stack(super().forward(x)[2][0])
        >>> accelerate(Means(3, 16, 2), layout={"outputs": lambda run: run.mean})(x).shape
        torch.Size([5, 4, 2])
    """

    module: nn.Module
    arguments: Mapping[str, Any]
    x: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    heads: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
    before: tuple[Tensor, ...] | None = None
    raws: tuple[Tensor, ...] = ()
    target: Tensor | None = None


class Outcome:
    """What a foreign model makes of a run, and of chance.

    Attributes:
        alone: whether it knows of no argument but the first.
        finishes: whether :meth:`finish` has something to do. It is never traced: torch.compile takes all that comes
            before it, the launch and :meth:`output`, as one graph, and calls it with what that gave.
    """

    alone: ClassVar[bool] = True
    finishes: ClassVar[bool] = False

    @property
    def quantities(self) -> Mapping[str, str]:
        """What fields of the result are, in words, by the names that :mod:`.proof` gives them."""
        return {}

    @property
    def deviations(self) -> Mapping[str, Deviation]:
        """By the names under which ``fix`` takes them."""
        return {}

    def asks_before(self, fix: frozenset[str]) -> bool:
        """Tell whether it needs the state before the last step, which costs another launch."""
        return False

    def noise(self, out: Tensor, fix: frozenset[str]) -> None:
        """Fill (B, Z) with the noise of one time step, by the same draws as the original's."""
        out.normal_()

    def repaired(self) -> AbstractContextManager[None]:
        """Set up what the original needs around it to yield a number at all."""
        return nullcontext()

    def output(self, run: Run, fix: frozenset[str]) -> Any:
        """Return what the original's forward returns, with the deviations that ``fix`` names fixed, or its parts."""
        raise NotImplementedError

    def finish(self, output: Any) -> Any:
        """Return what the original's forward returns, made of its parts: objects that read numbers out of tensors."""
        return output

    def attributes(self, run: Run) -> dict[str, Any]:
        """Return what the original's forward leaves as attributes of the module."""
        return {}

    def methods(self, original: type[nn.Module], fix: frozenset[str]) -> dict[str, Callable[..., Any]]:
        """Return further methods of the original that a fix changes, as the accelerated module has them."""
        return {}


@dataclass(frozen=True)
class Sampler:
    """How a layout samples.

    Attributes:
        method: the name of the original's method.
        examples: arguments for its proof, of the number of features.
        sample: what stands in for it.
    """

    method: str
    examples: Callable[[int], tuple[tuple[Any, ...], ...]]
    sample: Callable[..., Any]


@dataclass(frozen=True)
class Layout:
    """A foreign layout.

    Attributes:
        name: how ``layout=`` calls it.
        title: what it is, in words.
        roles: which sub-module plays which part.
        optional: paths that some copies lack.
        batch_first: whether x is (B, T, X).
        traits: what names and shapes do not tell; the activation only where the modules do not either.
        outside: paths of what is called outside of the launch, by the layout or by the user's functions.
        familiar: paths of what the layout knows without looking.
        lengths, state: the names of the arguments that hold the rows' lengths and the state to start from.
        written: the outcome, where the user wrote one.
        made: the user's function of the module and a call's arguments that gives :class:`Sequences`.
        apart: ``"phi_x"`` or ``"decoder"``, where the model's own modules are called outside of the launch.
        sampler: how its models sample, where that runs here too.
        raws: whether its outcome reads ``Run.raws``, which are there where heads are separate and single layers.
    """

    name: str
    title: str
    roles: Roles
    optional: tuple[str, ...] = ()
    batch_first: bool = False
    traits: Traits = _TRAITS
    outside: tuple[str, ...] = ()
    familiar: tuple[str, ...] = ()
    lengths: str = ""
    state: str = ""
    written: Outcome | None = None
    made: Callable[..., Any] | None = None
    apart: tuple[str, ...] = ()
    sampler: Sampler | None = None
    raws: bool = False

    def __str__(self) -> str:
        return f"layout {self.name} ({self.title})"

    def missing(self, shapes: Shapes) -> list[str]:
        """Return the paths that this layout looks for and a model of these shapes does not have."""
        return [p for p in self.roles.paths() if p not in self.optional and not holds(shapes, p)]

    def variant(self, shapes: Shapes) -> Layout:
        """Return this layout, with the names that its copies of these shapes have for some roles."""
        return self

    def structure(self, shapes: Shapes) -> Structure:
        """Read a model of this layout by names and shapes.

        Raises:
            LayoutError: something is missing, or has another shape than its role asks for.
        """
        return self.structures(shapes)[0]

    def structures(
        self, shapes: Shapes, activations: tuple[tuple[str, Activations], ...] = ()
    ) -> tuple[Structure, ...]:
        """Read each cell as :meth:`structure` does, with the activations that modules told.

        Raises:
            LayoutError: as there.
        """
        traits = replace(self.traits, activations=(*self.traits.activations, *activations))
        found = [cell._read(shapes, traits) for cell in self.cells(shapes)]
        return tuple(replace(s, widening=widening(s.spec)) if self.raws else s for s in found)

    def _read(self, shapes: Shapes, traits: Traits) -> Structure:
        """Read one cell, without the networks that are apart."""
        roles = self._roles(shapes)
        if "phi_x" in self.apart:
            roles = replace(roles, phi_x="")
        if "decoder" not in self.apart:
            return read(shapes, roles, traits)
        layers = chain(shapes, roles.decoder)
        heads = tuple(last for path in roles.decoder_heads for last in chain(shapes, path)[-1:])
        if not layers or len(heads) != len(roles.decoder_heads):
            raise LayoutError(f"{roles.decoder} and its heads must have an affine layer each, to tell what they read")
        width = shapes[f"{layers[0]}.weight"][1]
        shapes = {**shapes, f"{PASSED}.weight": (width, width), f"{PASSED}.bias": (width,)}
        found = read(shapes, replace(roles, decoder="", decoder_heads=(PASSED,)), traits)
        place = found.names.index(f"{PASSED}.weight")
        names = (*found.names[:place], *found.names[place + 2 :])
        return replace(found, names=names, heads=heads, passed=Passed(place, width))

    def cells(self, shapes: Shapes) -> tuple[Layout, ...]:
        """Return the layout of each cell: of every agent where there is a list of them."""
        if not self.listed(shapes):
            return (self,)
        agents = itertools.takewhile(lambda i: holds(shapes, f"{self.roles.cell}.{i}"), itertools.count())
        return tuple(
            replace(self, roles=self.roles.below(i), optional=tuple(f"{path}.{i}" for path in self.optional))
            for i in agents
        )

    def listed(self, shapes: Shapes) -> bool:
        """Tell whether every role is played by a list of sub-modules, one for each agent.

        That of the cell tells a list of one from a Sequential, in which no cell lies.
        """
        return all(holds(shapes, f"{path}.0") for path in self._roles(shapes).paths() if holds(shapes, path))

    def _roles(self, shapes: Shapes) -> Roles:
        """Return the roles that are played in a model of these shapes."""
        heads = tuple(p for p in self.roles.decoder_heads if p not in self.optional or holds(shapes, p))
        return replace(self.roles, decoder_heads=heads)

    def refined(self, model: nn.Module) -> Layout:
        """Return this layout, with what attributes of the model tell of it."""
        return self

    def outcomes(self, model: nn.Module, structure: Structure) -> Iterator[Outcome]:
        """Yield what the original may compute, likeliest first; the proof takes the first that it does compute, or
        finds another by running."""
        yield from ()

    def example(self, model: nn.Module, features: int, steps: int, batch: int) -> tuple[Any, ...]:
        """Make arguments that the model is meant for."""
        if "phi_x" in self.apart:
            x = outside.example(self.roles.phi_x, model.get_submodule(self.roles.phi_x), steps, batch)
        else:
            x = torch.rand((steps, batch, features))
        return (x.transpose(0, 1) if self.batch_first else x,)

    def sequences(self, module: nn.Module, arguments: Mapping[str, Any]) -> Sequences:
        """Return what a call's arguments give to a launch; by default the first one is x."""
        x = sequence(*next(iter(arguments.items())), self.batch_first, features="phi_x" not in self.apart)
        return Sequences(x, lengths=arguments.get(self.lengths))

    def given(self, module: nn.Module, arguments: Mapping[str, Any]) -> Sequences:
        """Return :meth:`sequences`, or what the user's own function makes.

        Raises:
            TypeError: that gives no tuple of one to four.
        """
        if self.made is None:
            return self.sequences(module, arguments)
        found = self.made(module, **arguments)
        if not isinstance(found, tuple) or not 1 <= len(found) <= 4:
            raise TypeError(f"layout['sequences'] must return (x, cond, lengths, target), got {type(found).__name__}")
        return Sequences(*found)

    def start(self, arguments: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
        """Return the (B, H) tensors to start from, or None for zeros."""
        state = arguments.get(self.state)
        if state is None:
            return None
        parts = (state,) if isinstance(state, Tensor) else tuple(state)
        return tuple(layer for part in parts for layer in (part.unbind(0) if part.dim() == 3 else (part,)))

    def beside(self, shapes: Shapes) -> dict[str, str]:
        """Return our names of parameters that are no part of the cell, and theirs."""
        return {}

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the :class:`vrnn_fast.VRNN` that holds a checkpoint of this layout, beside its sizes
        and those that are ``given``, or in place of these.

        Raises:
            LayoutError: one that is given does not fit this layout, or one is not given that nothing tells.
        """
        return {}

    def output_likelihood(self, structure: Structure, given: Mapping[str, Any], std: Std) -> dict[str, Any]:
        """Make the likelihood of a decoder with a mean and perhaps a standard deviation, by :meth:`arguments`.

        ``std`` is how the latter comes from its head, unless another one is ``given``. A bare mean beside it is a
        Gaussian's; what else a module behind the mean makes of it, no checkpoint tells.

        Raises:
            LayoutError: the likelihood is not given where names and shapes do not tell it.
        """
        mean, *deviation = structure.heads
        likelihood = given.get("likelihood")
        if likelihood is None and deviation and mean == self.roles.decoder_heads[0]:
            likelihood = "gaussian"
        if likelihood is None:
            beside = f", 'gaussian' if {deviation[0]} gives its standard deviation" if deviation else ""
            raise LayoutError(
                f"{self}: names and shapes do not tell what is made of the output of {mean}: pass "
                f"likelihood='bernoulli' if a sigmoid follows it{beside}, or another (--likelihood on the command line)"
            )
        if likelihood == "gaussian":
            wanted = given.get("std", std)
            likelihood = Gaussian(std=wanted if isinstance(wanted, Std) else Std(wanted))
        return {"likelihood": likelihood}

    def completed(self, tensors: Mapping[str, Tensor], likelihood: Likelihood) -> Mapping[str, Tensor]:
        """Return a checkpoint's tensors as the module with this likelihood has them."""
        return tensors


def holds(shapes: Shapes, path: str) -> bool:
    """Tell whether a model of these shapes has something at ``path``."""
    return any(name.startswith(f"{path}.") for name in shapes)


def sequence(name: str, value: object, batch_first: bool, *, features: bool = True) -> Tensor:
    """Return a sequence (T, B, .) or (B, T, .) as (T, B, .). Without ``features`` each entry may have any shape.

    Raises:
        TypeError: it is no tensor. ValueError: it has not three dimensions, or not two.
    """
    value = checks.any_tensor(name, value)
    if value.dim() != 3 if features else value.dim() < 2:
        sizes = ("B, T" if batch_first else "T, B") + (", X" if features else ", ...")
        expected = "3 dimensions" if features else "2 dimensions or more"
        raise ValueError(f"{name} must have {expected} ({sizes}), got shape {tuple(value.shape)}")
    return value.transpose(0, 1) if batch_first else value


def steps_of(tensor: Tensor) -> list[Tensor]:
    """Cut (T, B, .) into a list of T tensors (B, .)."""
    return list(tensor.unbind(0))


def std_of(raw: Tensor) -> Tensor:
    """Compute it as ``nn.Softplus`` does."""
    return F.softplus(raw)
