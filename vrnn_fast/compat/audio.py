"""B, the speech benchmark: frames of sound, a residual posterior, packed heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..spec import Std
from .base import Layout
from .reading import Roles, Traits

_ENCODER = "vrnn.encoder"


@dataclass(frozen=True)
class Audio(Layout):
    """Its encoder, which stacks the samples of x (B, S) into frames and sees nothing else, is called as it is.

    What its forward returns besides features and KL depends on the likelihood of a copy: ``outputs`` says it.
    """

    def example(self, model: nn.Module, features: int, steps: int, batch: int) -> tuple[Tensor, ...]:
        frame = cast(nn.Linear, model.get_submodule(f"{_ENCODER}.2")).in_features
        return (2 * torch.rand(batch, steps * frame) - 1,)

    def sequences(self, module: nn.Module, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The encoder's features (B, T, .) of the first argument, as (T, B, .)."""
        features: Tensor = module.get_submodule(_ENCODER)(next(iter(arguments.values())))
        return features.transpose(0, 1), None


LAYOUT = Audio(
    "B",
    "the speech benchmark",
    Roles(
        phi_x="",
        phi_z="vrnn.vrnn_cell.phi_z",
        encoder="vrnn.vrnn_cell.posterior",
        encoder_mean="vrnn.vrnn_cell.posterior.6.params",
        encoder_std="",
        prior="vrnn.vrnn_cell.prior",
        prior_mean="vrnn.vrnn_cell.prior.6.params",
        prior_std="",
        decoder="vrnn.decoder",
        decoder_heads=("vrnn.decoder.4",),
        cell="vrnn.vrnn_cell.gru_cell",
    ),
    batch_first=True,
    traits=Traits(
        std=Std(beta=math.log(2) / (1 - 1e-6), floor=1e-6),
        residual=True,
        columns=(("encoder", ("h", "phi_x")),),
    ),
    outside=(_ENCODER, "vrnn.decoder.", "vrnn.likelihood"),
)
