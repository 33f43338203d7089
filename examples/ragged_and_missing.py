"""Train on sequences of different lengths, with holes in them, and fill the holes.

Learn: ``lengths`` says how many steps of each row are real, ``mask`` which values were observed. Neither padding nor
holes cost anything or reach a gradient, whatever they hold: here NaN.
"""

import torch

from vrnn_fast import VRNN

torch.manual_seed(0)
steps, batch, features = 60, 64, 4
time = torch.arange(steps).view(steps, 1, 1)
truth = torch.sin(0.25 * time + 6.28 * torch.rand(1, batch, 1) + torch.arange(features))  # (T, B, X)

lengths = torch.randint(20, steps + 1, (batch,))  # real steps of each row; padding is at the end
real = torch.arange(steps)[:, None] < lengths  # (T, B)
mask = torch.rand(truth.shape) < 0.7  # 30 % of the values are missing
x = truth.masked_fill(~mask | ~real[..., None], torch.nan)

model = VRNN(features, hidden_size=32, latent_size=4, likelihood="gaussian")
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(200):
    out = model(x, lengths, mask=mask, mask_inputs=True)  # mask_inputs: the networks see zeros in the holes
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()

out = model(x, lengths, mask=mask, mask_inputs=True, outputs=("prediction",))
holes = ~mask & real[..., None]
filled = (out.prediction.mean - truth)[holes].square().mean().sqrt().item()
guessed = truth[holes].square().mean().sqrt().item()
print(f"{holes.sum()} holes in {lengths.sum()} real steps of {steps * batch}; loss {out.loss.item():.2f} nats per step")
print(f"filled in with an error of {filled:.2f}; with the mean of the data it would be {guessed:.2f}")
print(f"nll beyond a row's end: {out.nll[~real].abs().max().item():.0f}; NaN in the loss: {out.loss.isnan().item()}")
