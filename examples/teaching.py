"""A variational recurrent network, forward and backward, in NumPy alone: to be read from top to bottom.

The model is ``VRNN(X, H, Z)`` as it comes: a GRU, Bernoulli outputs, networks H wide (Chung et al. 2015). One step:

    prior       z_t ~ N(prior(h_{t-1}))                           eq. 5
    generation  x_t ~ Bernoulli(decoder(phi_z(z_t), h_{t-1}))     eq. 6
    recurrence  h_t = GRU([phi_x(x_t), phi_z(z_t)], h_{t-1})      eq. 7
    posterior   z_t ~ N(encoder(phi_x(x_t), h_{t-1}))             eq. 9
    measured    nll_t = -log p(x_t | z_t, h_{t-1})    kl_t = KL(posterior || prior)

Whoever runs this step by step does a few dozen small products for each t. But only one chain is truly sequential,
h_{t-1} -> posterior -> z_t -> phi_z -> GRU -> h_t. So the cell is cut in three:

    before   depends on x alone:          phi_x, and what it gives to encoder and GRU      N = T*B rows at once
    scan     the chain, step after step                                                    B rows at a time
    after    wants nothing but h and z:   prior, KL, decoder, likelihood                   N rows at once

A product with several inputs side by side is cut by columns: W [a, b] = W_a a + W_b b. The encoder's first layer reads
[phi_x, h] and the GRU [phi_x, phi_z], so that phi_x's columns go into ``before``.

Backward runs the parts the other way round: after, scan from the last step to the first, before. Inside the loop it
computes only what goes to the step before. The gradient of a weight is a sum over all steps and rows, which is one
product, dY.T @ X with N rows each, and it can wait until the loop is done. csrc/cpu does the same, chunk by chunk.

``python examples/teaching.py`` checks the gradients by differences, and trains. Letters in comments are shapes; a
parameter ``W`` of a layer is (out, in), as torch stores it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]

STD_FLOOR = 1e-6


# ---- functions of one number, and what backward needs of them


def sigmoid(a: Array) -> Array:
    return np.exp(-np.logaddexp(0, -a))  # overflows for no a


def softplus(a: Array) -> Array:
    return np.logaddexp(0, a)  # its derivative is sigmoid(a)


def relu(a: Array) -> Array:
    return np.maximum(a, 0)  # its derivative is 1 where the result is positive: the result is enough


# ---- a layer


def linear(p: Arrays, layer: str, x: Array) -> Array:
    """y = x W^T + b: (..., in) -> (..., out)."""
    return x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]


def linear_backward(p: Arrays, d: Arrays, layer: str, x: Array, dy: Array) -> Array:
    """Put the gradients of W and b into ``d``, and return that of x: (..., out) -> (..., in)."""
    d[f"{layer}.weight"] = over_rows(dy, x)
    d[f"{layer}.bias"] = over_rows(dy)
    return dy @ p[f"{layer}.weight"]


def over_rows(dy: Array, x: Array | None = None) -> Array:
    """Sum over all T*B rows: (N, out)^T (N, in) -> (out, in), one product; without x (N, out) -> (out,)."""
    rows = dy.reshape(-1, dy.shape[-1])
    return rows.sum(0) if x is None else rows.T @ x.reshape(-1, x.shape[-1])


# ---- forward


def forward(p: Arrays, x: Array, eps: Array, h0: Array) -> tuple[Arrays, Arrays]:
    """x (T, B, X) in [0, 1], eps (T, B, Z) standard normal, h0 (B, H) -> the results, and what backward needs."""
    T, B, _ = x.shape
    H, Z = h0.shape[-1], eps.shape[-1]

    # -- before: N rows at once
    phi_x0 = relu(linear(p, "phi_x.0", x))  # (T, B, H)
    phi_x = relu(linear(p, "phi_x.2", phi_x0))  # (T, B, H)
    enc_x, _ = np.split(p["enc.0.weight"], [H], axis=1)  # (H, H): the columns of phi_x, and those of h
    gates_x, _ = np.split(p["rnn.weight_ih_l0"], [H], axis=1)  # (3H, H): of phi_x, and of phi_z
    pre_e = phi_x @ enc_x.T + p["enc.0.bias"]  # (T, B, H): what x gives to the encoder's first layer
    pre_g = phi_x @ gates_x.T + p["rnn.bias_ih_l0"]  # (T, B, 3H): what x gives to the gates

    # -- scan: B rows at a time. What it computes is kept; h[t] is the state that step t starts from
    h = np.empty((T + 1, B, H))
    e0, e1, phi_z = (np.empty((T, B, H)) for _ in range(3))
    mean, raw_std, z = (np.empty((T, B, Z)) for _ in range(3))
    gates, n_h = np.empty((T, B, 3 * H)), np.empty((T, B, H))
    h[0] = h0
    for t in range(T):
        e0[t], e1[t], mean[t], raw_std[t] = posterior(p, pre_e[t], h[t])
        z[t] = mean[t] + (softplus(raw_std[t]) + STD_FLOOR) * eps[t]  # (B, Z): gradients flow through the sample
        phi_z[t] = relu(linear(p, "phi_z.0", z[t]))  # (B, H)
        gates[t], n_h[t], h[t + 1] = gru(p, pre_g[t], phi_z[t], h[t])

    # -- after: N rows at once. All that it reads of the scan are h_{t-1}, z and the posterior
    before = h[:-1]  # (T, B, H)
    std = softplus(raw_std) + STD_FLOOR  # (T, B, Z)
    prior = relu(linear(p, "prior.0", before))  # (T, B, H)
    prior_mean = linear(p, "prior_mean", prior)  # (T, B, Z)
    prior_raw = linear(p, "prior_std.0", prior)  # (T, B, Z)
    prior_std = softplus(prior_raw) + STD_FLOOR  # (T, B, Z)
    kl = kl_divergence(mean, std, prior_mean, prior_std).sum(-1)  # (T, B)
    seen = np.concatenate([phi_z, before], -1)  # (T, B, 2H)
    dec0 = relu(linear(p, "dec.0", seen))  # (T, B, H)
    dec1 = relu(linear(p, "dec.2", dec0))  # (T, B, H)
    logits = linear(p, "dec_mean.0", dec1)  # (T, B, X)
    nll = (softplus(logits) - x * logits).sum(-1)  # (T, B): -log Bernoulli(x; sigmoid(logits)), for any logits

    results = {"nll": nll, "kl": kl, "z": z, "mean": mean, "std": std, "state": h[-1]}
    results |= {"prior_mean": prior_mean, "prior_std": prior_std, "logits": logits}
    kept = {"x": x, "eps": eps, "phi_x0": phi_x0, "phi_x": phi_x, "h": h, "e0": e0, "e1": e1, "raw_std": raw_std}
    kept |= {"phi_z": phi_z, "gates": gates, "n_h": n_h, "prior": prior, "prior_raw": prior_raw, "seen": seen}
    kept |= {"dec0": dec0, "dec1": dec1}
    return results, kept


def posterior(p: Arrays, pre_e: Array, h: Array) -> tuple[Array, Array, Array, Array]:
    """The encoder of one step, whose first layer knows its columns of x already: all that it computes, (B, .)."""
    _, enc_h = np.split(p["enc.0.weight"], [h.shape[-1]], axis=1)  # (H, H)
    e0 = relu(pre_e + h @ enc_h.T)  # (B, H)
    e1 = relu(linear(p, "enc.2", e0))  # (B, H)
    return e0, e1, linear(p, "enc_mean", e1), linear(p, "enc_std.0", e1)  # ..., (B, Z), (B, Z)


def gru(p: Arrays, pre_g: Array, phi_z: Array, h: Array) -> tuple[Array, Array, Array]:
    """One step of torch's GRU: gates [r, u, n] (B, 3H), the candidate's share of h (B, H), and the next h (B, H)."""
    _, gates_z = np.split(p["rnn.weight_ih_l0"], [h.shape[-1]], axis=1)  # (3H, H)
    r_x, u_x, n_x = np.split(pre_g + phi_z @ gates_z.T, 3, axis=-1)  # (B, H) each
    r_h, u_h, n_h = np.split(h @ p["rnn.weight_hh_l0"].T + p["rnn.bias_hh_l0"], 3, axis=-1)
    r = sigmoid(r_x + r_h)  # reset
    u = sigmoid(u_x + u_h)  # update
    n = np.tanh(n_x + r * n_h)  # candidate: the reason why n_h cannot be added to n_x, and is kept
    return np.concatenate([r, u, n], -1), n_h, (1 - u) * n + u * h


def kl_divergence(mean: Array, std: Array, prior_mean: Array, prior_std: Array) -> Array:
    """KL(N(mean, std²) || N(prior_mean, prior_std²)) in nats, of each feature."""
    ratio = std / prior_std
    return 0.5 * (ratio**2 + ((mean - prior_mean) / prior_std) ** 2 - 1) - np.log(ratio)


# ---- backward: ``d_name`` is the gradient of the loss with respect to ``name``, and has its shape


def backward(p: Arrays, results: Arrays, kept: Arrays, d_nll: Array, d_kl: Array, d_state: Array) -> Arrays:
    """d_nll and d_kl (T, B), d_state (B, H) -> the gradients of every parameter, and of x, eps and h0."""
    d: Arrays = {}
    x, h, T = kept["x"], kept["h"], len(kept["x"])
    H = h.shape[-1]
    mean, std, prior_mean, prior_std = (results[n] for n in ("mean", "std", "prior_mean", "prior_std"))

    # -- after, N rows at once: the decoder ...
    d_logits = d_nll[..., None] * (sigmoid(results["logits"]) - x)  # (T, B, X)
    d["x"] = -d_nll[..., None] * results["logits"]  # (T, B, X): x as a target; as an input it follows below
    d_dec1 = linear_backward(p, d, "dec_mean.0", kept["dec1"], d_logits) * (kept["dec1"] > 0)  # (T, B, H)
    d_dec0 = linear_backward(p, d, "dec.2", kept["dec0"], d_dec1) * (kept["dec0"] > 0)  # (T, B, H)
    d_phi_z, d_before = np.split(linear_backward(p, d, "dec.0", kept["seen"], d_dec0), 2, axis=-1)  # (T, B, H) each

    # ... the divergence, whose four arguments all get a gradient, and the prior
    ahead = (mean - prior_mean) / prior_std**2  # (T, B, Z)
    d_mean = d_kl[..., None] * ahead
    d_std = d_kl[..., None] * (std / prior_std**2 - 1 / std)
    d_prior_std = d_kl[..., None] * (1 / prior_std - std**2 / prior_std**3 - (mean - prior_mean) * ahead / prior_std)
    d_prior = linear_backward(p, d, "prior_mean", kept["prior"], -d_mean)  # (T, B, H)
    d_prior += linear_backward(p, d, "prior_std.0", kept["prior"], d_prior_std * sigmoid(kept["prior_raw"]))
    d_before = d_before + linear_backward(p, d, "prior.0", h[:-1], d_prior * (kept["prior"] > 0))  # (T, B, H)

    # -- scan, from the last step to the first. d_h comes from the step after; no weight gradient is computed here
    enc_x, enc_h = np.split(p["enc.0.weight"], [H], axis=1)  # (H, H) each
    gates_x, gates_z = np.split(p["rnn.weight_ih_l0"], [H], axis=1)  # (3H, H) each
    d_e0, d_e1, d_read = (np.empty_like(kept["e0"]) for _ in range(3))  # (T, B, H): before the ReLUs
    d_gates_x, d_gates_h = (np.empty_like(kept["gates"]) for _ in range(2))  # (T, B, 3H)
    d_raw, d["eps"] = np.empty_like(std), np.empty_like(std)  # (T, B, Z)
    d_h = d_state  # (B, H): of h[T]
    for t in reversed(range(T)):
        d_gates_x[t], d_gates_h[t], d_h = gru_backward(kept["gates"][t], kept["n_h"][t], h[t], d_h)
        d_read[t] = (d_phi_z[t] + d_gates_x[t] @ gates_z) * (kept["phi_z"][t] > 0)  # both readers of phi_z
        d_z = d_read[t] @ p["phi_z.0.weight"]  # (B, Z)
        d_mean[t] += d_z  # z = mean + std * eps
        d_raw[t] = (d_std[t] + d_z * kept["eps"][t]) * sigmoid(kept["raw_std"][t])
        d["eps"][t] = d_z * std[t]
        d_e1[t] = (d_mean[t] @ p["enc_mean.weight"] + d_raw[t] @ p["enc_std.0.weight"]) * (kept["e1"][t] > 0)
        d_e0[t] = (d_e1[t] @ p["enc.2.weight"]) * (kept["e0"][t] > 0)
        d_h = d_h + d_gates_h[t] @ p["rnn.weight_hh_l0"] + d_e0[t] @ enc_h + d_before[t]  # all readers of h[t]
    d["h0"] = d_h

    # -- the weights of the scan, N rows at once: what each layer read, and the gradient of what it gave
    before_and_x = np.concatenate([kept["phi_x"], h[:-1]], -1)  # (T, B, 2H), as the encoder reads it
    both_features = np.concatenate([kept["phi_x"], kept["phi_z"]], -1)  # (T, B, 2H), as the GRU reads it
    for weight, bias, source, target in (
        ("enc.0.weight", "enc.0.bias", before_and_x, d_e0),
        ("enc.2.weight", "enc.2.bias", kept["e0"], d_e1),
        ("enc_mean.weight", "enc_mean.bias", kept["e1"], d_mean),
        ("enc_std.0.weight", "enc_std.0.bias", kept["e1"], d_raw),
        ("phi_z.0.weight", "phi_z.0.bias", results["z"], d_read),
        ("rnn.weight_ih_l0", "rnn.bias_ih_l0", both_features, d_gates_x),
        ("rnn.weight_hh_l0", "rnn.bias_hh_l0", h[:-1], d_gates_h),
    ):
        d[weight], d[bias] = over_rows(target, source), over_rows(target)

    # -- before, N rows at once
    d_phi_x = (d_e0 @ enc_x + d_gates_x @ gates_x) * (kept["phi_x"] > 0)  # (T, B, H)
    d_phi_x0 = linear_backward(p, d, "phi_x.2", kept["phi_x0"], d_phi_x) * (kept["phi_x0"] > 0)  # (T, B, H)
    d["x"] += linear_backward(p, d, "phi_x.0", x, d_phi_x0)
    return d


def gru_backward(gates: Array, n_h: Array, h: Array, d_h: Array) -> tuple[Array, Array, Array]:
    """d_h (B, H) of h_t -> of the gates' sums as x's and as h's product gave them (B, 3H), and directly of h_{t-1}."""
    r, u, n = np.split(gates, 3, axis=-1)  # (B, H) each: h_t = (1 - u) n + u h_{t-1}
    d_n = d_h * (1 - u) * (1 - n**2)
    d_u = d_h * (h - n) * u * (1 - u)
    d_r = d_n * n_h * r * (1 - r)  # n = tanh(n_x + r * n_h)
    return np.concatenate([d_r, d_u, d_n], -1), np.concatenate([d_r, d_u, d_n * r], -1), d_h * u


# ---- parameters, and a look at it all


def parameters(X: int, H: int, Z: int, random: np.random.Generator) -> Arrays:
    """Uniform in ±1/sqrt(in), for the GRU ±1/sqrt(H), as torch begins; names and shapes of ``VRNN(X, H, Z)``."""
    layers = {"phi_x.0": (H, X), "phi_x.2": (H, H), "phi_z.0": (H, Z)}
    layers |= {"enc.0": (H, 2 * H), "enc.2": (H, H), "enc_mean": (Z, H), "enc_std.0": (Z, H)}
    layers |= {"prior.0": (H, H), "prior_mean": (Z, H), "prior_std.0": (Z, H)}
    layers |= {"dec.0": (H, 2 * H), "dec.2": (H, H), "dec_mean.0": (X, H)}
    p: Arrays = {}
    for name, (outputs, inputs) in layers.items():
        p[f"{name}.weight"] = random.uniform(-1, 1, (outputs, inputs)) / inputs**0.5
        p[f"{name}.bias"] = random.uniform(-1, 1, outputs) / inputs**0.5
    for name, shape in (
        ("weight_ih", (3 * H, 2 * H)),
        ("weight_hh", (3 * H, H)),
        ("bias_ih", 3 * H),
        ("bias_hh", 3 * H),
    ):
        p[f"rnn.{name}_l0"] = random.uniform(-1, 1, shape) / H**0.5
    return p


def loss_and_gradients(p: Arrays, x: Array, eps: Array) -> tuple[float, Arrays]:
    """The negative evidence lower bound in nats per step and sequence, from a state of zeros."""
    T, B, _ = x.shape
    h0 = np.zeros((B, p["rnn.weight_hh_l0"].shape[1]))
    results, kept = forward(p, x, eps, h0)
    each = np.full((T, B), 1 / (T * B))  # the loss is the mean of nll + kl
    return float((results["nll"] + results["kl"]).mean()), backward(p, results, kept, each, each, np.zeros_like(h0))


def main() -> None:
    """Compare a derivative with differences, then learn a light that runs around a ring of ten lamps."""
    random = np.random.default_rng(0)
    T, B, X, H, Z = 20, 16, 10, 32, 4
    p = parameters(X, H, Z, random)
    x = np.eye(X)[(np.arange(T)[:, None] + random.integers(X, size=B)) % X]  # (T, B, X)

    eps, step = random.standard_normal((T, B, Z)), 1e-8
    towards = {name: random.standard_normal(value.shape) for name, value in p.items()}  # all parameters at once
    higher, lower = ({name: p[name] + sign * step * towards[name] for name in p} for sign in (1, -1))
    difference = loss_and_gradients(higher, x, eps)[0] - loss_and_gradients(lower, x, eps)[0]
    d = loss_and_gradients(p, x, eps)[1]
    derivative = sum(float((d[name] * towards[name]).sum()) for name in p)
    print(f"a derivative is {derivative:.5f}, by differences {difference / (2 * step):.5f}")

    first, second = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    for update in range(1, 202):
        loss, d = loss_and_gradients(p, x, random.standard_normal((T, B, Z)))
        if update % 50 == 1:
            print(f"after {update - 1:3d} updates: {loss:.2f} nats per step")
        for name, value in p.items():  # Adam
            first[name] += 0.1 * (d[name] - first[name])
            second[name] += 0.001 * (d[name] ** 2 - second[name])
            value -= 5e-3 * first[name] / (1 - 0.9**update) / (np.sqrt(second[name] / (1 - 0.999**update)) + 1e-8)


if __name__ == "__main__":
    main()
