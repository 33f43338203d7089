"""The sizes that people train, and how much arithmetic a step of each needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vrnn_fast import VRNN


@dataclass(frozen=True)
class Shape:
    """A batch of ``batch`` sequences of ``steps`` steps; ``model`` holds the arguments of :class:`vrnn_fast.VRNN`.

    ``lacks`` names what the model that people train has and VRNN cannot express yet; such a shape is not measured.
    ``draw`` numbers the data.
    """

    name: str
    steps: int
    batch: int
    model: dict[str, Any] = field(default_factory=dict, hash=False)
    lacks: str | None = None
    draw: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """x, h and z; zeros where there is no model."""
        x, h, z = (self.model.get(f"{name}_size", 0) for name in ("input", "hidden", "latent"))
        return x, h, z

    def parameters(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Draw the state dict that every contender starts from, the same float32 numbers every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = VRNN(**self.model, backend="reference", dtype=torch.float32)
        return {name: p.to(dtype) for name, p in model.state_dict().items()}

    def data(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Draw x (T, B, X), binary or real as the likelihood wants it, and the noise eps (T, B, Z), the same every
        time."""
        generator = torch.Generator().manual_seed(self.draw)
        x = torch.randn(self.steps, self.batch, self.model["input_size"], generator=generator)
        eps = torch.randn(self.steps, self.batch, self.model["latent_size"], generator=generator)
        return ((x > 0) if self.model["likelihood"] == "bernoulli" else x).to(dtype), eps.to(dtype)

    def condition(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Draw the conditioning input (T, B, C) beside :meth:`data`; None where the model takes none."""
        size = self.model.get("cond_size", 0)
        generator = torch.Generator().manual_seed(1_000_000 + self.draw)
        return torch.randn(self.steps, self.batch, size, generator=generator).to(dtype) if size else None


def forward_flops(model: nn.Module, shape: Shape) -> int:
    """Count a multiplication and an addition for each weight, time step and sequence; elementwise work is not counted.

    The gradients with respect to inputs and weights take as much again each: a training step is three times this.
    """
    return 2 * shape.steps * shape.batch * sum(p.numel() for p in model.parameters() if p.dim() == 2)


def uniform(x: int, h: int, z: int, **changes: Any) -> dict[str, Any]:
    """Make the most copied PyTorch VRNN: a GRU without biases, Bernoulli outputs, every network ``h`` wide."""
    two, one = (h, h), (h,)
    widths = {"phi_x": two, "phi_z": one, "encoder": two, "prior": one, "decoder": two}
    sizes = {"input_size": x, "hidden_size": h, "latent_size": z}
    return {**sizes, **widths, "bias": False, "likelihood": "bernoulli", **changes}


REFERENCE = Shape("reference", 28, 128, uniform(28, 100, 16))
SINGLE = Shape("single", 64, 1, uniform(28, 100, 16))

SIX_SHAPES = (
    REFERENCE,
    Shape("small batch", 50, 32, uniform(28, 100, 16)),
    Shape("narrow", 100, 16, uniform(88, 64, 32)),
    Shape("wide", 160, 64, uniform(88, 256, 64)),
    Shape("widest", 64, 128, uniform(200, 512, 128)),
    SINGLE,
)

_BARE: dict[str, Any] = {"encoder": (), "prior": (), "decoder": (), "activation": "tanh", "likelihood": "gaussian"}
_FOUR = (600,) * 4

# Models of public repositories and of the paper. Where an output or a posterior of theirs (Itakura-Saito divergence,
# mixtures, residual posterior) is not in every contender, the Gaussian one of about the same size stands in.
REAL_SHAPES = (
    Shape("reference", 28, 8, uniform(28, 100, 16)),
    Shape(  # its heads' own hidden layers are counted into the networks before them
        "deep",
        28,
        512,
        uniform(28, 100, 16, bias=True, phi_x=(100,) * 4, phi_z=(100,) * 4, encoder=(100,) * 3, prior=(100,) * 3)
        | {"decoder": (100,) * 3},
    ),
    Shape("motion", 50, 128, uniform(96, 64, 10, cell="lstm", bias=True, phi_x=(64,), phi_z=(16, 32)) | _BARE),
    Shape("speech", 50, 128, uniform(513, 128, 16, cell="lstm", bias=True, phi_x=(256,), phi_z=(32, 64)) | _BARE),
    Shape(
        "trajectories",
        49,
        512,
        uniform(10, 900, 80, bias=True, likelihood="gaussian", num_layers=2, cond_size=10, phi_x=(), phi_z=())
        | dict.fromkeys(("encoder", "prior", "decoder"), (200, 200)),
    ),
    Shape(
        "audio",
        100,
        64,
        uniform(200, 1024, 256, bias=True, likelihood="gaussian", phi_x=(512,) * 3, phi_z=(512,) * 4)
        | {"encoder": (512,) * 3, "prior": (512,) * 3, "decoder": (512,) * 2},
    ),
    Shape("music", 160, 16, uniform(88, 64, 64, cell="lstm", bias=True)),
    Shape(
        "paper",
        40,
        128,
        uniform(200, 4000, 200, cell="lstm", bias=True, likelihood="gaussian", phi_x=(500,) * 4, phi_z=(500,) * 4)
        | {"encoder": _FOUR, "prior": _FOUR, "decoder": _FOUR},
    ),
)
