"""Bring a likelihood of your own: here Poisson, for counts.

Learn: ``heads`` names what the decoder gives, ``log_prob`` is enough to train, ``mean`` to predict, ``sample`` to
generate. The cell stays fused; the density is computed outside of the launch, for all steps at once.
"""

import math

import torch
from torch import Tensor, distributions

from vrnn_fast import VRNN, Likelihood


class Poisson(Likelihood):
    """Independent counts; the decoder gives the logarithm of each rate."""

    independent = 1  # one head, a value for each feature: so a mask of missing values works too

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_log_rate": features}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return (x * raw - raw.exp() - torch.lgamma(x + 1)).sum(-1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def sample(self, raw: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(raw.exp(), generator)  # a Poisson has no spread of its own that temperature could scale


torch.manual_seed(0)
time = torch.arange(60).view(60, 1, 1)
rate = torch.exp(1.5 * torch.sin(2 * math.pi * (time / 12 + torch.rand(1, 64, 1))) + 0.5).expand(60, 64, 3)
counts = torch.poisson(rate)  # (T, B, X): three counters that share a period of twelve steps

model = VRNN(3, hidden_size=32, latent_size=2, likelihood=Poisson())
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(150):
    loss = model(counts).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

constant = -distributions.Poisson(counts.mean()).log_prob(counts).sum(-1).mean().item()
known = -distributions.Poisson(rate).log_prob(counts).sum(-1).mean().item()
print(f"a constant rate {constant:.2f}, this model {loss.item():.2f}, who knows the rates {known:.2f} nats per step")
drawn, _ = model.generate(12, prefix=counts[:48, :1], generator=torch.Generator().manual_seed(0))
print("twelve steps that were drawn:", *drawn[:, 0, 0].int().tolist())
