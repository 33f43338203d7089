"""What cannot be run, by its name, and wrong arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.accelerated import binary, both, changed, put
from tests.support.foreign import copied, dynamical, variants
from vrnn_fast import VRNN, LayoutError, ProofError, accelerate

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("enc.1", nn.LeakyReLU(0.2)), r"enc\.1 is LeakyReLU\(negative_slope=0\.2\): only negative_slope=0\.01"),
        (put("enc.1", nn.GELU("tanh")), r"enc\.1 is GELU\(approximate=tanh\): only approximate=none is run here"),
        (put("enc.1", nn.Dropout(0.1)), r"enc\.1 is Dropout\(p=0\.1\): dropout"),
        (put("enc.1", nn.BatchNorm1d(9)), r"enc\.1 is BatchNorm1d, which ties the sequences of a batch together"),
        (put("enc.1", nn.LayerNorm(9)), r"enc\.2 has no layer normalisation behind it, as other layers of its network"),
        (put("prior.1", nn.LayerNorm(9, eps=1e-3)), r"prior\.1 is LayerNorm\(eps=0\.001\): only eps=1e-05 is run here"),
        (put("prior.1", nn.LayerNorm(9, bias=False)), r"prior\.1\.bias must have shape \(9,\) .* found nothing"),
        (put("enc.1", nn.RMSNorm(9)), r"enc\.1 is RMSNorm, a sub-module that layout eager-vrnn .* does not know"),
        (put("enc.1", Swish()), r"enc\.1 is Swish, a sub-module that layout eager-vrnn .* does not know"),
        (put("enc.1", nn.Sigmoid()), r"one of ReLU, .* or nothing after enc\.0, found enc\.1, Sigmoid"),
        (lambda m: m.add_module("norm", nn.BatchNorm1d(9)), "norm is BatchNorm1d"),
        (
            lambda m: m.add_module("extra", nn.Linear(3, 3)),
            r"extra\.weight \(Linear\) has no role in layout eager-vrnn",
        ),
        (lambda m: m.register_parameter("h0", nn.Parameter(torch.zeros(9))), "h0 .* has no role in layout eager-vrnn"),
        (put("rnn", nn.GRU(18, 9, 2, dropout=0.1)), r"rnn is GRU\(dropout=0\.1\): dropout"),
        (put("rnn", nn.GRU(18, 9, bidirectional=True)), "rnn runs in both directions"),
        (put("rnn", nn.Linear(18, 9)), "rnn must be a recurrent cell with weight_hh_l0 or weight_hh"),
        (put("enc.0", nn.Linear(18, 9, bias=False)), r"enc\.0 must be an affine layer with a bias"),
        (put("prior.0", nn.Linear(18, 9)), r"prior\.0\.weight must have shape \(9, 9\) .* found \(9, 18\)"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: Callable[[nn.Module], None], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        accelerate(changed(change))


def test_one_head_alone_may_be_deep() -> None:
    """It is proven when it is accelerated, and so is what it samples."""
    model = variants.DeepMean(6, 9, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "sample runs as its class is written")
        accelerated = accelerate(model)
    torch.manual_seed(1)
    expected = model.sample(3)
    torch.manual_seed(1)
    torch.testing.assert_close(accelerated.sample(3), expected)


def test_dropout_of_dynamical_is_refused_by_name() -> None:
    with pytest.raises(LayoutError, match=r"mlp_hz_x\.dropout0 is Dropout\(p=0\.1\): dropout behind z draws between"):
        accelerate(dynamical.VRNN(6, 4, dropout_p=0.1))


def test_dropout_without_effect_is_no_obstacle() -> None:
    accelerate(changed(lambda m: m.phi_x.append(nn.Dropout(0.0))))


def test_an_unknown_model_hears_what_was_looked_for_and_found() -> None:
    model = copied.VRNN(6, 9, 4)
    model.encoder = model.enc
    del model.enc
    with pytest.raises(LayoutError) as caught:
        accelerate(model)
    text = str(caught.value)
    assert "layout eager-vrnn (the most copied PyTorch VRNN): looked for phi_x, phi_z, enc, enc_mean" in text
    assert "; no enc" in text
    assert "encoder (Sequential)" in text
    with pytest.raises(LayoutError, match="found: 0 \\(Linear\\)"):
        accelerate(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"fix": ("speed",)}, ValueError, "fix may hold nan, nll, kl for layout eager-vrnn .*, got 'speed'"),
        ({"fix": "kl"}, TypeError, "fix must be a tuple of names"),
        ({"layout": "Q"}, ValueError, "layout must be 'auto', 'eager-vrnn'.* or a mapping, got 'Q'"),
        ({"layout": 3}, TypeError, "layout must be"),
        ({"layout": {"encodr": "enc"}}, LayoutError, "layout may hold phi_x, .* got 'encodr'"),
        ({"layout": {"encoder": 3}}, LayoutError, r"layout\['encoder'\] must be the path of a sub-module, got 3"),
        ({"layout": {"outputs": 3}}, LayoutError, r"layout\['outputs'\] must be a function"),
        ({"backend": "abacus"}, ValueError, "backend must be one of"),
        ({"example": torch.rand(3, 2, 5)}, ProofError, r"forward fails in float64 on an input of shape \(3, 2, 5\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        accelerate(copied.VRNN(6, 9, 4), **arguments)


def test_no_model_and_one_that_is_fast_already() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        accelerate(3)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"model is a vrnn_fast\.VRNN: it runs on these backends as it is"):
        accelerate(VRNN(6, 9, 4))
    fast = accelerate(copied.VRNN(6, 9, 4))
    with pytest.raises(ValueError, match="accelerated already, as layout eager-vrnn"):
        accelerate(fast)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.rand(3, 2, 5), ValueError, r"x must have shape \(T, B, X = 6\), got \(3, 2, 5\)"),
        (torch.rand(3, 6), ValueError, "x must have 3 dimensions"),
        (torch.rand(3, 2, 6).double(), ValueError, "x must have the parameters' dtype"),
        ("x", TypeError, "x must be a tensor"),
    ],
)
def test_bad_input_to_the_fast_one(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        accelerate(copied.VRNN(6, 9, 4))(x)


def test_a_call_binds_as_the_original_does() -> None:
    fast, x = accelerate(copied.VRNN(6, 9, 4)), binary()
    torch.manual_seed(0)
    a = both(fast(x))
    torch.manual_seed(0)
    assert torch.equal(both(fast(x=x)), a)
    for args, kwargs in (((), {}), ((x, x), {}), ((x,), {"y": x})):
        with pytest.raises(TypeError, match="takes x alone"):
            fast(*args, **kwargs)


def test_a_changed_sub_module_is_named_at_the_next_call() -> None:
    fast, x = accelerate(copied.VRNN(6, 9, 4)), binary()
    fast.enc[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"sub-module 'enc\.0' carries a forward or backward hook"):
        fast(x)
