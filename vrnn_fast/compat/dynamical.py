"""D, the dynamical-VAE collection: LSTM, exp(logvar / 2), one output head, results left as attributes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..likelihoods import ItakuraSaito
from ..spec import Std
from .base import Fault, Layout, Objective, Run
from .reading import Roles, Structure, Traits


@dataclass(frozen=True)
class DynamicalObjective(Objective):
    """``exponential``: forward returns exp(output), not the output."""

    exponential: bool

    @property
    def faults(self) -> Mapping[str, Fault]:
        return {"kl": Fault("its KL drops the -1, and is too high by half a nat per latent and step", outside=True)}

    def output(self, run: Run, mend: frozenset[str]) -> Any:
        return torch.exp(run.heads[0]) if self.exponential else run.heads[0]

    def attributes(self, run: Run) -> dict[str, Any]:
        return {
            "z_mean": run.mean,
            "z_logvar": 2 * torch.log(run.std),
            "z_mean_p": run.prior_mean,
            "z_logvar_p": 2 * torch.log(run.prior_std),
            "z": run.z,
        }


@dataclass(frozen=True)
class Dynamical(Layout):
    def objectives(self, model: nn.Module, structure: Structure) -> Iterator[Objective]:
        yield DynamicalObjective(exponential=False)
        yield DynamicalObjective(exponential=True)

    def arguments(self, structure: Structure) -> dict[str, Any]:
        warnings.warn(
            f"{self}: hidden layers are taken as tanh and the output as log variances of power spectra, which names "
            "and shapes do not tell; else pass activation=, or likelihood=FixedGaussian() for coordinates",
            stacklevel=5,
        )
        return {"likelihood": ItakuraSaito(0.0), "std": self.traits.std}


_NETWORKS = ("feature_extractor_x", "feature_extractor_z", "mlp_hx_z", "mlp_h_z", "mlp_hz_x")

LAYOUT = Dynamical(
    "D",
    "the dynamical-VAE collection",
    Roles(
        *_NETWORKS[:3],
        "inf_mean",
        "inf_logvar",
        "mlp_h_z",
        "prior_mean",
        "prior_logvar",
        "mlp_hz_x",
        ("gen_out",),
    ),
    optional=_NETWORKS,
    traits=Traits("tanh", std=Std("log_variance", floor=0.0)),
)
