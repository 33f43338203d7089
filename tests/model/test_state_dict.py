"""Checkpoints of the most copied PyTorch VRNN, both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vrnn_fast import VRNN


def copied(bias: bool = False, gaussian: bool = False) -> dict[str, Tensor]:
    """A state dict as that model saves it at x=28, h=100, z=16: names and shapes are facts about it."""
    linear = {
        "phi_x.0": (100, 28),
        "phi_x.2": (100, 100),
        "phi_z.0": (100, 16),
        "enc.0": (100, 200),
        "enc.2": (100, 100),
        "enc_mean": (16, 100),
        "enc_std.0": (16, 100),
        "prior.0": (100, 100),
        "prior_mean": (16, 100),
        "prior_std.0": (16, 100),
        "dec.0": (100, 200),
        "dec.2": (100, 100),
        "dec_std.0": (28, 100),
        ("dec_mean" if gaussian else "dec_mean.0"): (28, 100),
    }
    state = {}
    for name, (rows, columns) in linear.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(rows, columns), torch.randn(rows)
    state["rnn.weight_ih_l0"], state["rnn.weight_hh_l0"] = torch.randn(300, 200), torch.randn(300, 100)
    if bias:
        state["rnn.bias_ih_l0"], state["rnn.bias_hh_l0"] = torch.randn(300), torch.randn(300)
    return state


def test_a_copied_checkpoint_loads_strictly_with_one_warning() -> None:
    checkpoint = copied()
    assert len(checkpoint) == 30
    assert sum(t.numel() for t in checkpoint.values()) == 187_320
    before = set(checkpoint)
    model = VRNN(28, 100, 16, bias=False)
    with pytest.warns(UserWarning, match=r"dropped dec_std.0.weight, dec_std.0.bias") as caught:
        model.load_state_dict(checkpoint, strict=True)
    assert len(caught) == 1
    assert set(checkpoint) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint[name])
    assert {n for n in before if not n.startswith("dec_std")} == set(model.state_dict())


@pytest.mark.parametrize("gaussian", [False, True])
def test_dec_mean_is_the_same_key_with_and_without_its_place(gaussian: bool) -> None:
    theirs = copied(gaussian=gaussian)
    model = VRNN(28, 100, 16, bias=False, likelihood="bernoulli" if gaussian else "gaussian")
    if gaussian:
        with pytest.warns(UserWarning, match="dec_std"):
            model.load_state_dict(theirs)
    else:
        model.load_state_dict(theirs)
    head = "dec_mean.0" if gaussian else "dec_mean"
    assert torch.equal(
        model.get_parameter(f"{head}.weight"), theirs["dec_mean.weight" if gaussian else "dec_mean.0.weight"]
    )


def test_our_own_checkpoint_makes_the_round_trip() -> None:
    for likelihood in ("bernoulli", "gaussian"):
        a, b = (VRNN(5, 6, 3, cell="lstm", likelihood=likelihood) for _ in range(2))
        b.load_state_dict(a.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_model_inside_another_loads_too() -> None:
    outer = nn.ModuleDict({"net": VRNN(28, 100, 16, bias=False)})
    with pytest.warns(UserWarning, match=r"net\.dec_std\.0\.weight"):
        outer.load_state_dict({f"net.{name}": t for name, t in copied().items()})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore:dropped dec_std")
def test_a_bias_that_differs_is_named_with_the_argument_to_pass(bias: bool) -> None:
    with pytest.raises(RuntimeError, match=rf"(?s)rnn\.bias_ih_l0.*rnn\.bias_hh_l0.*build VRNN with bias={not bias}"):
        VRNN(28, 100, 16, bias=bias).load_state_dict(copied(bias=not bias))


@pytest.mark.filterwarnings("ignore:dropped dec_std")
def test_not_strict_is_torchs_own_leniency() -> None:
    report = VRNN(28, 100, 16).load_state_dict(copied(), strict=False)
    assert sorted(report.missing_keys) == ["rnn.bias_hh_l0", "rnn.bias_ih_l0"]


def test_another_fault_is_told_as_torch_tells_it() -> None:
    model = VRNN(5, 6, 3)
    state = model.state_dict()
    del state["enc.0.weight"]
    with pytest.raises(RuntimeError, match=r"enc\.0\.weight") as caught:
        model.load_state_dict(state)
    assert "bias=" not in str(caught.value)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_recurrence_is_torchs_in_names_shapes_order_and_draws(cell: str, bias: bool) -> None:
    model = VRNN(5, 6, 3, cell=cell, bias=bias)
    torch_cell = getattr(nn, cell.upper())(12, 6, bias=bias)
    assert [(n, p.shape) for n, p in model.rnn.named_parameters()] == [
        (n, p.shape) for n, p in torch_cell.named_parameters()
    ]
    torch_cell.load_state_dict(model.rnn.state_dict())
    torch.manual_seed(4)
    torch_cell = getattr(nn, cell.upper())(12, 6, bias=bias)
    torch.manual_seed(4)
    fresh = type(model.rnn)(model.spec)
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), torch_cell.parameters(), strict=True))
