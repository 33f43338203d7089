"""What names and shapes do not tell is found by running, and told in words."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from tests.support.accelerated import both, changed, put, real
from tests.support.foreign import audio, copied, variants, wild
from vrnn_fast import LayoutError, ProofError, accelerate
from vrnn_fast.layouts.base import Run

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


class ReadsAnother(copied.VRNN):
    """Its networks read the state that the cell has just been given, doubled."""

    def read(self, h: Tensor) -> Tensor:
        return 2 * h[-1]


class LeaksInside(copied.VRNN):
    """Its modules say ReLU, its forward adds a leak of its own."""

    def forward(self, x: Tensor) -> Any:
        leaking = [m for m in self.modules() if isinstance(m, nn.ReLU)]
        hooks = [m.register_forward_hook(lambda _, i, o: o + 0.01 * i[0].clamp(max=0)) for m in leaking]
        try:
            return super().forward(x)
        finally:
            for hook in hooks:
                hook.remove()


class ReturnsMore(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        return (*super().forward(x), x.cos())


class DrawsOnce(copied.VRNN):
    """Draws one noise for each sequence."""

    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * torch.randn(mean.shape[1])


class MeanInEval(copied.VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().draw(mean, std) if self.training else mean


class MeanWithoutGradients(copied.VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().draw(mean, std) if torch.is_grad_enabled() else mean


class WiderInEval(copied.VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().draw(mean, std if self.training else 1.01 * std)


class OnlyItsLossInTraining(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return both(found) if self.training else found


class FailsInEval(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        assert self.training
        return super().forward(x)


class ScriptedMeanInEval(audio.VRNNCell):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, audio.CellOutputs]:
        prior_mu, prior_sd = self.prior(h)
        enc_mu, enc_sd = self.posterior(torch.cat([h, x], -1))
        enc_mu = enc_mu + prior_mu
        z = torch.randn_like(enc_mu).mul(enc_sd).add(enc_mu) if self.training else enc_mu
        phi_z = self.phi_z(z)
        h = self.gru_cell(torch.cat([x, phi_z], -1), h)
        return h, audio.CellOutputs(h, z, enc_mu, enc_sd, prior_mu, prior_sd, phi_z)


def scripted_mean_in_eval() -> nn.Module:
    model = audio.VRNNAudio(7, 4, 6, 3)
    model.vrnn.vrnn_cell = torch.jit.script(ScriptedMeanInEval(7, 4, 14, residual=True))
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (MeanInEval, r"the noise differs .* in eval\(\).*: the original draws nothing, the accelerated one normal"),
        (MeanWithoutGradients, r"the noise differs .* in train\(\) without gradients: the original draws nothing"),
        (WiderInEval, r"output\[.*\].* differs by [\d.e-]+ with .* parameters in eval\(\) with gradients"),
        (OnlyItsLossInTraining, r"output.* differs with random parameters in (eval|train)\(\) with gradients"),
        (FailsInEval, r"the original's own forward fails .* eval\(\) with gradients: AssertionError"),
        (lambda *_: scripted_mean_in_eval(), r"the noise differs .* in eval\(\) .*"),
    ],
)
def test_what_hangs_on_its_mode_is_found_in_either(
    build: Callable[[int, int, int], nn.Module], words: str, training: bool
) -> None:
    with pytest.raises(ProofError, match=words):
        accelerate(build(6, 9, 4).train(training))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ReadsAnother(6, 9, 4), r"output\[0\], the KL, differs by [\d.e-]+ with its own parameters"),
        (LeaksInside(6, 9, 4), r"output\[0\], the KL, differs by [\d.e-]+ with its own parameters"),
        (ReturnsMore(6, 9, 4), r"output\[4\], float64 of shape \(4, 3, 6\), is none of the quantities of a run"),
        (
            DrawsOnce(6, 9, 4),
            r"the noise differs .*: the original draws normal \(4,\) .* accelerated one normal \(2, 4\)",
        ),
    ],
)
def test_what_names_and_shapes_cannot_tell_is_found_by_running(model: nn.Module, words: str) -> None:
    with pytest.raises(ProofError, match=words):
        accelerate(model)


def test_densities_that_raise_where_a_deviation_is_0() -> None:
    model, x = wild.Densities(6, 9, 4), torch.randn(5, 3, 6)
    fast = accelerate(model)
    torch.manual_seed(3)
    theirs = model(x)
    torch.manual_seed(3)
    for ours, right in zip(fast(x), theirs, strict=True):
        torch.testing.assert_close(ours, right)


def test_a_batch_that_comes_first_is_told_by_its_draws() -> None:
    with pytest.raises(ProofError, match=r"layout=\{'batch_first': True\} says that x is \(B, T, \.\.\.\)"):
        accelerate(wild.BatchFirst(6, 9, 4))


def test_several_readings_fail_and_the_one_that_came_farthest_is_told() -> None:
    words = (
        r"output\[4\], float64 of shape \(4, 3, 9\), is none of the quantities of a run: .*layout=\{'outputs': ...\}"
    )
    with pytest.raises(ProofError, match=words):
        accelerate(variants.ReturnsFeatures(6, 9, 4))


def test_a_difference_names_its_quantity_and_the_cure() -> None:
    words = r"output\[0\], the KL.*, differs by .* \(layout=\{'outputs': ...\} says what forward returns; 'activation'"
    with pytest.raises(ProofError, match=words):
        accelerate(LeaksInside(6, 9, 4))


def test_two_counts_of_draws_are_told_and_no_list_of_them() -> None:
    with pytest.raises(ProofError, match=r"float32 and so on, 2 times, .* float32 and so on, 3 times") as caught:
        accelerate(variants.StartsLate(6, 9, 4))
    assert str(caught.value).count("normal") == 2


def bounded(run: Run) -> Any:
    """What a Gaussian eager VRNN returns whose mean has gone through a module."""
    q, p = Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)
    mean, std = run.module.dec_mean[1](run.heads[0]), F.softplus(run.heads[1])
    logs = torch.log(p.stddev + copied.EPS) - torch.log(q.stddev + copied.EPS)
    kl = (logs + (q.variance + (q.mean - p.mean) ** 2) / (2 * p.variance) - 0.5).sum()
    nll = run.module.nll_gauss(mean, std, run.x)
    return kl, nll, tuple(list(t) for t in (run.mean, run.std)), tuple(list(t) for t in (mean, std))


def test_a_module_behind_a_head_is_named_with_what_lets_it_run() -> None:
    model, x = variants.Bounded(6, 9, 4), real()
    with pytest.raises(
        LayoutError, match=r"dec_mean\.1 is Hardtanh.*layout=\{'outside': \('dec_mean\.1',\), 'outputs'"
    ):
        accelerate(model)
    with pytest.warns(UserWarning, match="sample runs as its class is written"):
        fast = accelerate(model, layout={"outside": ("dec_mean.1",), "outputs": bounded})
    torch.manual_seed(0)
    theirs = both(model(x))
    torch.manual_seed(0)
    torch.testing.assert_close(both(fast(x)), theirs)


ROLES_OF_EAGER = {
    **{name: name for name in ("phi_x", "phi_z", "prior", "prior_mean", "prior_std")},
    "encoder": "enc",
    "encoder_mean": "enc_mean",
    "encoder_std": "enc_std",
    "decoder": "dec",
    "cell": "rnn",
    "decoder_heads": ("dec_mean", "dec_std"),
    "outputs": lambda run: run.heads[0],
}


def test_a_layout_that_lacks_what_it_calls_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"calls vrnn\.encoder of the model, found no vrnn;"):
        accelerate(copied.VRNN(6, 9, 4), layout={"like": "speech-benchmark", **ROLES_OF_EAGER})


class Unfriendly(copied.VRNN):
    """Its fields can be compared with nothing."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[0], Unequal(), {"mask": x > 0.5}, {torch.ones(2): x.detach().numpy()}


class Unequal:
    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


class Locked(copied.VRNN):
    """Which cannot be copied."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.lock = Lock()


class Untrainable(copied.VRNN):
    def train(self, mode: bool = True) -> Any:
        raise KeyError("train")


class TakesLists(copied.VRNN):
    def forward(self, x: Any) -> Any:
        raise ValueError(f"expected other numbers than {torch.stack(x) if isinstance(x, list) else x}")


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (Unfriendly, {}, "output"),
        (
            Unfriendly,
            {"layout": {"outputs": lambda run: (run.z.sum(), Unequal(), {"mask": run.x > 0.5}, {})}},
            "output",
        ),
        (Locked, {}, r"the original's own copy\.deepcopy fails: TypeError: cannot pickle"),
        (Untrainable, {}, "the original's own train fails: KeyError"),
        (TakesLists, {}, r"on an input of shape \(3, 2, 6\).*ValueError: expected other numbers than tensor\(\.\.\.\)"),
        (TakesLists, {"example": ([torch.rand(3)] * 2,)}, r"fails in float64 on list of length 2 .*tensor\(\.\.\.\)"),
        (copied.VRNN, {"layout": {"outputs": lambda run: {}["nothing"]}}, "the accelerated forward fails .*KeyError"),
        (
            copied.VRNN,
            {"layout": {"outputs": lambda run: run.module.x_dim}},
            "'tuple of length 4', the accelerated one 6",
        ),
    ],
)
def test_whatever_the_models_code_raises_is_told_in_words_and_without_numbers(
    build: Callable[[int, int, int], nn.Module], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ProofError, match=words) as caught:
        accelerate(build(6, 9, 4), **options)
    assert "tensor([" not in str(caught.value)
    assert len(str(caught.value)) < 900


def test_parameters_without_numbers_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model must have its parameters on a device that holds numbers, found .* on meta"
    ):
        accelerate(copied.VRNN(6, 9, 4).to("meta"))
    with pytest.raises(LayoutError, match=r"enc_mean\.weight has no shape yet"):
        accelerate(changed(put("enc_mean", nn.LazyLinear(4))))
