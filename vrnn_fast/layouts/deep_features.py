"""Deep features: x (B, T, X), four layers for x and z, heads with hidden layers of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import Layout
from .structure import Roles, Structure


@dataclass(frozen=True)
class Deep(Layout):
    """Its "var" is a standard deviation. What it draws and returns is found by running it."""

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        return self.output_likelihood(structure, given, self.traits.std)


LAYOUT = Deep(
    "deep-features",
    "deep features",
    Roles(
        phi_x="x_fea",
        phi_z="z_fea",
        encoder="encoder_fea",
        encoder_mean="encoder_mean",
        encoder_std="encoder_var",
        prior="prior_fea",
        prior_mean="prior_mean",
        prior_std="prior_var",
        decoder="decoder_fea",
        decoder_heads=("decoder_mean", "decoder_var"),
    ),
    batch_first=True,
)
