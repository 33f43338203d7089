"""``python -m bench.papers linear-gaussian``: how far a learnt VRNN's bound is below the exact likelihood.

The system is the toy example of Gedon et al. 2021, "Deep state space models for nonlinear system identification", as
its authors' code has it (data/toy_lgssm.py of dgedon/DeepSSM_SysID): x_{k+1} = A x_k + B u_k + w, y_k = C x_k + e with
A = [[0.7, 0.8], [0, 0.1]], B = [-1, 0.1], C = [1, 0], w ~ N(0, 0.25 I), e ~ N(0, 1); u uniform on [-2.5, 2.5] to learn
from, and a sum of sines of periods 10 and 25 to be measured on. Here every sequence has 128 steps and begins at x = 0,
so that a Kalman filter knows log p(y) exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vrnn_fast import VRNN

from .evidence import Elapsed, Study, StudyResult
from .learning import Signals, TrainingCourse, learn

STEPS = 128
A = torch.tensor([[0.7, 0.8], [0.0, 0.1]], dtype=torch.float64)
B = torch.tensor([-1.0, 0.1], dtype=torch.float64)
STATE_VARIANCE, OUTPUT_VARIANCE = 0.25, 1.0
HIDDEN, LATENT, PARTICLES = 32, 4, 128


def simulate(u: Tensor, generator: torch.Generator) -> Signals:
    """Draw the outputs of inputs (T, B, 1), in float32."""
    steps, batch = u.shape[:2]
    x = torch.zeros(batch, 2, dtype=torch.float64)
    w = math.sqrt(STATE_VARIANCE) * torch.randn(steps, batch, 2, dtype=torch.float64, generator=generator)
    e = math.sqrt(OUTPUT_VARIANCE) * torch.randn(steps, batch, dtype=torch.float64, generator=generator)
    y = []
    for k in range(steps):
        y.append(x[:, :1] + e[k].unsqueeze(1))
        x = x @ A.T + u[k] * B + w[k]
    return Signals(torch.stack(y).float(), u.float())


def kalman(signals: Signals) -> Tensor:
    """Compute log p(y_k | y_<k) of each step, (T, B), in float64."""
    y, u = (s.double() for s in signals)
    mean = y.new_zeros(y.shape[1], 2)
    covariance, eye = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    found = []
    for k in range(len(y)):
        off, variance = y[k, :, 0] - mean[:, 0], covariance[0, 0] + OUTPUT_VARIANCE
        found.append(-0.5 * (off.square() / variance + variance.log() + math.log(2 * math.pi)))
        gain = covariance[:, 0] / variance
        mean = (mean + off.unsqueeze(1) * gain) @ A.T + u[k] * B
        covariance = A @ (covariance - gain.unsqueeze(1) * covariance[:1]) @ A.T + STATE_VARIANCE * eye
    return torch.stack(found)


def inputs(batch: int, generator: torch.Generator) -> Tensor:
    """Draw inputs to learn from, (T, B, 1)."""
    return 5 * (torch.rand(STEPS, batch, 1, dtype=torch.float64, generator=generator) - 0.5)


def sines(batch: int) -> Tensor:
    """Compute the inputs that are measured on, (T, B, 1), cut from one course."""
    k = torch.arange(STEPS * batch, dtype=torch.float64).view(batch, STEPS).T
    return (torch.sin(2 * torch.pi * k / 10) + torch.sin(2 * torch.pi * k / 25)).unsqueeze(-1)


def run(seed: int) -> Iterator[StudyResult]:
    """Learn from 16 and from 160 sequences."""
    test = simulate(sines(40), torch.Generator().manual_seed(100))
    exact = float(kalman(test).mean())
    for order, (sequences, updates) in enumerate(((16, 600), (160, 2000))):
        clock, source = Elapsed(), torch.Generator().manual_seed(seed)
        train, valid = (simulate(inputs(count, source), source) for count in (sequences, 16))

        def drawn(generator: torch.Generator, train: Signals = train) -> Signals:
            rows = torch.randint(train.y.shape[1], (16,), generator=generator)
            return Signals(train.y[:, rows], train.u[:, rows])

        torch.manual_seed(seed)
        model = VRNN(
            1, HIDDEN, LATENT, cond_size=1, cond_networks=("cell",), likelihood="gaussian",
            phi_x=(HIDDEN,), phi_z=(HIDDEN,), encoder=(HIDDEN,), prior=(HIDDEN,), decoder=(HIDDEN,),
        )  # fmt: skip
        schedule = TrainingCourse(updates)
        learn(model, drawn, valid, schedule, seed)
        numbers = {"exact": exact}
        with torch.no_grad():
            for objective in ("elbo", "iwae", "fivo"):
                noise = torch.Generator().manual_seed(2)
                found = model.bound(test.y, objective=objective, num_particles=PARTICLES, cond=test.u, generator=noise)
                numbers[objective.upper()] = float(found.double().mean()) / STEPS
        numbers["gap"] = exact - numbers["FIVO"]
        setting: dict[str, Any] = {"order": order, "sequences": sequences, "h": HIDDEN, "z": LATENT}
        setting |= {"updates": updates, "batch": 16, "learning rate": schedule.learning_rate}
        yield StudyResult(f"VRNN, {sequences * STEPS:,} steps", seed, numbers, setting, clock.seconds)


STUDY = Study(
    "linear-gaussian",
    "A linear-Gaussian system: the bound against the exact likelihood",
    (
        "The toy system of Gedon et al. 2021, learnt from input and output alone. Nats per step of 40 sequences of 128 "
        f"steps: what a Kalman filter that knows the system computes, and three bounds with {PARTICLES} particles."
    ),
    {"exact": "Kalman's", "ELBO": "higher", "IWAE": "higher", "FIVO": "higher", "gap": "lower"},
    run,
    remarks=[
        (
            "The gap is what is missing to the exact likelihood with the tightest bound: what was not learnt of the "
            "system, and what the filter loses. Paper and code measure the error of a simulation instead, so that no "
            "published number stands beside these."
        )
    ],
)
