"""Layout chung-2015: the paper's models as a dictionary of arrays, one block of weights for each parent of a layer.

Layer ``c`` that reads ``p`` has ``W_p__c`` (inputs, outputs) and ``b_c`` (outputs,). Layers are ``x_1 ...`` on ``x_t``,
``z_1 ...`` on ``z_t``, ``phi_1 ...`` on the last ``x`` and ``s_tm1``, ``prior_1 ...`` on ``s_tm1``, ``theta_1 ...`` on
the last ``z`` and ``s_tm1``, with the heads ``phi_mu``, ``phi_sig``, ``prior_mu``, ``prior_sig``, ``theta_mu`` and
``theta_sig``. The LSTM reads the last ``x`` and ``z`` and has ``U_rnn__rnn`` for its state; its gates are g, i, f, o.
Without ``prior`` layers it is VRNN-I, with a standard normal prior; without ``z``, ``phi`` and ``prior`` RNN-Gauss.

With ``coeff``, K logits, the output is a mixture: ``theta_mu`` and ``theta_sig`` hold K values for each feature. With
``corr`` (1, shared, or K) and ``binary`` it is handwriting, a mixture of strokes and the pen. There x_t is the pen and
two offsets; here the pen comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cell.spec import Std
from ..layouts.structure import LayoutError
from ..likelihoods import Gaussian, GaussianMixture, Handwriting, Likelihood
from ..model import VRNN
from .arrays import Arrays

NAME = "chung-2015"
_FLOOR = 1e-4
_STATE = "s_tm1"


def recognised(arrays: Mapping[str, Tensor]) -> bool:
    """Tell whether these are the arrays of such a model."""
    return "b_rnn" in arrays and "b_theta_mu" in arrays


def module(arrays: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> tuple[VRNN, dict[str, Tensor]]:
    """Make the module that fits, and its state dict.

    Raises:
        LayoutError: an array is missing or left over, or has another shape than its parents ask for.
    """
    reader = _Reader(NAME, arrays)
    x, z = reader.hidden("x", ("x_t",)), reader.hidden("z", ("z_t",))
    top_x, top_z = _top("x", x), _top("z", z)
    latent = reader.width("phi_mu") if "b_phi_mu" in reader else 0
    phi = reader.hidden("phi", (top_x, _STATE))
    prior = reader.hidden("prior", (_STATE,))
    of_z = (top_z,) if latent else ()
    theta = reader.hidden("theta", (*of_z, _STATE))
    heads: dict[str, tuple[str, str, Hidden]] = {}
    if latent:
        heads |= {"enc_mean": ("phi_mu", "phi", phi), "enc_std.0": ("phi_sig", "phi", phi)}
    learned = "b_prior_mu" in reader
    if learned:
        heads |= {"prior_mean": ("prior_mu", "prior", prior), "prior_std.0": ("prior_sig", "prior", prior)}
    parents = {"phi": (top_x, _STATE), "prior": (_STATE,)}
    input_size, likelihood, state = _output(reader, (_top("theta", theta),) if theta else (*of_z, _STATE))
    for name, (layer, network, layers) in heads.items():
        state |= reader.affine(name, layer, (_top(network, layers),) if layers else parents[network])
    for name, layers in {"phi_x": x, "phi_z": z, "enc": phi, "prior": prior, "dec": theta}.items():
        for i, (layer, read) in enumerate(layers):
            state |= reader.affine(f"{name}.{2 * i}", layer, read)
    state |= reader.lstm((top_x, *of_z))
    reader.finish()
    given: dict[str, Any] = {
        "cell": "lstm",
        "phi_x": reader.widths(x),
        "phi_z": reader.widths(z),
        "encoder": reader.widths(phi),
        "prior": reader.widths(prior) if learned or not latent else "standard_normal",
        "decoder": reader.widths(theta),
        "std": Std(floor=_FLOOR),
        "likelihood": likelihood,
        "dtype": state["dec_mean.weight"].dtype,
        **arguments,
    }
    hidden = state["rnn.weight_hh_l0"].shape[1]
    return VRNN(input_size, hidden, latent, **given), state


Hidden = Sequence[tuple[str, tuple[str, ...]]]


def _top(name: str, layers: Hidden) -> str:
    """Return what the next layer reads: the last hidden layer, or the input itself."""
    return layers[-1][0] if layers else f"{name}_t"


def _output(reader: _Reader, parents: Sequence[str]) -> tuple[int, Likelihood, dict[str, Tensor]]:
    """Return the width of x, its likelihood, and the decoder's heads, which read ``parents``."""
    heads = {"dec_mean": "theta_mu", "dec_std.0": "theta_sig"}
    strokes = "b_binary" in reader
    if not strokes and "b_coeff" not in reader:
        state = {n: t for name, layer in heads.items() for n, t in reader.affine(name, layer, parents).items()}
        return reader.width("theta_mu"), Gaussian(_FLOOR), state
    components = reader.width("coeff") if "b_coeff" in reader else 1
    state = {}
    for name, layer in heads.items():
        for leaf, rows in reader.affine(name, layer, parents).items():  # of each feature all components
            if rows.shape[0] % components:
                raise LayoutError(f"{layer} must have a multiple of {components} outputs, found {rows.shape[0]}")
            state[leaf] = rows.unflatten(0, (-1, components)).transpose(0, 1).flatten(0, 1)
    features = reader.width("theta_mu") // components
    if "b_coeff" in reader:
        state |= reader.affine("dec_logits", "coeff", parents)
    else:
        state |= {n.replace("mean", "logits"): torch.zeros_like(t[:1]) for n, t in state.items() if "mean" in n}
    if not strokes:
        return features, GaussianMixture(components, _FLOOR), state
    state |= reader.affine("dec_pen.0", "binary", parents)
    for leaf, rows in reader.affine("dec_correlation", "corr", parents).items():
        if rows.shape[0] not in (1, components):
            raise LayoutError(f"corr must have 1 or {components} outputs, found {rows.shape[0]}")
        state[leaf] = rows.expand(components, *rows.shape[1:]).contiguous()
    return features + 1, Handwriting(components, _FLOOR, 1.0), state


class _Reader(Arrays):
    def width(self, layer: str) -> int:
        return self.take(f"b_{layer}").shape[0]

    def widths(self, layers: Hidden) -> tuple[int, ...]:
        return tuple(self.width(layer) for layer, _ in layers)

    def hidden(self, name: str, parents: tuple[str, ...]) -> Hidden:
        """Return the layers name_1, name_2, ... with what each reads; the first one reads ``parents``."""
        found: list[tuple[str, tuple[str, ...]]] = []
        while f"b_{name}_{len(found) + 1}" in self:
            found.append((f"{name}_{len(found) + 1}", (found[-1][0],) if found else parents))
        return found

    def weight(self, layer: str, parents: Sequence[str]) -> Tensor:
        """Return (outputs, inputs), the parents' blocks beside one another."""
        return torch.cat([self.block(parent, layer) for parent in parents]).t()

    def block(self, parent: str, layer: str) -> Tensor:
        """Return (inputs, outputs) of one parent; the pen, first of x_t, comes last."""
        rows = self.take(f"W_{parent}__{layer}")
        return rows.roll(-1, 0) if parent == "x_t" and "b_binary" in self else rows

    def affine(self, name: str, layer: str, parents: Sequence[str]) -> dict[str, Tensor]:
        return {f"{name}.weight": self.weight(layer, parents), f"{name}.bias": self.take(f"b_{layer}")}

    def lstm(self, parents: Sequence[str]) -> dict[str, Tensor]:
        def gates(rows: Tensor) -> Tensor:
            g, i, f, o = rows.chunk(4)
            return torch.cat((i, f, g, o))

        bias = gates(self.take("b_rnn"))
        return {
            "rnn.weight_ih_l0": gates(self.weight("rnn", parents)),
            "rnn.weight_hh_l0": gates(self.take("U_rnn__rnn").t()),
            "rnn.bias_ih_l0": bias,
            "rnn.bias_hh_l0": torch.zeros_like(bias),
        }
