"""Train on a tensor of your own, (T, B, X), and forecast with it.

Learn: what goes in, what the loss is measured in, how to go on from a sequence. Put your own numbers in the place of
``x``. Real numbers of about unit scale want ``likelihood="gaussian"``, zeros and ones want ``"bernoulli"``.
"""

import torch

from vrnn_fast import VRNN

torch.manual_seed(0)
time = torch.arange(60).view(60, 1, 1)
phase = 6.28 * torch.rand(1, 64, 3)
x = torch.sin(0.3 * time + phase) + 0.1 * torch.randn(60, 64, 3)  # T = 60 steps of B = 64 sequences, X = 3 features
train, test = x[:, :48], x[:, 48:]

model = VRNN(input_size=3, hidden_size=32, latent_size=4, likelihood="gaussian")
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

losses = []
for update in range(201):
    loss = model(train).loss  # -log p(x) is at most this: nats per time step, all features together
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 100 == 0:
        with torch.no_grad():
            losses.append(model(test).loss.item())
        print(f"after {update:3d} updates: {losses[-1]:6.2f} nats per step on sequences that were not trained on")

forecasts, state = model.generate(
    20, prefix=test[:40], num_samples=100
)  # (100, 20, 16, 3): a hundred for each sequence
error = (forecasts.mean(0) - test[40:]).square().mean().sqrt().item()
print(f"20 steps ahead the mean forecast is off by {error:.2f}; zero would be off by {test.square().mean().sqrt():.2f}")
