"""The raw outputs of the heads for standard deviations, out of a launch that gives means and deviations.

A launch gives exp(raw / 2), and the logarithm of that has lost what raw had near zero. So each latent gets a second one
beside it, whose mean is the raw output: no noise goes to it, and nobody reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell.spec import CellSpec


class Widening(NamedTuple):
    """How the parameters of a cell become those of the one with twice as many latents.

    Attributes:
        spec: that cell.
        heads: places of a mean's weight or bias and of the standard deviation's.
        readers: places of the weights that read z, and their column where it begins.
    """

    spec: CellSpec
    heads: tuple[tuple[int, int], ...]
    readers: tuple[tuple[int, int], ...]

    def parameters(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the parameters of :attr:`spec`."""
        widened, latents = list(parameters), self.spec.latent_size // 2
        for mean, std in self.heads:
            widened[mean] = torch.cat([widened[mean], widened[std]])
            widened[std] = torch.cat([widened[std], torch.zeros_like(widened[std])])
        for reader, at in self.readers:
            before, own, after = widened[reader].tensor_split((at, at + latents), 1)
            widened[reader] = torch.cat([before, own, torch.zeros_like(own), after], 1)
        return widened


def widening(spec: CellSpec) -> Widening | None:
    """Return None for a cell whose mean and standard deviation of z are packed or come from layers of their own."""
    if any(len(spec.network(n).layers) != len(getattr(spec, n)) + 2 for n in ("encoder", "prior")):
        return None
    places = {name: place for place, (name, _) in enumerate(spec.parameters())}
    heads = []
    for network in ("encoder", "prior"):
        (mean,), (std,) = spec.network(network).heads
        heads += [(places[mean.weight], places[std.weight]), (places[mean.bias], places[std.bias])]
    if spec.phi_z:
        readers = [(places[spec.network("phi_z").first[0].weight], 0)]
    else:
        at = spec.column("decoder", "phi_z")
        readers = [(places[layer.weight], at) for layer in spec.network("decoder").first]
        readers.append((places["rnn.weight_ih_l0"], spec.column("cell", "phi_z")))
    return Widening(replace(spec, latent_size=2 * spec.latent_size), tuple(heads), tuple(readers))
