"""Layout fivo: filtering objectives (Maddison et al. 2017, "Filtering Variational Objectives"): a dictionary of arrays.

Names are those of the TensorFlow checkpoint, ``{name: reader.get_tensor(name)}``, with or without a last ``:0``::

    data_encoder/linear_0/w (X, .), .../b, linear_1, ...        x
    latent_encoder/linear_0/w (Z, .), ...                       z
    lstm_cell/kernel (data + latent + H, 4 H), lstm_cell/bias   encoded x, encoded z, h; gates i, j, f, o
    prior_fcnet/linear_0/w (H, .), ...                          h; mean and raw standard deviation
    approximate_posterior_fcnet/linear_0/w (H + data, .), ...   h, encoded x; likewise, mean to be added to the prior's
    generative_fcnet/linear_0/w (latent + H, .), ...            encoded z, h; logits, or mean and raw standard deviation
    mean (X,)                                                   of the training set, which is no variable there

``mean`` is needed for binary x: its logits are a constant beside the last bias, and what the LSTM sees of x is centred
by it, while the posterior sees x as it is. Slots of the optimiser, the step, and the reverse LSTM that the filtering
posterior does not read are left out.

There the LSTM comes first in each step, on x_{t-1}, zero before the first one. Here it comes last, so what it makes of
zeros becomes the ``initial_state`` of the module. The encoders end in a linear layer; it is multiplied into whoever
reads it. Both are done in float64: the module computes the same function, with fewer parameters.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cell.spec import Std
from ..likelihoods import Gaussian
from ..model import VRNN
from .arrays import Arrays

NAME = "fivo"
_CLIP = 1e-4  # of the mean, before its logits are taken
_FORGET = 1.0  # added to the forget gate
_IDLE = re.compile(r"global_step|beta\d_power|.*/Adam(_1)?|rnn/lstm_cell/.*")

Affine = tuple[Tensor, Tensor]  # weight (inputs, outputs) and bias


def recognised(arrays: Mapping[str, Tensor]) -> bool:
    """Tell whether these are the arrays of such a model."""
    return any(_plain(name) == "data_encoder/linear_0/w" for name in arrays)


def module(arrays: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> tuple[VRNN, dict[str, Tensor]]:
    """Make the module that fits, and its state dict.

    Raises:
        LayoutError: an array is missing or left over, or has another shape than what it reads asks for.
    """
    reader = Arrays(NAME, {_plain(name): array for name, array in arrays.items()})
    dtype = reader.take("data_encoder/linear_0/w").dtype
    reader = Arrays(NAME, {n: a.double() if a.is_floating_point() else a for n, a in reader.arrays.items()})
    reader.leave(name for name in reader.arrays if _IDLE.fullmatch(name))

    data, latent = _network(reader, "data_encoder", None), _network(reader, "latent_encoder", None)
    input_size, encoded = data[0][0].shape[0], data[-1][0].shape[1]
    latent_size, encoded_z = latent[0][0].shape[0], latent[-1][0].shape[1]
    hidden = reader.take("lstm_cell/bias", (None,)).shape[0] // 4
    kernel = reader.take("lstm_cell/kernel", (encoded + encoded_z + hidden, 4 * hidden))
    bias = reader.take("lstm_cell/bias", (4 * hidden,)).clone()
    bias[2 * hidden : 3 * hidden] += _FORGET
    prior = _network(reader, "prior_fcnet", hidden)
    posterior = _network(reader, "approximate_posterior_fcnet", hidden + encoded)
    generative = _network(reader, "generative_fcnet", encoded_z + hidden)
    binary = generative[-1][0].shape[1] == input_size
    mean = reader.take("mean", (input_size,)) if binary or "mean" in reader else torch.zeros(input_size).double()
    reader.finish()
    if encoded == hidden:
        warnings.warn(
            f"layout {NAME}: the posterior is taken as the filtering one; shapes do not tell it from the smoothing one",
            stacklevel=4,
        )

    kernel_x, kernel_z, kernel_h = kernel.split((encoded, encoded_z, hidden))
    encode = _forward(data, torch.zeros(1, input_size).double())
    i, j, _, o = (encode @ kernel_x + bias).chunk(4, -1)
    c = torch.sigmoid(i) * torch.tanh(j)
    start = torch.stack([torch.sigmoid(o) * torch.tanh(c), c])

    posterior_h, posterior_x = posterior[0][0].split((hidden, encoded))
    generative_z, generative_h = generative[0][0].split((encoded_z, hidden))
    phi_x, (to_posterior, to_cell) = _centred(data, mean, (posterior_x, kernel_x))
    *phi_z, (last, last_bias) = latent
    posterior[0] = torch.cat([posterior_h, to_posterior[0]]), posterior[0][1] + to_posterior[1]
    generative[0] = torch.cat([last @ generative_z, generative_h]), generative[0][1] + last_bias @ generative_z
    inputs = torch.cat([to_cell[0], last @ kernel_z])
    bias = bias + to_cell[1] + last_bias @ kernel_z
    if binary:
        generative[-1] = generative[-1][0], generative[-1][1] + torch.logit(mean.clamp(_CLIP, 1 - _CLIP))

    state = {"initial_state": start}
    for name, layers in {"phi_x": phi_x, "phi_z": phi_z}.items():
        state |= _affine((f"{name}.{2 * n}", layer) for n, layer in enumerate(layers))
    for name, layers in {"enc": posterior, "prior": prior, "dec": generative}.items():
        *own, head = layers
        state |= _affine([*((f"{name}.{2 * n}", layer) for n, layer in enumerate(own)), (f"{name}_params", head)])
    state |= {
        "rnn.weight_ih_l0": _gates(inputs.t()),
        "rnn.weight_hh_l0": _gates(kernel_h.t()),
        "rnn.bias_ih_l0": _gates(bias),
        "rnn.bias_hh_l0": torch.zeros_like(bias),
    }
    given: dict[str, Any] = {
        "cell": "lstm",
        "phi_x": _widths(phi_x),
        "phi_z": _widths(phi_z),
        "encoder": _widths(posterior[:-1]),
        "prior": _widths(prior[:-1]),
        "decoder": _widths(generative[:-1]),
        "input_order": {"encoder": ("h", "phi_x")},
        "packed_heads": True,
        "residual": True,
        "std": Std(offset=0.5, floor=0.0),
        "likelihood": "bernoulli" if binary else Gaussian(std=Std(offset=0.25, floor=0.0)),
        "dtype": dtype,
        **arguments,
    }
    return VRNN(input_size, hidden, latent_size, **given), state


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _network(reader: Arrays, name: str, inputs: int | None) -> list[Affine]:
    """Read the affine layers of a network that reads so many features."""
    layers: list[Affine] = []
    while not layers or f"{name}/linear_{len(layers)}/w" in reader:
        prefix = f"{name}/linear_{len(layers)}"
        weight = reader.take(f"{prefix}/w", (inputs, None))
        inputs = weight.shape[1]
        layers.append((weight, reader.take(f"{prefix}/b", (inputs,))))
    return layers


def _forward(layers: Sequence[Affine], x: Tensor) -> Tensor:
    """Run hidden layers with a ReLU after each, and the last one without."""
    *hidden, (last, last_bias) = layers
    for weight, bias in hidden:
        x = torch.relu(x @ weight + bias)
    return x @ last + last_bias


def _centred(
    layers: Sequence[Affine], mean: Tensor, readers: tuple[Tensor, Tensor]
) -> tuple[list[Affine], list[Affine]]:
    """Return the hidden layers of the encoder of x, and what its two readers make of it: weight, and what it adds to
    the bias.

    The second reader sees x less its mean. Where that makes a difference the hidden layers run twice, side by side, and
    each reader has zeros for the columns of the other.
    """
    *hidden, (last, last_bias) = layers
    through = [(last @ weight, last_bias @ weight) for weight in readers]
    if not mean.any():
        return list(hidden), through
    if not hidden:
        weight, bias = through[1]
        return [], [through[0], (weight, bias - mean @ weight)]
    (first, bias), *rest = hidden
    twice = [(torch.cat([first, first], 1), torch.cat([bias, bias - mean @ first]))]
    twice += [(torch.block_diag(weight, weight), torch.cat([bias, bias])) for weight, bias in rest]
    (seen, seen_bias), (centred, centred_bias) = through
    return twice, [
        (torch.cat([seen, torch.zeros_like(seen)]), seen_bias),
        (torch.cat([torch.zeros_like(centred), centred]), centred_bias),
    ]


def _affine(layers: Any) -> dict[str, Tensor]:
    return {f"{name}.{leaf}": t for name, (w, b) in layers for leaf, t in (("weight", w.t()), ("bias", b))}


def _gates(rows: Tensor) -> Tensor:
    """Put rows for the gates i, j, f, o into torch's order, i, f, g, o."""
    i, j, f, o = rows.chunk(4)
    return torch.cat((i, f, j, o))


def _widths(layers: Sequence[Affine]) -> tuple[int, ...]:
    return tuple(weight.shape[1] for weight, _ in layers)
