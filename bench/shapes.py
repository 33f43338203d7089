"""The sizes that people train, and how much arithmetic a step of each needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A batch of ``batch`` sequences of ``steps`` steps; ``model`` holds the arguments of :class:`vrnn_fast.VRNN`."""

    name: str
    steps: int
    batch: int
    model: dict[str, Any] = field(hash=False)

    def data(self) -> tuple[Tensor, Tensor]:
        """x (T, B, X), binary or real as the likelihood wants it, and the noise eps (T, B, Z), the same every time."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.steps, self.batch, self.model["input_size"], generator=generator)
        eps = torch.randn(self.steps, self.batch, self.model["latent_size"], generator=generator)
        return (x > 0).float() if self.model["likelihood"] == "bernoulli" else x, eps


def forward_flops(model: nn.Module, shape: Shape) -> int:
    """A multiplication and an addition for each weight, time step and sequence; elementwise work is not counted.

    The gradients with respect to inputs and weights take as much again each: a training step is three times this.
    """
    return 2 * shape.steps * shape.batch * sum(p.numel() for p in model.parameters() if p.dim() == 2)


def _uniform(width: int) -> dict[str, Any]:
    """Every network as deep as in the most copied PyTorch VRNN, and ``width`` wide."""
    two, one = (width, width), (width,)
    return {"hidden_size": width, "phi_x": two, "phi_z": one, "encoder": two, "prior": one, "decoder": two}


_REFERENCE = {"input_size": 28, "latent_size": 16, "bias": False, "likelihood": "bernoulli", **_uniform(100)}

SHAPES = (
    Shape("reference", 28, 128, _REFERENCE),
    Shape("reference", 28, 8, _REFERENCE),
    Shape(
        "motion",
        50,
        128,
        {
            "input_size": 96,
            "hidden_size": 64,
            "latent_size": 10,
            "cell": "lstm",
            "phi_x": (64,),
            "phi_z": (16, 32),
            "encoder": (),
            "prior": (),
            "decoder": (),
            "activation": "tanh",
            "likelihood": "gaussian",
        },
    ),
    Shape(
        "music",
        160,
        16,
        {"input_size": 88, "latent_size": 64, "cell": "lstm", "likelihood": "bernoulli", **_uniform(64)},
    ),
)
