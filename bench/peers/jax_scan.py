"""The same model in JAX, cut in three as ours is: ``jit`` over what depends on x alone, a ``lax.scan``, and the rest.

XLA makes one pool of threads when the process first uses its CPU backend, as large as the number of processors that
the process may run on, or as the environment's NPROC says at that moment. So NPROC is set to torch's number of threads
before the first array is made, and the pool keeps that size.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vrnn_fast.cell.spec import STD_FLOOR

from ..contender import FORWARD, FORWARD_LOSS, TRAINING, Entry, NamedTensors
from ..shapes import Shape
from .eager import OUTPUT_STD_FLOOR

Parameters = dict[str, Any]


def refuses(shape: Shape) -> str | None:
    """Tell why JAX cannot take part."""
    if importlib.util.find_spec("jax") is None:
        return "jax is not installed (the extra `peers` brings it)"
    if shape.model.get("num_layers", 1) > 1 or shape.model.get("cond_size"):
        return "it is written for one recurrent layer and no conditioning input"
    return None


def loss(p: Parameters, x: Any, eps: Any, model: dict[str, Any]) -> Any:
    """Compute the negative evidence lower bound of x (T, B, X) with noise eps (T, B, Z), in nats per step and
    sequence."""
    import jax
    import jax.numpy as jnp

    act = jax.nn.relu if model.get("activation", "relu") == "relu" else jnp.tanh
    lstm, hidden = model.get("cell") == "lstm", model["hidden_size"]

    def dense(names: Sequence[str]) -> tuple[Any, Any]:
        """Join layers that read the same input, as one."""
        return jnp.concatenate([p[f"{n}.weight"] for n in names]), jnp.concatenate([p[f"{n}.bias"] for n in names])

    def layers(prefix: str, widths: Sequence[int], heads: Sequence[str]) -> list[tuple[Any, Any]]:
        return [dense([f"{prefix}.{2 * i}"]) for i in range(len(widths))] + ([dense(heads)] if heads else [])

    def run(stack: Sequence[tuple[Any, Any]], y: Any, last: bool) -> Any:
        """Run every layer followed by the activation, but heads not."""
        for i, (w, b) in enumerate(stack):
            y = y @ w.T + b
            y = y if last and i == len(stack) - 1 else act(y)
        return y

    def after_first(stack: Sequence[tuple[Any, Any]], y: Any) -> Any:
        return run(stack[1:], act(y), True) if len(stack) > 1 else y

    def mean_std(raw: Any, floor: float) -> tuple[Any, Any]:
        mean, std = jnp.split(raw, 2, -1)
        return mean, jax.nn.softplus(std) + floor

    phi_z = layers("phi_z", model["phi_z"], ())
    encoder = layers("enc", model["encoder"], ("enc_mean", "enc_std.0"))
    prior = layers("prior", model["prior"], ("prior_mean", "prior_std.0"))
    gaussian = model["likelihood"] == "gaussian"
    decoder = layers("dec", model["decoder"], ("dec_mean", "dec_std.0") if gaussian else ("dec_mean.0",))
    w_ih, w_hh = p["rnn.weight_ih_l0"], p["rnn.weight_hh_l0"]
    b_ih, b_hh = p.get("rnn.bias_ih_l0", 0.0), p.get("rnn.bias_hh_l0", 0.0)

    # before: what depends on x alone
    phi_x = run(layers("phi_x", model["phi_x"], ()), x, False)
    width = phi_x.shape[-1]
    w_enc, b_enc = encoder[0]
    encoder_x = phi_x @ w_enc[:, :width].T + b_enc
    gates_x = phi_x @ w_ih[:, :width].T + b_ih
    w_h, gates_of_z = jnp.concatenate([w_enc[:, width:], w_hh]), w_ih[:, width:]

    def step(state: tuple[Any, ...], inputs: tuple[Any, Any, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        of_x, gates, noise = inputs
        h, *c = state
        of_h = h @ w_h.T
        mean, std = mean_std(after_first(encoder, of_x + of_h[:, : of_x.shape[1]]), STD_FLOOR)
        fz = run(phi_z, mean + std * noise, False)
        gates, recurrent = gates + fz @ gates_of_z.T, of_h[:, of_x.shape[1] :] + b_hh
        if lstm:
            i, f, g, o = jnp.split(gates + recurrent, 4, 1)
            cell = jax.nn.sigmoid(f) * c[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), (h, mean, std, fz)
        reset, update = jnp.split(jax.nn.sigmoid(gates[:, : 2 * hidden] + recurrent[:, : 2 * hidden]), 2, 1)
        new = jnp.tanh(gates[:, 2 * hidden :] + reset * recurrent[:, 2 * hidden :])
        return (new + update * (h - new),), (h, mean, std, fz)

    start = (jnp.zeros((x.shape[1], hidden)),) * (2 if lstm else 1)
    _, (h, mean, std, fz) = jax.lax.scan(step, start, (encoder_x, gates_x, eps))

    # after: what nothing waits for
    prior_mean, prior_std = mean_std(run(prior, h, True), STD_FLOOR)
    kl = jnp.log(prior_std) - jnp.log(std) + (std**2 + (mean - prior_mean) ** 2) / (2 * prior_std**2) - 0.5
    w_dec, b_dec = decoder[0]
    raw = after_first(decoder, fz @ w_dec[:, : fz.shape[-1]].T + h @ w_dec[:, fz.shape[-1] :].T + b_dec)
    if gaussian:
        out_mean, out_std = mean_std(raw, OUTPUT_STD_FLOOR)
        nll = 0.5 * ((x - out_mean) / out_std) ** 2 + jnp.log(out_std) + 0.5 * jnp.log(2 * jnp.pi)
    else:
        nll = jax.nn.softplus(raw) - raw * x
    per_step = nll.sum(-1) + kl.sum(-1)  # float32 sums of fewer terms, as the loop's
    return per_step.sum(1).sum() / (x.shape[0] * x.shape[1])


def prepare(shape: Shape, dtype: torch.dtype) -> Entry:
    """Make passes in float32, whatever ``dtype``: only the oracle wants another."""
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))
    import jax
    import jax.numpy as jnp
    import numpy as np

    def of_jax(t: Tensor) -> Any:
        return jnp.asarray(t.float().numpy())

    weights = shape.parameters()
    parameters = {name: of_jax(t) for name, t in weights.items()}
    x, eps = (of_jax(t) for t in shape.data())
    value = jax.jit(lambda p: loss(p, x, eps, shape.model))
    value_and_gradients = jax.jit(lambda p: jax.value_and_grad(loss)(p, x, eps, shape.model))
    last: list[Any] = []  # as torch keeps .grad

    def train() -> None:
        last.clear()
        last.append(jax.block_until_ready(value_and_gradients(parameters)))

    def results() -> NamedTensors:
        train()
        loss_value, gradients = last[0]
        found = {"loss": loss_value, FORWARD_LOSS: value(parameters)}
        found |= {f"gradient of {name}": g for name, g in gradients.items()}
        return {name: torch.from_numpy(np.array(t)) for name, t in found.items()}

    flops = 2 * shape.steps * shape.batch * sum(t.numel() for t in weights.values() if t.dim() == 2)
    return Entry({FORWARD: lambda: value(parameters).block_until_ready(), TRAINING: train}, results, flops)
