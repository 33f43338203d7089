"""With linear networks and a linear cell the VRNN is a linear-Gaussian state-space model: its exact likelihood, twice.

Shares no line with the package. h_t is a function of z and x, so that the filter's state is h_{t-1} and, within a step,
(z_t, h_{t-1}): their joint Gaussian is conditioned on x_t and then mapped to h_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vrnn_fast import VRNN

MIN_STD, STD_FLOOR = 1e-3, 1e-6


def build(x: int, h: int, z: int, executor: str, *, remembers: bool = True) -> VRNN:
    """A linear-Gaussian model in float64: standard deviations that do not depend on h, and a posterior of z_t given x_t
    and h_{t-1} without correlations. Unless it ``remembers`` z, h_t depends on x alone.
    """
    model = VRNN(
        x, h, z, cell="rnn", nonlinearity="identity", phi_x=(), phi_z=(), encoder=(), prior=(), decoder=(),
        likelihood="gaussian", backend=executor, dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn_like(p))
        for name in ("prior_std.0", "dec_std.0"):
            model.get_parameter(f"{name}.weight").zero_()
        columns, _ = torch.linalg.qr(torch.randn(x, z, dtype=torch.float64))
        model.get_parameter("dec_mean.weight")[:, :z] = columns * torch.linspace(0.5, 1.5, z, dtype=torch.float64)
        model.get_parameter("dec_std.0.bias").fill_(-0.5)
        if not remembers:
            model.get_parameter("rnn.weight_ih_l0")[:, x:] = 0.0
    return model


@dataclass
class LinearGaussian:
    """::

    z_t = A h_{t-1} + a + s_z e,   x_t = D z_t + E h_{t-1} + d + s_x e,   h_t = F x_t + G z_t + H h_{t-1} + b
    """

    A: Tensor
    a: Tensor
    s_z: Tensor
    D: Tensor
    E: Tensor
    d: Tensor
    s_x: Tensor
    F: Tensor
    G: Tensor
    H: Tensor
    b: Tensor

    @classmethod
    def of(cls, model: VRNN) -> LinearGaussian:
        p = {name: value.detach() for name, value in model.named_parameters()}
        x, z = model.input_size, model.latent_size
        decoder, entering = p["dec_mean.weight"], p["rnn.weight_ih_l0"]
        return cls(
            p["prior_mean.weight"], p["prior_mean.bias"], F.softplus(p["prior_std.0.bias"]) + STD_FLOOR,
            decoder[:, :z], decoder[:, z:], p["dec_mean.bias"], F.softplus(p["dec_std.0.bias"]) + MIN_STD,
            entering[:, :x], entering[:, x:], p["rnn.weight_hh_l0"], p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"],
        )  # fmt: skip

    def filtered(self, x: Tensor) -> float:
        """log p(x) of a sequence (T, X), h_0 = 0, by a Kalman filter."""
        z = len(self.a)
        mean, covariance = torch.zeros_like(self.b), torch.zeros_like(self.H)  # of h_{t-1} given x_<t
        observe, total = torch.cat([self.D, self.E], 1), 0.0
        for x_t in x:
            joint_mean = torch.cat([self.A @ mean + self.a, mean])
            across = self.A @ covariance
            joint = torch.cat(
                [
                    torch.cat([across @ self.A.T + self.s_z.square().diag(), across], 1),
                    torch.cat([across.T, covariance], 1),
                ]
            )
            predicted = observe @ joint_mean + self.d
            spread = observe @ joint @ observe.T + self.s_x.square().diag()
            total += torch.distributions.MultivariateNormal(predicted, spread).log_prob(x_t).item()
            gain = torch.linalg.solve(spread, observe @ joint).T
            joint_mean = joint_mean + gain @ (x_t - predicted)
            joint = joint - gain @ observe @ joint
            onwards = torch.cat([self.G, self.H], 1)
            mean = self.F @ x_t + onwards @ joint_mean + self.b
            covariance = onwards @ joint @ onwards.T
        assert z == self.D.shape[1]
        return total

    def dense(self, steps: int) -> tuple[Tensor, Tensor]:
        """Mean (T X,) and covariance of all of x at once: every variable is affine in the noise of all steps."""
        z, width = len(self.a), len(self.d)
        noises = steps * (z + width)
        h, h_const = self.b.new_zeros(len(self.b), noises), torch.zeros_like(self.b)
        rows, constants = [], []
        for t in range(steps):
            own = t * (z + width)
            z_t = self.A @ h
            z_t[:, own : own + z] += self.s_z.diag()
            z_const = self.A @ h_const + self.a
            x_t = self.D @ z_t + self.E @ h
            x_t[:, own + z : own + z + width] += self.s_x.diag()
            x_const = self.D @ z_const + self.E @ h_const + self.d
            h = self.F @ x_t + self.G @ z_t + self.H @ h
            h_const = self.F @ x_const + self.G @ z_const + self.H @ h_const + self.b
            rows.append(x_t)
            constants.append(x_const)
        mixing = torch.cat(rows)
        return torch.cat(constants), mixing @ mixing.T

    def marginal(self, x: Tensor) -> float:
        """The same from the dense Gaussian."""
        mean, spread = self.dense(len(x))
        off = x.flatten() - mean
        quadratic = off @ torch.linalg.solve(spread, off)
        return -0.5 * (quadratic + torch.logdet(spread) + len(off) * math.log(2 * math.pi)).item()

    def given(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of those of x (T, X) that are not ``known``, given those that are."""
        mean, spread = self.dense(len(x))
        here, there = known.flatten(), ~known.flatten()
        gain = torch.linalg.solve(spread[here][:, here], spread[here][:, there]).T
        return mean[there] + gain @ (x.flatten() - mean)[here], spread[there][:, there] - gain @ spread[here][:, there]

    def predicted(self, x: Tensor) -> list[torch.distributions.MultivariateNormal]:
        """p(x_t | x_<t) for each step of (T, X)."""
        found = []
        for t in range(len(x)):
            known = torch.zeros_like(x[: t + 1], dtype=torch.bool)
            known[:t] = True
            found.append(torch.distributions.MultivariateNormal(*self.given(x[: t + 1], known)))
        return found

    def write_posterior(self, model: VRNN, *, wider: float = 1.0, off: float = 0.0) -> None:
        """Put p(z_t | x_t, h_{t-1}) into the encoder, or one of a mean that is ``off`` and a ``wider`` spread."""
        precision = self.s_z.square().reciprocal().diag() + self.D.T @ (self.D / self.s_x.square().unsqueeze(1))
        torch.testing.assert_close(precision, precision.diag().diag())
        variance = precision.diag().reciprocal().unsqueeze(1)
        of_x = variance * (self.D / self.s_x.square().unsqueeze(1)).T
        of_prior = variance / self.s_z.square().unsqueeze(1)
        with torch.no_grad():
            model.get_parameter("enc_mean.weight").copy_(torch.cat([of_x, of_prior * self.A - of_x @ self.E], 1))
            model.get_parameter("enc_mean.bias").copy_(of_prior.squeeze(1) * self.a - of_x @ self.d + off)
            model.get_parameter("enc_std.0.weight").zero_()
            std = wider * variance.squeeze(1).sqrt() - STD_FLOOR
            model.get_parameter("enc_std.0.bias").copy_(torch.log(torch.expm1(std)))
