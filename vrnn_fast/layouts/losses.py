"""The losses that foreign models compute, before any reduction: (T, B, features) each, in nats."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihoods import MeanStd

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
EPS = torch.finfo(torch.float32).eps  # what models of float32 add inside of logarithms, also in double precision


def kl(q: MeanStd, p: MeanStd, eps: float = 0.0) -> Tensor:
    """Compute KL(q to p) of diagonal Gaussians. With ``eps`` it is added to the standard deviations inside the
    logarithms."""
    logs = 2 * torch.log(p.std + eps) - 2 * torch.log(q.std + eps)
    return 0.5 * (logs + (q.std.square() + (q.mean - p.mean).square()) / p.std.square() - 1)


def bernoulli(raw: Tensor, x: Tensor) -> Tensor:
    """Compute -log Bernoulli(x; sigmoid(raw))."""
    return -(x * F.logsigmoid(raw) + (1 - x) * F.logsigmoid(-raw))


def bernoulli_with_eps(raw: Tensor, mean: Tensor, x: Tensor, eps: float, floor: float) -> Tensor:
    """Compute -x log(mean + floor) - (1 - x) log(1 - mean - eps), and the logarithm without them where there is
    none."""

    def log(value: Tensor, instead: Tensor) -> Tensor:
        good = value > 0
        return torch.where(good, torch.log(torch.where(good, value, 1)), instead)

    return -(x * log(mean + floor, F.logsigmoid(raw)) + (1 - x) * log(1 - mean - eps, F.logsigmoid(-raw)))


def gaussian(mean: Tensor, std: Tensor, x: Tensor, eps: float = 0.0) -> Tensor:
    """Compute -log N(x; mean, std²), with ``eps`` added inside the logarithm."""
    return torch.log(std + eps) + HALF_LOG_TWO_PI + (x - mean).square() / (2 * std.square())
