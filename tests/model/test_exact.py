"""With one step and one latent dimension everything that the bound leaves out can be integrated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vrnn_fast import VRNN


def _gauss_hermite(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(n)], n ~ N(0, 1), by the eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    off = torch.arange(1, order, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, vectors[0].square()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bound_plus_gap_is_the_log_marginal(executor: str, likelihood: str, cell: str) -> None:
    model = VRNN(3, 4, 1, cell=cell, likelihood=likelihood, activation="tanh", backend=executor, dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    state = torch.randn(1, 1, 4, dtype=torch.float64)
    start = state if cell == "gru" else (state, torch.randn(1, 1, 4, dtype=torch.float64))

    # one batch row for each noise value gives log p(x, z) and log q(z | x) at many z at once
    def rows(eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = eps.numel()
        states = tuple(s.expand(1, n, 4) for s in (start if isinstance(start, tuple) else (start,)))
        out = model(
            x.expand(1, n, 3),
            state=states[0] if cell == "gru" else states,
            eps=eps.reshape(1, n, 1),
            outputs=("prior",),
        )
        z = out.latent[0, :, 0]
        prior = torch.distributions.Normal(out.prior.mean[0, :, 0], out.prior.std[0, :, 0])
        q = torch.distributions.Normal(out.posterior.mean[0, :, 0], out.posterior.std[0, :, 0])
        return prior.log_prob(z) - out.nll[0], q.log_prob(z), out.nll[0] + out.kl[0], z

    with torch.no_grad():
        noise = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
        log_joint, _, _, z = rows(noise)
        log_marginal = torch.logsumexp(log_joint, 0) + math.log((z[1] - z[0]).item())
        nodes, weights = _gauss_hermite(60)
        log_joint, log_q, negative_bound, _ = rows(nodes)
        bound = -(weights * negative_bound).sum()
        gap = (weights * (log_q - (log_joint - log_marginal))).sum()  # KL(q || true posterior)
    assert gap > 0
    torch.testing.assert_close(bound + gap, log_marginal, rtol=1e-9, atol=1e-9)
