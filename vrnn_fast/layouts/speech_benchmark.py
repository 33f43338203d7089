"""The speech benchmark: frames of sound, a residual posterior, packed heads, a mixture for every sample."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..cell.spec import Std
from ..likelihoods import Likelihood, MeanStd, SharedMixture
from . import losses
from .base import Deviation, Layout, Outcome, Run, Sequences
from .structure import LayoutError, Roles, Shapes, Structure, Traits

_MODEL = "vrnn"
_ENCODER = "vrnn.encoder"
_OUTPUT = "vrnn.likelihood.params"
_METRICS = ("LossMetric", "LLMetric", "KLMetric", "BitsPerDimMetric", "LatestMeanMetric")
_FLOOR = 1e-4  # of its standard deviations: beside it a raw 0 is 1 in a mixture, and with it in one Gaussian
_LOGISTIC = (
    "a leaky ReLU and likelihood.params make of each sample's values K logits, means and log scales, at least -7; "
    "DiscretizedLogisticMixture has three heads instead, no such layer, and scales softplus(raw) + a floor"
)


class Parts(NamedTuple):
    """What its forward returns is made of these: the loss, what is logged beside the results, and the results."""

    loss: Tensor
    x_sl: Tensor
    beta: float
    free_nats: float
    outputs: dict[str, Any]


@dataclass(frozen=True)
class AudioOutcome(Outcome):
    """What its own forward returns: a loss, metrics to log, and a namespace.

    Its likelihood, its bound and the classes of its metrics are called as they are, beside the launch.
    """

    alone = False
    finishes = True

    metrics: Mapping[str, Callable[..., Any]]

    @property
    def deviations(self) -> Mapping[str, Deviation]:
        return {
            "h_n": Deviation("the state it returns is that before its last frame, so that chunks in a row lose one")
        }

    def asks_before(self, fix: frozenset[str]) -> bool:
        return "h_n" not in fix

    def output(self, run: Run, fix: frozenset[str]) -> Parts:
        model: Any = run.module.get_submodule(_MODEL)
        x, x_sl, beta, free_nats, _ = run.arguments.values()
        x = x.unsqueeze(-1) if x.dim() == 2 else x
        y = x.clone().detach()
        decoded = run.heads[0].transpose(0, 1).contiguous()  # a layer behind may be a view
        for layer in list(model.decoder)[5:]:  # those behind the last affine one
            decoded = layer(decoded)
        longest = x_sl.max()
        if torch.compiler.is_compiling():  # Inductor has no gradient of a slice that ends it does not know where
            torch._assert_async(longest == x.shape[1], "x_sl must reach the last sample of x, in compiled code")
            longest = x.shape[1]
        parameters = model.likelihood(decoded[:, :longest, :])
        sample, mode = model.likelihood.sample(parameters), model.likelihood.mode(parameters)
        kl = losses.kl(MeanStd(run.mean, run.std), MeanStd(run.prior_mean, run.prior_std)).transpose(0, 1)
        stride = math.ceil(x.shape[1] / kl.shape[1])
        loss, elbo, log_prob, kl, mask = model.compute_elbo(y, parameters, kl, x_sl, stride, beta, free_nats)
        outputs = {
            "elbo": elbo,
            "log_prob": log_prob,
            "kl": kl,
            "y": y,
            "seq_mask": mask,
            "z": run.z.transpose(0, 1),
            "z_sl": (x_sl / stride).ceil().int(),
            "reconstructions": sample,
            "reconstructions_mode": mode,
            "reconstructions_parameters": parameters,
            "h_n": (run.before or run.state)[0],
        }
        return Parts(loss, x_sl, beta, free_nats, outputs)

    def finish(self, output: Parts) -> tuple[Tensor, list[Any], SimpleNamespace]:
        loss, x_sl, beta, free_nats, outputs = output
        elbo, kl, made = outputs["elbo"], outputs["kl"], self.metrics
        metrics = [
            made["LossMetric"](loss, weight_by=elbo.numel()),
            made["LLMetric"](elbo, name="elbo"),
            made["LLMetric"](outputs["log_prob"], name="rec"),
            made["KLMetric"](kl),
            made["KLMetric"](kl / math.log(2), name="kl (bpt)", reduce_by=x_sl),
            made["BitsPerDimMetric"](elbo, reduce_by=x_sl),
            made["LatestMeanMetric"](beta, name="beta"),
            made["LatestMeanMetric"](free_nats, name="free_nats"),
        ]
        return loss, metrics, SimpleNamespace(**outputs)


@dataclass(frozen=True)
class Audio(Layout):
    """Its encoder, which stacks the samples of x (B, S) into frames and sees nothing else, is called as it is.

    In a checkpoint it is phi_x: a module of ours sees frames. Lengths are those of frames there, of samples here.
    """

    def refined(self, model: nn.Module) -> Layout:
        for path in (_MODEL, f"{_ENCODER}.2", self.roles.cell):
            try:
                model.get_submodule(path)
            except AttributeError as error:
                raise LayoutError(
                    f"{self} calls {_ENCODER} of the model, found no {path}; layout={{'like': ...}} names what a model "
                    "is a variant of"
                ) from error
        residual = getattr(model.get_submodule(_MODEL), "residual_posterior", self.traits.residual)
        return replace(self, traits=replace(self.traits, residual=bool(residual)))

    def outcomes(self, model: nn.Module, structure: Structure) -> Iterator[Outcome]:
        own = model.get_submodule(_MODEL)
        known = getattr(type(own).forward, "__globals__", {})
        if len(_needed(model)) == 2 and all(name in known for name in _METRICS) and hasattr(own, "compute_elbo"):
            yield AudioOutcome({name: known[name] for name in _METRICS})

    def example(self, model: nn.Module, features: int, steps: int, batch: int) -> tuple[Any, ...]:
        """Make x alone, or with lengths, beta, free nats and a state."""
        parameters = dict(model.named_parameters())
        samples = steps * parameters[f"{_ENCODER}.2.weight"].shape[1]
        cell = self.roles.cell
        recurrent = next(p for name, p in parameters.items() if name.startswith(f"{cell}.weight_hh"))
        state = torch.randn(batch, recurrent.shape[1])
        x, lengths = 2 * torch.rand(batch, samples) - 1, samples - torch.arange(batch)
        return (x, lengths, 0.7, 0.1, state)[: 5 if len(_needed(model)) == 2 else 1]

    def sequences(self, module: nn.Module, arguments: Mapping[str, Any]) -> Sequences:
        """Compute the encoder's features (B, T, .) of the first argument, as (T, B, .)."""
        x = next(iter(arguments.values()))
        features: Tensor = module.get_submodule(_ENCODER)(x.unsqueeze(-1) if x.dim() == 2 else x)
        return Sequences(features.transpose(0, 1), lengths=arguments.get(self.lengths))

    def structure(self, shapes: Shapes) -> Structure:
        """Read it with the encoder as phi_x."""
        traits = replace(self.traits, activations=(("phi_x", "leaky_relu"), ("decoder", "leaky_relu")))
        return replace(self, roles=replace(self.roles, phi_x=_ENCODER), traits=traits).structures(shapes)[0]

    def beside(self, shapes: Shapes) -> dict[str, str]:
        return {f"likelihood.params.{leaf}": f"{_OUTPUT}.{leaf}" for leaf in ("weight", "bias")}

    def arguments(self, structure: Structure, given: Mapping[str, Any]) -> dict[str, Any]:
        guesses = {} if "residual" in given else {"the posterior is taken as residual": "residual=False"}
        likelihood = given.get("likelihood")
        if likelihood is None:
            likelihood = _gaussian(structure)
            own = f"for discretised logistic distributions a likelihood= of your own ({_LOGISTIC})"
            guesses["the output is taken as Gaussian"] = own
        elif not isinstance(getattr(likelihood, "params", None), nn.Module):
            raise LayoutError(f"{likelihood} has no params for {_OUTPUT}: in {self} {_LOGISTIC}")
        if guesses:
            warnings.warn(
                f"{self}: {' and '.join(guesses)}, which names and shapes do not tell; else pass "
                f"{', or '.join(guesses.values())}",
                stacklevel=5,
            )
        return {"likelihood": likelihood}

    def completed(self, tensors: Mapping[str, Tensor], likelihood: Likelihood) -> Mapping[str, Tensor]:
        """Add the logit of a mixture of one Gaussian, which says nothing."""
        layer = {name: tensors[name] for name in self.beside({}).values()}
        if not isinstance(likelihood, SharedMixture) or any(len(t) != 2 for t in layer.values()):
            return tensors
        return {**tensors, **{name: torch.cat([torch.zeros_like(t[:1]), t]) for name, t in layer.items()}}


def _gaussian(structure: Structure) -> SharedMixture:
    """Return one Gaussian for each sample, or a mixture of them."""
    spec = structure.spec
    width, rest = divmod(spec.output_size, spec.input_size)
    if rest or (width != 2 and width % 3):
        raise LayoutError(
            f"{structure.heads[0]} must give two values for each of {spec.input_size} samples, or three of every "
            f"component, found {spec.output_size}"
        )
    if width == 2:
        return SharedMixture(1, _FLOOR, math.log(2) / (1 - _FLOOR), width)
    return SharedMixture(width // 3, _FLOOR, math.log(2))


def _needed(model: nn.Module) -> list[str]:
    """Return the arguments that forward cannot do without: x, and in the original the lengths."""
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]


LAYOUT = Audio(
    "speech-benchmark",
    "the speech benchmark",
    Roles(
        phi_x="",
        phi_z="vrnn.vrnn_cell.phi_z",
        encoder="vrnn.vrnn_cell.posterior",
        encoder_mean="vrnn.vrnn_cell.posterior.6.params",
        encoder_std="",
        prior="vrnn.vrnn_cell.prior",
        prior_mean="vrnn.vrnn_cell.prior.6.params",
        prior_std="",
        decoder="vrnn.decoder",
        decoder_heads=("vrnn.decoder.4",),
        cell="vrnn.vrnn_cell.gru_cell",
    ),
    batch_first=True,
    state="h0",
    traits=Traits(
        std=Std(sharpness=math.log(2) / (1 - 1e-6), floor=1e-6),
        residual=True,
        input_order=(("encoder", ("h", "phi_x")),),
    ),
    outside=(_ENCODER, "vrnn.likelihood"),
    familiar=(
        "vrnn.decoder.",
        "vrnn.vrnn_cell.posterior.6.sd_activation",
        "vrnn.vrnn_cell.prior.6.sd_activation",
    ),
)
