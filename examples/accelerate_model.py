"""Make a VRNN that loops over time in Python faster, without a change to it.

Learn: ``accelerate`` returns a module over the same parameters, proven to return the same numbers, in one launch. Its
forward signature, its optimiser and its checkpoints stay. This model has names that nobody knows, so a mapping says
which sub-module plays which role; the most copied implementations need none.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vrnn_fast import accelerate


class Slow(nn.Module):
    def __init__(self, x: int, h: int, z: int) -> None:
        super().__init__()
        self.see, self.read = (nn.Sequential(nn.Linear(width, h), nn.ReLU()) for width in (x, z))
        self.infer, self.expect, self.render = (nn.Sequential(nn.Linear(w * h, h), nn.ReLU()) for w in (2, 1, 2))
        self.mu, self.sigma, self.m, self.s = (nn.Linear(h, z) for _ in range(4))
        self.logits, self.memory = nn.Linear(h, x), nn.GRUCell(2 * h, h)

    def forward(self, x: Tensor) -> Tensor:
        h, total = x.new_zeros(x.shape[1], self.memory.hidden_size), 0.0
        for x_t in x:
            seen, expected = self.see(x_t), self.expect(h)
            inferred = self.infer(torch.cat([seen, h], -1))
            posterior = Normal(self.mu(inferred), F.softplus(self.sigma(inferred)))
            prior = Normal(self.m(expected), F.softplus(self.s(expected)))
            latent = self.read(posterior.rsample())
            logits = self.logits(self.render(torch.cat([latent, h], -1)))
            nll = F.binary_cross_entropy_with_logits(logits, x_t, reduction="none")
            total = total + nll.sum(-1) + kl_divergence(posterior, prior).sum(-1)
            h = self.memory(torch.cat([seen, latent], -1), h)
        return torch.as_tensor(total).mean()


def outputs(run):  # what forward returns, of the tensors (T, B, ...) of a run
    kl = kl_divergence(Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)).sum(-1)
    nll = F.binary_cross_entropy_with_logits(run.heads[0], run.x, reduction="none").sum(-1)
    return (nll + kl).sum(0).mean()


roles = {"phi_x": "see", "phi_z": "read", "encoder": "infer", "encoder_mean": "mu", "encoder_std": "sigma"}
roles |= {"prior": "expect", "prior_mean": "m", "prior_std": "s", "decoder": "render", "decoder_heads": ("logits",)}
torch.manual_seed(0)
slow = Slow(28, 64, 16)
fast = accelerate(slow, layout={**roles, "cell": "memory", "outputs": outputs})
x = (torch.rand(100, 16, 28) < 0.3).float()
losses = {}
for name, model in (("loop", slow), ("accelerated", fast)):
    torch.manual_seed(1)
    began = time.perf_counter()
    losses[name] = model(x)
    losses[name].backward()
    milliseconds = 1e3 * (time.perf_counter() - began)
    print(f"{name:11}  loss {losses[name].item():.3f}, forward and backward in {milliseconds:.0f} ms")
