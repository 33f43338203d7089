"""The dynamical-VAE collection: LSTM, exp(logvar / 2), one output head, results left as attributes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..cell.spec import Std
from ..likelihoods import ItakuraSaito
from .base import Deviation, Layout, Outcome, Run
from .structure import Roles, Structure, Traits


@dataclass(frozen=True)
class DynamicalOutcome(Outcome):
    """``exponential``: forward returns exp(output), not the output. ``losses`` are the methods that read what forward
    left; where there are none, the KL is computed in nobody's class."""

    exponential: bool
    losses: tuple[str, ...] = ()

    @property
    def deviations(self) -> Mapping[str, Deviation]:
        text = "its KL drops the -1, and is too high by half a nat per latent and step"
        return {"kl": Deviation(text, outside=not self.losses)}

    def output(self, run: Run, fix: frozenset[str]) -> Any:
        return torch.exp(run.heads[0]) if self.exponential else run.heads[0]

    def attributes(self, run: Run) -> dict[str, Any]:
        logvar, prior_logvar = run.raws or (2 * torch.log(run.std), 2 * torch.log(run.prior_std))
        return {
            "z_mean": run.mean,
            "z_logvar": logvar,
            "z_mean_p": run.prior_mean,
            "z_logvar_p": prior_logvar,
            "z": run.z,
        }

    def methods(self, original: type[nn.Module], fix: frozenset[str]) -> dict[str, Callable[..., Any]]:
        return {name: _without_prior_kl(getattr(original, name)) for name in self.losses} if "kl" in fix else {}


def _without_prior_kl(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method without what it gives for the KL of the prior to itself, which is zero.

    The excess is what grows when every latent is there twice.
    """

    @wraps(loss)
    def fixed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        left = {name: getattr(self, name) for name in _LEFT}
        prior = (left["z_mean_p"].detach(), left["z_logvar_p"].detach())
        found = []
        try:
            for mean, logvar in (prior, tuple(torch.cat([p, p], -1) for p in prior)):
                vars(self).update(z_mean=mean, z_logvar=logvar, z_mean_p=mean, z_logvar_p=logvar)
                with torch.no_grad():
                    found.append(loss(self, *args, **kwargs))
        finally:
            vars(self).update(left)
        result = loss(self, *args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            raise TypeError(f"{loss.__name__} returns no tensor that fix=('kl',) could fix: {result!r}")
        return pytree.tree_map(lambda r, one, two: r - (two - one) if isinstance(r, Tensor) else r, result, *found)

    return fixed


_LEFT = ("z_mean", "z_logvar", "z_mean_p", "z_logvar_p")


@dataclass(frozen=True)
class Dynamical(Layout):
    def outcomes(self, model: nn.Module, structure: Structure) -> Iterator[Outcome]:
        losses = tuple(
            name
            for name, method in inspect.getmembers(type(model), inspect.isfunction)
            if name != "forward" and set(_LEFT) <= set(method.__code__.co_names)
        )
        yield DynamicalOutcome(False, losses)
        yield DynamicalOutcome(True, losses)

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        warnings.warn(
            f"{self}: hidden layers are taken as tanh and the output as log variances of power spectra, which names "
            "and shapes do not tell; else pass activation=, or likelihood=FixedGaussian() for coordinates",
            stacklevel=5,
        )
        return {"likelihood": given.get("likelihood", ItakuraSaito(0.0))}


_NETWORKS = ("feature_extractor_x", "feature_extractor_z", "mlp_hx_z", "mlp_h_z", "mlp_hz_x")

LAYOUT = Dynamical(
    "dynamical-vae",
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
    raws=True,
)
