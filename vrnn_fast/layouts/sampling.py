"""``sample`` of an accelerated model: the original's, on our executors.

Noise is drawn as the original draws it, step by step, before the launch; so the same seed gives the same samples. What
the executors do here has no gradients: where the original's samples would have them, it samples itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from .. import executors
from ..cell.spec import CellSpec, Std
from ..executors.base import Batch, Want, full_precision
from ..parameters import Reading, gather
from .recipe import RunsByRecipe
from .structure import LayoutError

Role = TypeVar("Role")


class FillNoise(Protocol):
    """Fills a tensor with the noise of one step."""

    def __call__(self, out: Tensor) -> None: ...


class Player:
    """An accelerated module of one cell, its parameters read once, to go on without being shown anything.

    ``likelihood`` says what the first of the decoder's heads is the mean of, or the first two are of a Gaussian.

    Raises:
        LayoutError: the decoder has no such heads.
    """

    def __init__(self, module: RunsByRecipe, likelihood: str, heads: int) -> None:
        recipe = module._recipe
        (structure,) = recipe.structures
        parameters = gather(module, module._slots)
        self.like = parameters[0]
        self.drawn_as = recipe.noise
        self.draw: FillNoise = lambda out: recipe.outcome.noise(out, recipe.fix)
        spec = structure.spec
        gone = dict(spec.decoder_heads[heads:])
        try:
            self.spec: CellSpec = replace(
                spec,
                likelihood=likelihood,  # type: ignore[arg-type]
                decoder_heads=spec.decoder_heads[:heads],
                own_layers=tuple(own for own in spec.own_layers if own[0] not in gone),
                activations=tuple(own for own in spec.activations if own[0] not in gone),
                output_std=Std(floor=0.0),
            )
        except ValueError as error:
            raise LayoutError(f"{recipe.layout} does not sample from such a decoder: {error}") from error
        names = {name for name, _ in self.spec.parameters()}
        kept = [p for (n, _), p in zip(structure.spec.parameters(), parameters, strict=True) if n in names]
        every = len(kept) == len(parameters) and all(p.is_leaf for p in parameters)
        self.parameters = Reading(module, module._slots, parameters) if every else kept
        self.executor = executors.choose(recipe.backend, self.spec, self.like)

    def zeros(self, batch: int) -> tuple[Tensor, ...]:
        """Make a state to start from."""
        return tuple(self.like.new_zeros((batch, self.spec.hidden_size)) for _ in range(self.spec.state_tensors))

    def noise(self, batch: int, *widths: int) -> tuple[Tensor, ...]:
        """Draw the noise of one step, (1, B, width) each, drawn in this order."""
        drawn = tuple(self.like.new_empty((1, batch, width), dtype=self.drawn_as) for width in widths)
        for out in drawn:
            self.draw(out[0])
        return tuple(out.to(self.like.dtype) for out in drawn)

    def play(
        self, eps: Tensor, noise: Tensor, state: tuple[Tensor, ...], *, cond: Tensor | None = None, mean: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute x (T, B, X) that the cell makes of noise eps (T, B, Z) and noise (T, B, X), and the state after
        it."""
        with full_precision(self.like.device), torch.no_grad():
            batch = Batch(noise, eps, state, cond=cond)
            return self.executor.generate(self.spec, self.parameters, batch, mean=mean)

    def take_in(
        self, x: Tensor, eps: Tensor, state: tuple[Tensor, ...], cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the state after x (T, B, X), where z comes from the prior by the noise eps (T, B, Z)."""
        spec, parameters = _by_prior(self.spec, self.parameters)
        with full_precision(self.like.device), torch.no_grad():
            return self.executor.run(spec, parameters, Batch(x, eps, state, cond=cond), Want()).state


def _by_prior(spec: CellSpec, parameters: Sequence[Tensor]) -> tuple[CellSpec, list[Tensor]]:
    """Return the cell whose encoder is its prior: columns of zeros for what it sees of x.

    Raises:
        LayoutError: the prior is not learned.
    """
    if spec.prior is None:
        raise LayoutError("a standard normal prior reads nothing of a prefix")
    stand_ins = {"encoder": "prior", **dict(zip(spec.head_names("encoder"), spec.head_names("prior"), strict=True))}

    def as_prior(named: tuple[tuple[str, Role], ...]) -> tuple[tuple[str, Role], ...]:
        """Say of the encoder too what is said of the prior and its heads."""
        said = dict(named)
        of_others = ((name, value) for name, value in named if name not in stand_ins)
        return *of_others, *((ours, said[theirs]) for ours, theirs in stand_ins.items() if theirs in said)

    blind = replace(
        spec,
        encoder=spec.prior,
        residual=False,
        own_layers=as_prior(spec.own_layers),
        activations=as_prior(spec.activations),
        input_order=tuple(order for order in spec.input_order if order[0] != "encoder"),
        cond_networks=(
            *(n for n in spec.cond_networks if n != "encoder"),
            *(("encoder",) if "prior" in spec.cond_networks else ()),
        ),
    )
    values = dict(zip((name for name, _ in spec.parameters()), parameters, strict=True))
    first = blind.network("encoder").first
    for ours, theirs in zip(blind.network("encoder").layers, spec.network("prior").layers, strict=True):
        weight = values[theirs.weight]
        if ours in first:
            parts = {
                source: weight.narrow(1, spec.column("prior", source), width)
                for source, width in spec.inputs("prior").items()
            }
            unseen = weight.new_zeros((ours.outputs, spec.phi_x_size))
            weight = torch.cat([parts.get(source, unseen) for source in blind.inputs("encoder")], 1)
        values |= {ours.weight: weight, ours.bias: values[theirs.bias]}
    return blind, [values[name] for name, _ in blind.parameters()]
