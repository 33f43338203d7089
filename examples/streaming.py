"""Follow a live signal with a trained model, frame by frame, on NumPy arrays.

Learn: a ``Stream`` keeps the state. ``push`` takes a frame in, and returns how surprising it was and what the model had
expected before it saw it. No torch runs inside the loop.
"""

import time

import numpy as np
import torch

from vrnn_fast import VRNN, Stream

torch.manual_seed(0)
random = np.random.default_rng(0)


def signal(steps: int, phase: np.ndarray) -> np.ndarray:
    """(T, B, 2): a point on a circle, and noise."""
    angle = 0.2 * np.arange(steps)[:, None] + phase
    return np.stack([np.cos(angle), np.sin(angle)], -1) + 0.05 * random.standard_normal((steps, phase.size, 2))


x = torch.from_numpy(signal(50, random.uniform(0, 6.28, 64))).float()
model = VRNN(2, hidden_size=32, latent_size=4, likelihood="gaussian")
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(150):
    optimizer.zero_grad()
    model(x).loss.backward()
    optimizer.step()

frames = signal(200, np.zeros(1)).astype(np.float32)  # (T, 1, 2): one live signal
frames[150] *= -1  # for one frame it jumps to the other side

stream = Stream(model, seed=0)
began = time.perf_counter()
steps = [stream.push(frame) for frame in frames]
seconds = time.perf_counter() - began

surprise = np.array([step.nll[0] + step.kl[0] for step in steps])  # nats
expected = np.array([step.prediction[0][0] for step in steps])  # (T, 2): means; [1] holds standard deviations
error = np.abs(expected - frames[:, 0])[20:150].mean()
print(f"{1e6 * seconds / len(frames):.0f} microseconds for a frame; forecasts one step ahead are off by {error:.2f}")
print(f"the most surprising frame: {20 + surprise[20:].argmax()}, with {surprise[20:].max():.0f} nats")
print(f"the median of all frames: {np.median(surprise):.1f} nats")
