"""Foreign models in their variants, each with an input, for the tests of what accelerate makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from tests.support.foreign import audio, copied, deep, dynamical, own, trajectories, variants
from vrnn_fast import accelerate
from vrnn_fast.layouts.base import Run


@dataclass
class Case:
    """A foreign model in a variant, and its input. ``loss`` is what its users call backward on; ``rest`` are further
    arguments of its forward."""

    build: Callable[[], nn.Module]
    data: Callable[[], Tensor]
    loss: Callable[[Any], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    rest: tuple[Any, ...] = ()
    launches: int = 1  # of each direction and cell

    def accelerate(self, model: nn.Module) -> nn.Module:
        return accelerate(model, **self.options)

    def run(self, model: nn.Module, x: Tensor) -> Any:
        """What forward returns, its objects as dictionaries."""
        return opened(model(x, *self.rest))

    def copy(self, model: nn.Module) -> nn.Module:
        """Another such model with the same parameters."""
        twin = self.build().to(next(model.parameters()).dtype)
        twin.load_state_dict(model.state_dict())
        return twin


def opened(value: Any) -> Any:
    """A result whose namespaces and metrics are dictionaries."""
    if isinstance(value, (SimpleNamespace, audio.Metric)):
        return {name: opened(entry) for name, entry in vars(value).items()}
    return type(value)(map(opened, value)) if type(value) in (list, tuple) else value


def binary() -> Tensor:
    return (torch.rand(7, 5, 6) < 0.4).to(torch.get_default_dtype())


def real() -> Tensor:
    return torch.randn(7, 5, 6)


def batch_first() -> Tensor:
    return binary().transpose(0, 1)


def both(output: Any) -> Tensor:
    return output[0] + output[1]


def squares(output: Tensor) -> Tensor:
    return output.square().sum()


def one_layer_nets() -> nn.Module:
    """The eager VRNN with other depths and widths."""
    model = copied.VRNN(6, 9, 4)
    model.phi_x = nn.Sequential(nn.Linear(6, 7), nn.ReLU())
    model.phi_z = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 8), nn.ReLU())
    model.enc[0], model.dec[0] = nn.Linear(7 + 9, 9), nn.Linear(8 + 9, 9)
    model.rnn = nn.GRU(7 + 8, 9, 1)
    return model


def normalised() -> nn.Module:
    """The eager VRNN with layer normalisation in encoder and prior, of scales and shifts other than one and zero."""
    model = copied.VRNN(6, 9, 4)
    model.enc = nn.Sequential(nn.Linear(18, 9), nn.LayerNorm(9), nn.SiLU(), nn.Linear(9, 9), nn.LayerNorm(9), nn.GELU())
    model.prior = nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9), nn.ReLU())
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def written(run: Run) -> Any:
    kl = kl_divergence(Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)).sum(-1)
    nll = F.binary_cross_entropy_with_logits(run.heads[0], run.x, reduction="none").sum(-1)
    return {"loss": (nll + kl).mean(), "logits": run.heads[0].transpose(0, 1)}


OWN = {
    "phi_x": "embed",
    "phi_z": "embed_latent",
    "encoder": "infer",
    "encoder_mean": "infer_mu",
    "encoder_std": "infer_sigma",
    "prior": "expect",
    "prior_mean": "expect_mu",
    "prior_std": "expect_sigma",
    "decoder": "render",
    "decoder_heads": ("logits",),
    "cell": "memory",
    "batch_first": True,
    "outputs": written,
}


def sound() -> Tensor:
    return 2 * torch.rand(5, 7 * 6) - 1


def first(output: Any) -> Tensor:
    loss: Tensor = output[0]
    return loss


SAMPLES = torch.tensor([42, 13, 6, 1, 30])  # real ones of each row


CASES = {
    "eager": Case(lambda: copied.VRNN(6, 9, 4), binary, both),
    "eager with biases": Case(lambda: copied.VRNN(6, 9, 4, bias=True), binary, both),
    "eager, Gaussian": Case(lambda: copied.VRNN(6, 9, 4, gaussian=True, fixed=True), real, both),
    "eager with tanh": Case(lambda: copied.VRNN(6, 9, 4, act=nn.Tanh), binary, both),
    "eager with LeakyReLU": Case(lambda: copied.VRNN(6, 9, 4, act=nn.LeakyReLU), binary, both),
    "eager, normalised": Case(normalised, binary, both),
    "eager with SiLU": Case(lambda: copied.VRNN(6, 9, 4, act=nn.SiLU), binary, both),
    "eager with one GELU": Case(lambda: changed(put("prior.1", nn.GELU())), binary, both),
    "eager with one LeakyReLU": Case(lambda: changed(put("prior.1", nn.LeakyReLU())), binary, both),
    "eager with other depths": Case(one_layer_nets, binary, both),
    "eager with uniform noise": Case(lambda: variants.DrawsUniform(6, 9, 4), binary, both),
    "eager with another return": Case(lambda: variants.ReturnsMeans(6, 9, 4), binary, lambda output: output["loss"]),
    "eager with affine ends": Case(lambda: variants.AffineEnds(6, 9, 4), binary, both),
    "eager with cross entropy": Case(lambda: variants.CrossEntropy(6, 9, 4), binary, both),
    "eager with a rounded constant": Case(
        lambda: variants.RoundedConstant(6, 9, 4), real, lambda output: output["loss"]
    ),
    "eager with two layers": Case(lambda: copied.VRNN(6, 9, 4, n_layers=2, bias=True), binary, both),
    "deep features": Case(
        lambda: deep.VRNN(6, 9, 4), batch_first, lambda output: sum(map(squares, map(torch.stack, output)))
    ),
    "deep features with heads unlike one another": Case(
        lambda: variants.UnlikeHeads(6, 9, 4), batch_first, lambda output: sum(map(squares, map(torch.stack, output)))
    ),
    "deep features with its losses": Case(lambda: deep.WithLosses(6, 9, 4), batch_first, lambda output: output[0]),
    "trajectories": Case(
        lambda: trajectories.VRNN(6, 6, 4, 7, 9), real, lambda output: output["kl_loss"] + output["recon_loss"]
    ),
    "dynamical with two layers": Case(lambda: dynamical.VRNN(6, 4, dim_RNN=9, num_RNN=2), real, squares),
    "dynamical": Case(lambda: dynamical.VRNN(6, 4, dense_z=(7, 8), dim_RNN=9), real, squares),
    "dynamical without hidden layers": Case(
        lambda: dynamical.VRNN(6, 4, "relu", (), (), (), (), (), 9, exponential=True), real, squares
    ),
    "trajectories for three agents": Case(
        lambda: trajectories.Agents(3, 2, 4, 7, 9), real, lambda output: output["kl_loss"] + output["recon_loss"]
    ),
    "trajectories for a list of one agent": Case(
        lambda: trajectories.Agents(1, 6, 4, 7, 9), real, lambda output: output["kl_loss"] + output["recon_loss"]
    ),
    "speech": Case(lambda: audio.VRNNAudio(7, 4, 6, 3), sound, first, rest=(SAMPLES, 0.5, 0.1), launches=2),
    "speech without a residual": Case(
        lambda: audio.VRNNAudio(7, 4, 6, 3, residual=False, scripted=False), sound, first, rest=(SAMPLES,), launches=2
    ),
    "speech with logistic distributions": Case(
        lambda: audio.VRNNAudio(7, 4, 6, likelihood=audio.LogisticMixtureDense(3)),
        sound,
        first,
        rest=(SAMPLES, 0.5, 0.1),
        launches=2,
    ),
    "speech with one Gaussian": Case(
        lambda: audio.VRNNAudio(7, 4, 6, likelihood=audio.OneGaussianDense()),
        sound,
        first,
        rest=(SAMPLES, 0.5, 0.1),
        launches=2,
    ),
    "speech with another return": Case(lambda: audio.FramesOnly(7, 4, 6, 3), sound, first, {"layout": audio.SPEECH}),
    "a mapping": Case(lambda: own.SequenceModel(6, 9, 4), binary, lambda output: output["loss"], {"layout": OWN}),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def changed(change: Callable[[Any], None], **options: Any) -> nn.Module:
    model = copied.VRNN(6, 9, 4, **options)
    change(model)
    return model


def put(path: str, module: nn.Module) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.set_submodule(path, module)

    return change
