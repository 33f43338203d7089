"""Layout speech-benchmark: a VRNN of waveforms, its cell scripted, and a copy that returns something else."""

from __future__ import annotations

import math
from collections import namedtuple
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

# --- what it logs


class Metric:
    def __init__(self, value: Tensor | float, name: str, reduce_by: Any = None, weight_by: Any = None) -> None:
        self.name = name
        total = value.detach().sum().tolist() if isinstance(value, Tensor) else value
        count = value.numel() if isinstance(value, Tensor) else 1
        self.reduce_by = reduce_by.sum().tolist() if isinstance(reduce_by, Tensor) else reduce_by or count
        self.weight_by = weight_by or self.reduce_by
        self.value = total / self.reduce_by


class LossMetric(Metric):
    def __init__(self, value: Tensor, name: str = "loss", **options: Any) -> None:
        super().__init__(value, name, **options)


class LLMetric(Metric):
    pass


class KLMetric(Metric):
    def __init__(self, value: Tensor, name: str = "kl", **options: Any) -> None:
        super().__init__(value, name, **options)


class BitsPerDimMetric(Metric):
    def __init__(self, value: Tensor, name: str = "bpd", **options: Any) -> None:
        super().__init__(-value.detach() / math.log(2), name, **options)


class LatestMeanMetric(Metric):
    pass


# --- what it is made of


class View(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], *self.shape)


class StackTensor(nn.Module):
    """(B, S) samples as frames (B, T, size), the last one filled up with zeros."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, -x.shape[1] % self.size)).reshape(x.shape[0], -1, self.size)


class AddConstant(nn.Module):
    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant


def deviation(beta: float, floor: float) -> nn.Sequential:
    return nn.Sequential(nn.Softplus(beta=beta), AddConstant(floor))


class GaussianDense(nn.Module):
    """One layer for mean and standard deviation, the mean first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.params = nn.Linear(inputs, 2 * outputs)
        self.sd_activation = deviation(math.log(2) / (1 - 1e-6), 1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.params(x).chunk(2, dim=-1)
        return mean, self.sd_activation(raw)


class MixtureDense(nn.Module):
    """Gaussians for every sample: logits, means and raw standard deviations."""

    def __init__(self, components: int) -> None:
        super().__init__()
        self.components = components
        self.out_features = 3 * components
        self.params = nn.Linear(3 * components, 3 * components)
        self.sd_activation = deviation(math.log(2), 1e-4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, rest = self.params(x).split((self.components, 2 * self.components), -1)
        mean, raw = rest.unflatten(-1, (1, -1)).chunk(2, -1)
        return logits, mean, self.sd_activation(raw)

    @torch.no_grad()
    def sample(self, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits, mean, std = params
        gumbel = -torch.log(-torch.log(torch.empty_like(logits).uniform_(1e-6, 1 - 1e-6)))
        index = (logits + gumbel).argmax(-1, keepdim=True).unsqueeze(-1)
        mean, std = mean.gather(-1, index).squeeze(-1), std.gather(-1, index).squeeze(-1)
        return torch.randn_like(mean) * std + mean

    def mode(self, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return params[1].gather(-1, params[0].argmax(-1, keepdim=True).unsqueeze(-1)).squeeze(-1)

    def log_prob(self, y: Tensor, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits, mean, std = params
        densities = Normal(mean, std, validate_args=False).log_prob(y.unsqueeze(-1)).squeeze(-2)
        return torch.logsumexp(logits.log_softmax(-1) + densities, -1)


class LogisticMixtureDense(nn.Module):
    """Logistic distributions for every sample, rounded to levels in [-1, 1]: logits, means and log scales."""

    def __init__(self, components: int, bins: int = 2**8) -> None:
        super().__init__()
        self.components, self.bins = components, bins
        self.out_features = 3 * components
        self.params = nn.Linear(3 * components, 3 * components)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, rest = self.params(x).split((self.components, 2 * self.components), -1)
        mean, log_scale = rest.unflatten(-1, (1, -1)).chunk(2, -1)
        return logits, mean, log_scale.clamp(min=-7)

    @torch.no_grad()
    def sample(self, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits, mean, log_scale = params
        gumbel = -torch.log(-torch.log(torch.empty_like(logits).uniform_(1e-5, 1 - 1e-5)))
        index = (logits + gumbel).argmax(-1, keepdim=True).unsqueeze(-1)
        mean, log_scale = mean.gather(-1, index).squeeze(-1), log_scale.gather(-1, index).squeeze(-1)
        uniform = torch.empty_like(mean).uniform_(1e-5, 1 - 1e-5)
        return (mean + log_scale.exp() * (uniform.log() - (1 - uniform).log())).clamp(-1, 1)

    def mode(self, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return params[1].gather(-1, params[0].argmax(-1, keepdim=True).unsqueeze(-1)).squeeze(-1)

    def log_prob(self, y: Tensor, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits, mean, log_scale = params
        y, half = y.unsqueeze(-1), 1 / (self.bins - 1)
        upper, lower = (y - mean + half) / log_scale.exp(), (y - mean - half) / log_scale.exp()
        mass = torch.log((torch.sigmoid(upper) - torch.sigmoid(lower)).clamp(min=1e-10))
        mass = torch.where(y < 2 / self.bins - 1, nn.functional.logsigmoid(upper), mass)
        mass = torch.where(y > 1 - 2 / self.bins, nn.functional.logsigmoid(-lower), mass)
        return torch.logsumexp(logits.log_softmax(-1) + mass.squeeze(-2), -1)


class OneGaussianDense(nn.Module):
    """A Gaussian for every sample: its mean and raw standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 2
        self.params = nn.Linear(2, 2)
        self.sd_activation = deviation(math.log(2) / (1 - 1e-4), 1e-4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.params(x).chunk(2, -1)
        return mean, self.sd_activation(raw)

    @torch.no_grad()
    def sample(self, params: tuple[Tensor, Tensor]) -> Tensor:
        return torch.randn_like(params[0]) * params[1] + params[0]

    def mode(self, params: tuple[Tensor, Tensor]) -> Tensor:
        return params[0]

    def log_prob(self, y: Tensor, params: tuple[Tensor, Tensor]) -> Tensor:
        return Normal(*params, validate_args=False).log_prob(y).squeeze(-1)


def layers(act: type[nn.Module], *widths: int) -> list[nn.Module]:
    return [m for pair in pairwise(widths) for m in (nn.Linear(*pair), act())]


CellOutputs = namedtuple("CellOutputs", "h z enc_mu enc_sd prior_mu prior_sd phi_z")  # noqa: PYI024, torch.jit reads it


class VRNNCell(nn.Module):
    def __init__(self, x: int, z: int, h: int, residual: bool) -> None:
        super().__init__()
        self.r_dim, self.residual_posterior = h, residual
        self.phi_z = nn.Sequential(*layers(nn.ReLU, z, x, x, x, x))
        self.prior = nn.Sequential(*layers(nn.ReLU, h, x, x, x), GaussianDense(x, z))
        self.posterior = nn.Sequential(*layers(nn.ReLU, h + x, x, x, x), GaussianDense(x, z))
        self.gru_cell = nn.GRUCell(2 * x, h)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, CellOutputs]:
        prior_mu, prior_sd = self.prior(h)
        enc_mu, enc_sd = self.posterior(torch.cat([h, x], -1))
        if self.residual_posterior:
            enc_mu = enc_mu + prior_mu
        z = torch.randn_like(enc_mu).mul(enc_sd).add(enc_mu)
        phi_z = self.phi_z(z)
        h = self.gru_cell(torch.cat([x, phi_z], -1), h)
        return h, CellOutputs(h, z, enc_mu, enc_sd, prior_mu, prior_sd, phi_z)


class VRNN(nn.Module):
    def __init__(
        self, hidden: int, latent: int, frame: int, likelihood: nn.Module, residual: bool, scripted: bool
    ) -> None:
        super().__init__()
        self.residual_posterior = residual
        self.encoder = nn.Sequential(View(-1), StackTensor(frame), *layers(nn.LeakyReLU, frame, *[hidden] * 3))
        self.likelihood: Any = likelihood
        outputs = frame * self.likelihood.out_features
        decoder = layers(nn.LeakyReLU, 3 * hidden, hidden, hidden, outputs)
        self.decoder = nn.Sequential(*decoder, View(-1, self.likelihood.out_features))
        cell = VRNNCell(hidden, latent, 2 * hidden, residual)
        self.vrnn_cell = torch.jit.script(cell) if scripted else cell
        self.dropout = None

    def walk(self, x: Tensor, h: Tensor) -> tuple[list[Tensor], list[CellOutputs]]:
        """The states before every step and after the last one, and what the cell gave."""
        states, found = [h], []
        for features in self.encoder(x).unbind(1):
            h, outputs = self.vrnn_cell(features, h)
            states.append(h)
            found.append(outputs)
        return states, found

    def compute_elbo(
        self, y: Tensor, parameters: Any, kld: Tensor, x_sl: Tensor, stride: int, beta: float, free_nats: float
    ) -> tuple[Tensor, ...]:
        mask = (torch.arange(int(x_sl.max())) < x_sl.unsqueeze(1)).double()
        log_prob = (self.likelihood.log_prob(y, parameters) * mask).sum(1)
        mask_kl = mask[:, ::stride].unsqueeze(-1)
        elbo = log_prob - (kld * mask_kl).sum((1, 2))
        if free_nats:
            kld = torch.maximum(kld, torch.tensor(free_nats / kld.shape[-1], dtype=kld.dtype))
        kl = (kld * mask_kl).sum((1, 2))
        return -(log_prob - beta * kl).sum() / x_sl.sum(), elbo, log_prob, kl, mask

    def forward(
        self, x: Tensor, x_sl: Tensor, beta: float = 1, free_nats: float = 0, h0: Tensor | None = None
    ) -> tuple[Tensor, list[Metric], SimpleNamespace]:
        x = x.unsqueeze(-1) if x.dim() == 2 else x
        y = x.clone().detach()
        states, found = self.walk(x, x.new_zeros(x.shape[0], self.vrnn_cell.r_dim) if h0 is None else h0)
        stacked = CellOutputs(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))
        decoded = self.decoder(torch.cat([stacked.phi_z, torch.stack(states[:-1], 1)], -1))[:, : x_sl.max(), :]
        parameters = self.likelihood(decoded)
        sample, mode = self.likelihood.sample(parameters), self.likelihood.mode(parameters)
        squares = stacked.enc_sd.pow(2) + (stacked.enc_mu - stacked.prior_mu).pow(2)
        kld = stacked.prior_sd.log() - stacked.enc_sd.log() + squares / (2 * stacked.prior_sd.pow(2)) - 0.5
        stride = math.ceil(x.shape[1] / len(found))
        loss, elbo, log_prob, kl, mask = self.compute_elbo(y, parameters, kld, x_sl, stride, beta, free_nats)
        metrics: list[Metric] = [
            LossMetric(loss, weight_by=elbo.numel()),
            LLMetric(elbo, name="elbo"),
            LLMetric(log_prob, name="rec"),
            KLMetric(kl),
            KLMetric(kl / math.log(2), name="kl (bpt)", reduce_by=x_sl),
            BitsPerDimMetric(elbo, reduce_by=x_sl),
            LatestMeanMetric(beta, name="beta"),
            LatestMeanMetric(free_nats, name="free_nats"),
        ]
        outputs = SimpleNamespace(
            elbo=elbo,
            log_prob=log_prob,
            kl=kl,
            y=y,
            seq_mask=mask,
            z=stacked.z,
            z_sl=(x_sl / stride).ceil().int(),
            reconstructions=sample,
            reconstructions_mode=mode,
            reconstructions_parameters=parameters,
            h_n=states[-2],  # before the last step
        )
        return loss, metrics, outputs


class VRNNAudio(nn.Module):
    """x (B, S) or (B, S, 1) samples, x_sl (B,) of them real."""

    def __init__(
        self,
        hidden: int = 512,
        latent: int = 256,
        frame: int = 200,
        components: int = 10,
        residual: bool = True,
        scripted: bool = True,
        likelihood: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.vrnn = VRNN(hidden, latent, frame, likelihood or MixtureDense(components), residual, scripted)

    def forward(
        self, x: Tensor, x_sl: Tensor, beta: float = 1, free_nats: float = 0, h0: Tensor | None = None
    ) -> tuple[Tensor, list[Metric], SimpleNamespace]:
        return self.vrnn(x, x_sl, beta, free_nats, h0)


class FramesOnly(VRNNAudio):
    """A copy that counts in frames, keeps the state of a row that has ended, and returns two things."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        x_sl: Tensor | None = None,
        beta: float = 1.0,
        free_nats: float = 0.0,
        h0: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own = self.vrnn
        h = x.new_zeros(x.shape[0], own.vrnn_cell.r_dim) if h0 is None else h0
        kls, log_probs = [], []
        for t, features in enumerate(own.encoder(x).unbind(1)):
            after, out = own.vrnn_cell(features, h)
            params = own.likelihood(own.decoder(torch.cat([out.phi_z, h], -1).unsqueeze(1)))
            frame = x[:, t * self.frame : (t + 1) * self.frame].unsqueeze(-1)
            log_probs.append(own.likelihood.log_prob(frame, params).sum(-1))
            ratio = ((out.enc_sd / out.prior_sd) ** 2 + ((out.enc_mu - out.prior_mu) / out.prior_sd) ** 2 - 1) / 2
            kls.append((ratio - torch.log(out.enc_sd / out.prior_sd)).sum(-1))
            h = after if x_sl is None else torch.where((t < x_sl).unsqueeze(-1), after, h)
        kl, log_prob = torch.stack(kls, 1), torch.stack(log_probs, 1)
        if x_sl is not None:
            real = torch.arange(kl.shape[1]) < x_sl.unsqueeze(1)
            kl, log_prob = kl * real, log_prob * real
        loss = (beta * kl.clamp(min=free_nats) - log_prob).sum() / x.shape[0]
        return loss, {"kl": kl.sum(1), "log_prob": log_prob.sum(1), "h_n": h}


def speech(run: Any) -> Any:
    """What a copy of VRNNAudio returns that counts in frames."""
    x, x_sl, beta, free_nats, _ = run.arguments.values()
    own = run.module.vrnn
    ratio = ((run.std / run.prior_std) ** 2 + ((run.mean - run.prior_mean) / run.prior_std) ** 2 - 1) / 2
    kl = (ratio - torch.log(run.std / run.prior_std)).sum(-1)
    decoded = own.decoder[6](own.decoder[5](run.heads[0].transpose(0, 1).contiguous()))
    log_prob = own.likelihood.log_prob(x.unsqueeze(-1), own.likelihood(decoded))
    log_prob = log_prob.unflatten(1, (-1, run.module.frame)).sum(-1).transpose(0, 1)
    if x_sl is not None:
        real = torch.arange(kl.shape[0], device=x_sl.device).unsqueeze(1) < x_sl
        kl, log_prob = torch.where(real, kl, 0), torch.where(real, log_prob, 0)
    loss = (beta * kl.clamp(min=free_nats) - log_prob).sum() / x.shape[0]
    return loss, {"kl": kl.sum(0), "log_prob": log_prob.sum(0), "h_n": run.state[0]}


SPEECH = {"like": "speech-benchmark", "lengths": "x_sl", "state": "h0", "outputs": speech}
