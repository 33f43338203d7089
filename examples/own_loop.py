"""Write the training loop yourself: an annealed KL term, free nats, then a tighter bound, and an honest measurement.

Learn: ``beta`` and ``free_nats`` shape the loss of ``forward``; ``bound`` gives log p(x) from below by many samples of
z, as importance weights (IWAE) or as the particles of a filter (FIVO), with gradients.
"""

import torch
from torch import Tensor

from vrnn_fast import VRNN

torch.manual_seed(0)
chords = (torch.rand(6, 20) < 0.25).float()


def songs(batch: int) -> Tensor:
    """(24, B, 20): chords of three steps each, drawn at random, and now and then a wrong note."""
    x = chords[torch.randint(len(chords), (8, batch))].repeat_interleave(3, 0)
    return (x - (torch.rand_like(x) < 0.02).float()).abs()


model = VRNN(20, hidden_size=48, latent_size=8)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
train, test = songs(48), songs(48)


def update(loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def measured() -> float:
    """Log p(x) of the test sequences in nats per step, from below, with 32 particles."""
    return model.bound(test, objective="fivo", num_particles=32).mean().item() / len(test)


print(f"untrained                        log p(x) >= {measured():6.2f} nats per step")
for i in range(120):
    beta = min(1.0, (i + 1) / 50)  # the KL term comes in slowly, so that z is not given up
    update(model(train, beta=beta, free_nats=0.1).loss)
print(f"after 120 updates with the ELBO  log p(x) >= {measured():6.2f}")
for _ in range(40):
    update(-model.bound(train, objective="fivo", num_particles=4).mean() / len(train))
print(f"after 40 more with FIVO          log p(x) >= {measured():6.2f}")

with torch.no_grad():
    elbo, iwae = (
        model.bound(test, objective=kind, num_particles=32).mean().item() / len(test) for kind in ("elbo", "iwae")
    )
print(f"the same model by other bounds:  ELBO {elbo:.2f}, IWAE {iwae:.2f}")
