"""Tell a model what to do: a conditioning input beside the data, in training and in generation.

Learn: ``cond_size`` adds an input to encoder, prior and decoder, ``cond=`` gives it at every step. Here a light runs
around a ring of eight lamps, and the conditioning input says in which direction.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vrnn_fast import VRNN

torch.manual_seed(0)
LAMPS = 8


def directions(steps: int, batch: int) -> Tensor:
    """(T, B, 1) of -1 and 1; each changes now and then."""
    turns = torch.where(torch.rand(steps, batch, 1) < 0.1, -1.0, 1.0)
    return turns.cumprod(0) * (2.0 * torch.randint(2, (1, batch, 1)) - 1)


cond = directions(50, 64)
places = (torch.randint(LAMPS, (1, 64)) + cond.squeeze(-1).long().cumsum(0)) % LAMPS
x = F.one_hot(places, LAMPS).float()  # (50, 64, 8)

model = VRNN(LAMPS, hidden_size=48, latent_size=4, cond_size=1)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for update in range(201):
    loss = model(x, cond=cond).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 100 == 0:
        print(f"after {update:3d} updates: {loss.item():5.2f} nats per step")

wanted = directions(30, 100)
drawn, _ = model.generate(30, batch_size=100, cond=wanted)  # (30, 100, 8)
found = drawn.argmax(-1)
step = (found[1:] - found[:-1]) % LAMPS
obeyed = (step == wanted[1:].squeeze(-1).long() % LAMPS).float().mean().item()
print(f"generated lights obey the conditioning input in {100 * obeyed:.0f} % of their steps")
