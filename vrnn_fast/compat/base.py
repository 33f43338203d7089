"""What a layout says of a foreign model: its names, its noise, its objective, and their faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..spec import Activation
from .reading import Roles, Shapes, Structure, Traits, read
from .sampling import Sampler
from .widened import widening

_TRAITS = Traits()


class Fault(NamedTuple):
    """A known fault of a foreign model.

    Attributes:
        text: what is wrong.
        no_number: it gives NaN or an exception instead of a number, and is always mended.
        outside: it is not in forward, and stays whatever ``mend`` says.
    """

    text: str
    no_number: bool = False
    outside: bool = False


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
        before: the same before the last step, where the objective asks for it; else None.
        raws: (T, B, Z) what posterior and prior have their standard deviations from, where the layout wants them.
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


class Objective:
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
    def faults(self) -> Mapping[str, Fault]:
        """By the names under which ``mend`` takes them."""
        return {}

    def asks_before(self, mend: frozenset[str]) -> bool:
        """Whether it needs the state before the last step, which costs another launch."""
        return False

    def noise(self, out: Tensor, mend: frozenset[str]) -> None:
        """Fill (B, Z) with the noise of one time step, by the same draws as the original's."""
        out.normal_()

    def repaired(self) -> AbstractContextManager[None]:
        """What the original needs around it to yield a number at all."""
        return nullcontext()

    def output(self, run: Run, mend: frozenset[str]) -> Any:
        """What the original's forward returns, with the faults that ``mend`` names mended, or its parts."""
        raise NotImplementedError

    def finish(self, output: Any) -> Any:
        """What the original's forward returns, made of its parts: objects that read numbers out of tensors."""
        return output

    def attributes(self, run: Run) -> dict[str, Any]:
        """What the original's forward leaves as attributes of the module."""
        return {}

    def methods(self, original: type[nn.Module], mend: frozenset[str]) -> dict[str, Callable[..., Any]]:
        """Further methods of the original that mending changes, as the accelerated module has them."""
        return {}


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
        outside: paths of what is called outside of the launch, by the layout or by ``written``, and of what the layout
            knows without looking.
        lengths, state: the names of the arguments that hold the rows' lengths and the state to start from.
        written: the objective, where the user wrote one.
        sampler: how its models sample, where that runs here too.
        raws: whether its objective reads ``Run.raws``, which are there where heads are separate and single layers.
    """

    name: str
    title: str
    roles: Roles
    optional: tuple[str, ...] = ()
    batch_first: bool = False
    traits: Traits = _TRAITS
    outside: tuple[str, ...] = ()
    lengths: str = ""
    state: str = ""
    written: Objective | None = None
    sampler: Sampler | None = None
    raws: bool = False

    def __str__(self) -> str:
        return f"layout {self.name} ({self.title})"

    def missing(self, shapes: Shapes) -> list[str]:
        """The paths that this layout looks for and a model of these shapes does not have."""
        return [p for p in self.roles.paths() if p not in self.optional and not _holds(shapes, p)]

    def structure(self, shapes: Shapes) -> Structure:
        """Read a model of this layout by names and shapes.

        Raises:
            LayoutError: something is missing, or has another shape than its role asks for.
        """
        return self.structures(shapes)[0]

    def structures(self, shapes: Shapes, activations: tuple[tuple[str, Activation], ...] = ()) -> tuple[Structure, ...]:
        """:meth:`structure` of each cell, with the activations that modules told.

        Raises:
            LayoutError: as there.
        """
        traits = replace(self.traits, activations=(*self.traits.activations, *activations))
        found = [read(shapes, cell._roles(shapes), traits) for cell in self.cells(shapes)]
        apart = self.raws and not any(s.spec.packed_heads or s.spec.head_layers for s in found)
        return tuple(replace(s, widening=widening(s.spec)) if apart else s for s in found)

    def cells(self, shapes: Shapes) -> tuple[Layout, ...]:
        """The layout of each cell: of every agent where there is a list of them."""
        if not self.listed(shapes):
            return (self,)
        agents = itertools.takewhile(lambda i: _holds(shapes, f"{self.roles.cell}.{i}"), itertools.count())
        return tuple(
            replace(self, roles=self.roles.below(i), optional=tuple(f"{path}.{i}" for path in self.optional))
            for i in agents
        )

    def listed(self, shapes: Shapes) -> bool:
        """Whether every role is played by a list of sub-modules, one for each agent.

        That of the cell tells a list of one from a Sequential, in which no cell lies.
        """
        return all(_holds(shapes, f"{path}.0") for path in self._roles(shapes).paths() if _holds(shapes, path))

    def _roles(self, shapes: Shapes) -> Roles:
        """The roles that are played in a model of these shapes."""
        heads = tuple(p for p in self.roles.decoder_heads if p not in self.optional or _holds(shapes, p))
        return replace(self.roles, decoder_heads=heads)

    def told(self, model: nn.Module) -> Layout:
        """This layout, with what attributes of the model tell of it."""
        return self

    def objectives(self, model: nn.Module, structure: Structure) -> Iterator[Objective]:
        """What the original may compute, likeliest first; the proof takes the first that it does compute, or finds
        another by running."""
        yield from ()

    def example(self, model: nn.Module, features: int, steps: int, batch: int) -> tuple[Any, ...]:
        """Arguments that the model is meant for."""
        sizes = (batch, steps) if self.batch_first else (steps, batch)
        return (torch.rand((*sizes, features)),)

    def sequences(self, module: nn.Module, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """x (T, B, X) and a conditioning input (T, B, C) out of a call's arguments; by default the first one, as x."""
        return sequence(*next(iter(arguments.items())), self.batch_first), None

    def start(self, arguments: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
        """The (B, H) tensors to start from, or None for zeros."""
        state = arguments.get(self.state)
        if state is None:
            return None
        parts = (state,) if isinstance(state, Tensor) else tuple(state)
        return tuple(layer for part in parts for layer in (part.unbind(0) if part.dim() == 3 else (part,)))

    def beside(self, shapes: Shapes) -> dict[str, str]:
        """Our names of parameters that are no part of the cell, and theirs."""
        return {}

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the :class:`vrnn_fast.VRNN` that holds a checkpoint of this layout, beside its sizes and those that
        are ``given``.

        Raises:
            LayoutError: one that is given does not fit this layout.
        """
        return {}

    def completed(self, tensors: Mapping[str, Tensor], likelihood: Likelihood) -> Mapping[str, Tensor]:
        """A checkpoint's tensors as the module with this likelihood has them."""
        return tensors


def _holds(shapes: Shapes, path: str) -> bool:
    return any(name.startswith(f"{path}.") for name in shapes)


def sequence(name: str, value: object, batch_first: bool) -> Tensor:
    """A sequence (T, B, .) or (B, T, .) as (T, B, .).

    Raises:
        TypeError: it is no tensor. ValueError: it has not three dimensions.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dim() != 3:
        sizes = "B, T, X" if batch_first else "T, B, X"
        raise ValueError(f"{name} must have 3 dimensions ({sizes}), got shape {tuple(value.shape)}")
    return value.transpose(0, 1) if batch_first else value


def steps_of(tensor: Tensor) -> list[Tensor]:
    """(T, B, .) as a list of T tensors (B, .)."""
    return list(tensor.unbind(0))


def std_of(raw: Tensor) -> Tensor:
    """As ``nn.Softplus`` computes it."""
    return F.softplus(raw)
