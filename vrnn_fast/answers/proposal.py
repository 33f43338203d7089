"""The prior in the posterior's place: a cell whose samples of z do not see x_t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import ModelCall
from ..cell.spec import CellSpec, Conditioned, Std, StdKind
from ..particles import Measured, measured


class Blinded(NamedTuple):
    """A cell whose encoder computes the prior, and the same as it measures."""

    spec: CellSpec
    measured: Measured

    @classmethod
    def of(cls, spec: CellSpec) -> Blinded | None:
        """Return that of a cell; None of one without z."""
        if not spec.latent_size:
            return None
        blind = blind_spec(spec)
        return cls(blind, measured(blind))


def blind(call: ModelCall, spec: CellSpec) -> ModelCall:
    """Return the call with an encoder that computes the prior, whatever x_t is.

    Its weights are the prior's, and zeros for the columns of phi_x. Where the posterior's standard deviation cannot be
    the 1 of a standard normal prior, it is the nearest that can be; the weights of the samples make up for it.

    Args:
        spec: what :func:`blind_spec` makes of the call's.
    """
    return call._replace(spec=spec, parameters=_parameters(call, spec))


@lru_cache(maxsize=64)
def blind_spec(spec: CellSpec) -> CellSpec:
    """Return the structure of :func:`blind`: the encoder's layers are those of the prior."""
    own = {name: spec.layers_of(name) for network in ("prior", "decoder") for name in spec.head_names(network)}
    kinds = dict(spec.activations)
    for name in ("encoder", *spec.head_names("encoder")):
        kinds.pop(name, None)
    kinds["encoder"] = spec.activations_of("prior")
    for ours, theirs in _heads(spec):
        own[ours] = () if theirs is None else spec.layers_of(theirs)
        kinds[ours] = () if theirs is None else spec.activations_of("prior", theirs)
    reads = () if spec.prior is None else tuple(spec.inputs("prior"))
    blinded = ("encoder",) if reads else ("encoder", "prior")  # a standard normal prior reads nothing
    conditioned: tuple[Conditioned, ...] = tuple(name for name in spec.cond_networks if name not in blinded)
    if "cond" in reads:
        conditioned = ("encoder", *conditioned)
    sources = ("phi_x", *(reads or ("h",)))
    others = tuple(name for name in spec.normalized if name != "encoder")
    return replace(
        spec,
        encoder=spec.prior or (),
        own_layers=tuple(own.items()),
        activations=tuple(kinds.items()),
        input_order=(*((name, order) for name, order in spec.input_order if name != "encoder"), ("encoder", sources)),
        cond_networks=conditioned,
        cond_size=spec.cond_size if conditioned else 0,
        residual=False,
        normalized=others + ("encoder",) * ("prior" in others),
    )


def _heads(spec: CellSpec) -> list[tuple[str, str | None]]:
    """Return the posterior's heads, and the prior's in whose place each stands."""
    theirs: Sequence[str | None] = spec.head_names("prior") or [None] * len(spec.heads("encoder"))
    return list(zip(spec.head_names("encoder"), theirs, strict=True))


def _parameters(call: ModelCall, spec: CellSpec) -> list[Tensor]:
    given = dict(zip((p.name for p in call.spec.parameters()), call.parameters, strict=True))
    encoder, first = spec.network("encoder"), spec.network("encoder").first
    if spec.prior is None:
        raw = call.like.new_full((spec.latent_size,), raw_of_one(spec.std))
        biases = torch.cat([torch.zeros_like(raw), raw])
        for layer, bias in zip(encoder.layers, biases.split([n.outputs for n in encoder.layers]), strict=True):
            given[layer.weight], given[layer.bias] = call.like.new_zeros(layer.outputs, layer.inputs), bias
    else:
        for ours, theirs in zip(encoder.layers, spec.network("prior").layers, strict=True):
            weight = given[theirs.weight]
            if ours in first:
                weight = torch.cat([weight.new_zeros(ours.outputs, spec.phi_x_size), weight], 1)
            given[ours.weight], given[ours.bias] = weight, given[theirs.bias]
            if ours.norm is not None:
                given |= {f"{ours.norm}.{leaf}": given[f"{theirs.norm}.{leaf}"] for leaf in ("weight", "bias")}
    return [given[p.name] for p in spec.parameters()]


def raw_of_one(std: Std) -> float:
    """Return the raw output whose standard deviation is 1, or as near to it as ``std`` comes."""
    wanted = max(1.0 - std.floor, 1e-6)
    inverse: dict[StdKind, float] = {
        "softplus": math.log(math.expm1(std.sharpness * wanted)) / std.sharpness,
        "log_std": math.log(wanted),
        "log_variance": 2 * math.log(wanted),
    }
    low, high = std.clamp
    return min(max(inverse[std.kind] - std.offset, low), high)
