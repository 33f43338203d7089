"""A model as plain data: the arguments that make one like it, from its structure and its likelihood alone."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any, Protocol

from torch import Tensor, nn

from . import likelihoods
from .cell.spec import CellSpec, Std
from .likelihoods import Likelihood

_SHARED = (
    "cell",
    "num_layers",
    "bias",
    "nonlinearity",
    "phi_x",
    "phi_z",
    "encoder",
    "prior",
    "decoder",
    "head_layers",
    "packed_heads",
    "residual",
)  # arguments of VRNN that are fields of its spec
MARK = "vrnn_fast"  # among what torch notes of a module in a state dict


def arguments_of(spec: CellSpec) -> dict[str, Any]:
    """Return arguments of a VRNN with this cell, beside its sizes, its standard deviation and its likelihood."""
    about = {name: getattr(spec, name) for name in _SHARED}
    if spec.prior is None and spec.latent_size:
        about["prior"] = "standard_normal"
    if spec.own_layers:
        heads = (head for name in ("encoder", "prior", "decoder") for head in spec.head_names(name))
        about["head_layers"] = {head: spec.layers_of(head) for head in heads if spec.layers_of(head)}
    every = () if spec.activation == "relu" else ("phi_x", "phi_z", "encoder", "prior", "decoder")
    others = dict.fromkeys(every, spec.activation)
    own = {head: spec.activations_of(n, head) for n in every for head in spec.head_names(n) if spec.layers_of(head)}
    about["activation"] = others | own | dict(spec.activations) if spec.activations else spec.activation
    about["input_order"] = dict(spec.input_order)
    about |= {"layer_norm": spec.normalized, "layer_norm_eps": spec.norm_eps} if spec.normalized else {}
    return about | ({"cond_size": spec.cond_size, "cond_networks": spec.cond_networks} if spec.cond_size else {})


def own_layers(spec: CellSpec, likelihood: Likelihood) -> dict[str, tuple[int, ...]]:
    """Return the hidden layers of each head, by the names that the likelihood has for the decoder's."""
    own = {head: spec.layers_of(head) for name in ("encoder", "prior") for head in spec.head_names(name)}
    decoders = zip(likelihood.heads(spec.input_size), spec.head_names("decoder"), strict=False)
    return own | {ours.partition(".")[0]: spec.layers_of(theirs) for ours, theirs in decoders}


class Described(Protocol):
    """What a VRNN says of itself."""

    spec: CellSpec
    likelihood: Likelihood
    batch_first: bool
    initial_state: Tensor | None


def described(model: Described) -> dict[str, Any]:
    """Return the arguments that make such a module again, as plain data; of a likelihood of the user's own its name
    alone."""
    spec, likelihood = model.spec, model.likelihood
    kind = type(likelihood)
    about = {name: getattr(spec, name) for name in ("input_size", "hidden_size", "latent_size")} | arguments_of(spec)
    constants = None
    if getattr(likelihoods, kind.__name__, None) is kind:
        found = {name: getattr(likelihood, name) for name in inspect.signature(kind).parameters}
        constants = {name: asdict(value) if isinstance(value, Std) else value for name, value in found.items()}
    about |= {"learn_initial_state": True} if isinstance(model.initial_state, nn.Parameter) else {}
    about |= {"std": asdict(spec.std), "likelihood": (kind.__name__, constants), "batch_first": model.batch_first}
    return about
