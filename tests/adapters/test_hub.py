"""Models in the folder of a hub, and from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from vrnn_fast import FeatureMixture, Likelihood, Std, load_checkpoint
from vrnn_fast.adapters.hub import HubVRNN
from vrnn_fast.checkpoints.files import CheckpointError, save
from vrnn_fast.layouts.structure import LayoutError


def test_a_model_comes_back_as_it_went(tmp_path: Path) -> None:
    model = HubVRNN(
        3, 8, 2, cell="lstm", std=Std("log_std", clamp=(-5, 2)), likelihood=FeatureMixture(3), backend="reference"
    )
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "config.json"}
    assert json.loads((tmp_path / "config.json").read_text())["input_size"] == 3
    again = HubVRNN.from_pretrained(tmp_path)
    assert isinstance(again, HubVRNN)
    assert (again.spec, again.backend) == (model.spec, "reference")
    assert repr(again.likelihood) == repr(model.likelihood)
    x, eps = torch.randn(5, 4, 3), torch.randn(5, 4, 2)
    torch.testing.assert_close(again(x, eps=eps).loss, model(x, eps=eps).loss, rtol=0, atol=0)
    assert load_checkpoint(tmp_path / "model.safetensors").spec == model.spec
    assert HubVRNN.from_pretrained(tmp_path, backend="auto").backend == "auto"
    HubVRNN(3, 8, 2, likelihood="gaussian").save_pretrained(tmp_path / "other")
    assert HubVRNN.from_pretrained(tmp_path / "other").spec.likelihood == "gaussian"


class Own(Likelihood):
    """Unit Gaussian."""

    def log_prob(self, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * (raw - x).square().sum(-1)


def test_what_it_cannot_know_is_asked_for(tmp_path: Path) -> None:
    HubVRNN(3, 8, 2, likelihood=Own()).save_pretrained(tmp_path)
    with pytest.raises(LayoutError, match="the likelihood Own is a class of your own"):
        HubVRNN.from_pretrained(tmp_path)
    assert isinstance(HubVRNN.from_pretrained(tmp_path, likelihood=Own()).likelihood, Own)
    save(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"was not written by HubVRNN\.save_pretrained"):
        HubVRNN.from_pretrained(tmp_path)


def test_what_the_file_says_is_not_said_again(tmp_path: Path) -> None:
    HubVRNN(3, 8, 2, backend="reference").save_pretrained(tmp_path)
    for name, given in (("likelihood", "gaussian"), ("hidden_size", 3), ("device", "cpu")):
        with pytest.raises(
            ValueError, match=rf"{name} must be that of the model in .*, which has learnt: leave it out"
        ):
            HubVRNN.from_pretrained(tmp_path, **{name: given})
    with pytest.raises(TypeError, match=r"from_pretrained\(\) got an unexpected keyword argument 'nope'"):
        HubVRNN.from_pretrained(tmp_path, nope=3)
    found = HubVRNN.from_pretrained(
        tmp_path, backend="cpu", check_values=True, map_location="cpu", strict=True, revision=None, force_download=False
    )
    assert (found.backend, found.check_values) == ("cpu", True)
