"""Cells of the tests of the CUDA executor: few, for each costs the compiler a second or two."""

from __future__ import annotations

from typing import Any

from tests.support.family import DEEP
from vrnn_fast.cell.spec import CellSpec, Std

GAUSSIAN: dict[str, Any] = {
    "likelihood": "gaussian",
    "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5)),
    "output_std": Std(floor=1e-3),
}


def cell(**options: Any) -> CellSpec:
    return CellSpec(**{"input_size": 5, "hidden_size": 19, "latent_size": 3, **DEEP, **options})


GRU = cell()
NORMALISED = cell(normalized=("encoder",), encoder=(17,), phi_x=(5,), phi_z=(), prior=(), decoder=(), activation="silu")
FILTER = cell(measure="particle_filter")
LSTM = cell(cell="lstm", num_layers=2, phi_z=(), std=Std("log_std", clamp=(-2.0, 2.0), min_std=0.1), **GAUSSIAN)
