"""Checkpoints of the most copied PyTorch VRNN: the same names, but for what depends on likelihood and biases."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .cell.spec import CellSpec
from .likelihoods import Likelihood


def adopt(state_dict: dict[str, Any], prefix: str, spec: CellSpec, likelihood: Likelihood) -> None:
    """Rename, in place, what was made for another likelihood: ``dec_mean`` and ``dec_mean.0`` are the same key, and
    ``dec_std.*`` is dropped, with one warning, where the likelihood has no standard deviation."""
    if spec.packed_heads:
        return
    heads = {head.partition(".")[0]: head for head, _ in spec.decoder_heads}
    single = not spec.layers_of("dec_mean")
    for key in [k for k in state_dict if single and k.startswith(f"{prefix}dec_mean.")]:
        leaf = key.removeprefix(f"{prefix}dec_mean.").removeprefix("0.")
        state_dict[f"{prefix}{heads.get('dec_mean', 'dec_mean')}.{leaf}"] = state_dict.pop(key)
    unused = [k for k in state_dict if "dec_std" not in heads and k.startswith(f"{prefix}dec_std.")]
    for key in unused:
        del state_dict[key]
    if unused:
        warnings.warn(f"dropped {', '.join(unused)}: {likelihood} has no use for them", stacklevel=3)


def about_biases(state_dict: Mapping[str, Any], spec: CellSpec) -> str | None:
    """Say that a checkpoint's cell has biases and the module's has none, or the other way round; None if they agree."""
    theirs = any(name.startswith("rnn.") and "bias_" in name for name in state_dict)
    if theirs == spec.bias or not any(name.startswith("rnn.") for name in state_dict):
        return None
    has = "has rnn.bias_*" if theirs else "has no rnn.bias_ih_l0 and rnn.bias_hh_l0"
    return f"The checkpoint's cell {has}: build VRNN with bias={theirs}."
