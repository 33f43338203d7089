"""Every bad input to the model has its own words, before anything runs."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vrnn_fast
from vrnn_fast import VRNN, Gamma, Std, executors
from vrnn_fast.executors import reference
from vrnn_fast.executors.cpu import operators

X, H, Z, T, B = 5, 7, 3, 6, 4
NAN, INF = float("nan"), float("inf")


def x(*shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (T, B, X)))


FORWARD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x not a tensor": ({"x": [[[0.0]]]}, TypeError, "x must be a tensor, got list"),
    "x rank": ({"x": x(T, X)}, ValueError, "x must have 3 dimensions (T, B, input_size = 5), got 2: shape (6, 5)"),
    "x features": ({"x": x(T, B, 6)}, ValueError, "x must have shape (T, B, input_size = 5), got (6, 4, 6)"),
    "x dtype": (
        {"x": x().double()},
        ValueError,
        "x must have the parameters' dtype torch.float32, got torch.float64",
    ),
    "x device": ({"x": x().to("meta")}, ValueError, "x must be on the parameters' device cpu, got meta"),
    "x sparse": (
        {"x": x().to_sparse()},
        ValueError,
        "x must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
    "x mkldnn": ({"x": x().to_mkldnn()}, ValueError, "x must be a dense (strided) tensor, got layout torch._mkldnn"),
    "no steps": ({"x": x(0, B, X)}, ValueError, "x must have T >= 1, got shape (0, 4, 5)"),
    "no rows": ({"x": x(T, 0, X)}, ValueError, "x must have B >= 1, got shape (6, 0, 5)"),
    "lengths list": ({"lengths": [6, 6, 6, 6]}, TypeError, "lengths must be a tensor (B,) of int64, got list"),
    "lengths dtype": (
        {"lengths": torch.ones(B, dtype=torch.int32)},
        ValueError,
        "lengths must have dtype torch.int64, got torch.int32",
    ),
    "lengths float": (
        {"lengths": torch.ones(B)},
        ValueError,
        "lengths must have dtype torch.int64, got torch.float32",
    ),
    "lengths shape": (
        {"lengths": torch.ones(B + 1, dtype=torch.int64)},
        ValueError,
        "lengths must have shape (B = 4,), got (5,)",
    ),
    "lengths rank": (
        {"lengths": torch.ones(B, 1, dtype=torch.int64)},
        ValueError,
        "lengths must have shape (B = 4,), got (4, 1)",
    ),
    "lengths sparse": (
        {"lengths": torch.ones(B, dtype=torch.int64).to_sparse()},
        ValueError,
        "lengths must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
    "lengths negative": (
        {"lengths": torch.tensor([1, 2, -3, 4])},
        ValueError,
        "lengths must not be negative, got -3 for row 2",
    ),
    "lengths beyond T": (
        {"lengths": torch.tensor([1, 7, 3, 4])},
        ValueError,
        "lengths must be at most T = 6, got 7 for row 1",
    ),
    "all rows empty": (
        {"lengths": torch.zeros(B, dtype=torch.int64)},
        ValueError,
        "lengths must leave at least one real step, got 0 for every row",
    ),
    "state shape": (
        {"state": torch.zeros(1, B, H + 1)},
        ValueError,
        "state must have shape (num_layers = 1, B = 4, hidden_size = 7), got (1, 4, 8)",
    ),
    "state rank": (
        {"state": torch.zeros(B, H)},
        ValueError,
        "state must have 3 dimensions (num_layers = 1, B = 4, hidden_size = 7), got 2: shape (4, 7)",
    ),
    "state dtype": (
        {"state": torch.zeros(1, B, H).half()},
        ValueError,
        "state must have the parameters' dtype torch.float32, got torch.float16",
    ),
    "state a pair": ({"state": (x(), x())}, TypeError, "state must be a tensor, got tuple"),
    "eps shape": (
        {"eps": torch.zeros(T, B, Z + 1)},
        ValueError,
        "eps must have shape (T = 6, B = 4, Z = 3), got (6, 4, 4)",
    ),
    "eps dtype": (
        {"eps": torch.zeros(T, B, Z).double()},
        ValueError,
        "eps must have the parameters' dtype torch.float32, got torch.float64",
    ),
    "eps device": (
        {"eps": torch.zeros(T, B, Z, device="meta")},
        ValueError,
        "eps must be on the parameters' device cpu, got meta",
    ),
    "eps and generator": (
        {"eps": torch.zeros(T, B, Z), "generator": torch.Generator()},
        ValueError,
        "pass either `generator` or `eps`: nothing is left to draw",
    ),
    "generator": ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
    "beta": ({"beta": -0.5}, ValueError, "beta must be a number >= 0, got -0.5"),
    "beta nan": ({"beta": NAN}, ValueError, "beta must be a number >= 0, got nan"),
    "beta inf": ({"beta": INF}, ValueError, "beta must be finite, got inf"),
    "beta text": ({"beta": "1"}, TypeError, "beta must be a number >= 0 or a 0-d tensor, got '1'"),
    "beta tensor": (
        {"beta": torch.ones(2)},
        ValueError,
        "beta must be a number >= 0 or a 0-d tensor, got shape (2,)",
    ),
    "beta tensor value": ({"beta": torch.tensor(-2.0)}, ValueError, "beta must be a number >= 0, got -2.0"),
    "free_nats": ({"free_nats": -1}, ValueError, "free_nats must be a number >= 0, got -1"),
    "normalizer": ({"normalizer": 0}, ValueError, "normalizer must be a number > 0, got 0"),
    "normalizer negative": ({"normalizer": -2.0}, ValueError, "normalizer must be a number > 0, got -2.0"),
    "normalizer tensor": ({"normalizer": torch.tensor(0)}, ValueError, "normalizer must be a number > 0, got 0"),
    "beta flag of NumPy": (
        {"beta": np.bool_(True)},
        TypeError,
        "beta must be a number >= 0 or a 0-d tensor, got np.True_",
    ),
    "beta of NumPy": ({"beta": np.float32(-1)}, ValueError, "beta must be a number >= 0, got -1.0"),
    "normalizer flag": ({"normalizer": True}, TypeError, "normalizer must be a number > 0 or a 0-d tensor, got True"),
    "mask_inputs": ({"mask_inputs": "no"}, TypeError, "mask_inputs must be True or False, got 'no'"),
    "outputs": (
        {"outputs": ("prior", "decoder")},
        ValueError,
        "outputs may hold prior, prediction, got 'decoder'",
    ),
    "outputs twice": (
        {"outputs": ("prior", "prior")},
        ValueError,
        "outputs must not name anything twice, got ('prior', 'prior')",
    ),
    "outputs text": (
        {"outputs": "prior"},
        TypeError,
        "outputs must be a tuple of names out of prior, prediction, got 'prior'",
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_forward(case: str) -> None:
    arguments, kind, words = FORWARD[case]
    model = VRNN(X, H, Z)
    with pytest.raises(kind, match=re.escape(words)):
        model(**{"x": x(), **arguments})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_padded_before(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([x(T, X), x(2, X)], layout=layout)
    words = "x must be a dense .strided. tensor, got a nested one: pass its padded rows, .* and their lengths"
    with pytest.raises(ValueError, match=words):
        VRNN(X, H, Z, batch_first=True)(nested)


def test_lstm_state() -> None:
    model = VRNN(X, H, Z, cell="lstm")
    good, bad = torch.zeros(1, B, H), torch.zeros(1, B + 1, H)
    with pytest.raises(TypeError, match=re.escape("state of an LSTM must be a pair (h, c), got Tensor")):
        model(x(), state=good)
    with pytest.raises(
        ValueError, match=re.escape("state[1] must have shape (num_layers = 1, B = 4, hidden_size = 7)")
    ):
        model(x(), state=(good, bad))
    with pytest.raises(ValueError, match=re.escape("state[1] must have shape (num_layers = 1, B = 4, hidden_size")):
        model.generate(2, state=(good, bad))


def test_parameters_of_two_kinds() -> None:
    model = VRNN(X, H, Z)
    model.rnn.double()
    words = "parameter rnn.weight_ih_l0 must be torch.float32 on cpu as the first one is, got torch.float64 on cpu"
    with pytest.raises(ValueError, match=words):
        model(x())
    model = VRNN(X, H, Z)
    model.prior_mean.to("meta")
    with pytest.raises(ValueError, match=r"parameter prior_mean\.weight must be .* on cpu .*, got .* on meta"):
        model(x())


def test_batch_first_is_told_in_its_own_order() -> None:
    model = VRNN(X, H, Z, batch_first=True)
    with pytest.raises(ValueError, match=re.escape("x must have 3 dimensions (B, T, input_size = 5), got 2")):
        model(x(B, X))
    with pytest.raises(ValueError, match=re.escape("eps must have shape (B = 4, T = 6, Z = 3), got (6, 4, 3)")):
        model(x(B, T, X), eps=torch.zeros(T, B, Z))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_check_names_the_first_bad_index(executor: str, value: float) -> None:
    data = x()
    data[4, 2, 1], data[3, 3, 4], data[2, 0, 0] = value, value, NAN
    lengths = torch.tensor([2, 6, 6, 6])  # hides [2, 0, 0]
    with pytest.raises(ValueError, match=re.escape(f"x[3, 3, 4] is {value}: expected finite values")):
        VRNN(X, H, Z, check_values=True, backend=executor)(data, lengths=lengths)
    swapped = VRNN(X, H, Z, check_values=True, backend=executor, batch_first=True)
    with pytest.raises(ValueError, match=re.escape(f"x[3, 3, 4] is {value}")):
        swapped(data.transpose(0, 1), lengths=lengths)
    with pytest.raises(ValueError, match=re.escape("x_t[0, 0] is nan")):
        VRNN(X, H, Z, check_values=True, backend=executor).step(data[2], None)


def test_check_lets_hidden_values_be(executor: str) -> None:
    """What was not observed has no likelihood, so that it may lie outside of its support; what a network reads must be
    finite."""
    model = VRNN(X, H, Z, likelihood=Gamma(2.0), check_values=True, backend=executor)
    data, mask = torch.rand(T, B, X) + 0.1, torch.rand(T, B, X) < 0.7
    mask[2, 1, 3], mask[2, 1, 4] = True, False
    hidden = data.masked_fill(~mask, NAN)
    assert model(hidden, mask=mask, mask_inputs=True).loss.isfinite()
    assert model(data.masked_fill(~mask, -1.0), mask=mask).loss.isfinite()
    with pytest.raises(ValueError, match=re.escape("is nan: expected finite values in GreaterThan")):
        model(hidden, mask=mask)
    data[2, 1, 3] = -1.0
    with pytest.raises(ValueError, match=re.escape("x[2, 1, 3] is -1.0: expected finite values in GreaterThan")):
        model(data, mask=mask, mask_inputs=True)


def test_without_check_nan_stays_in_its_row(executor: str) -> None:
    data, eps = x(), torch.randn(T, B, Z)
    model = VRNN(X, H, Z, backend=executor)
    clean = model(data, eps=eps)
    data[3, 2, 1] = NAN
    out = model(data, eps=eps)
    others = [0, 1, 3]
    assert out.loss.isnan()
    assert torch.equal(out.nll[:, others], clean.nll[:, others])
    assert torch.equal(out.state[:, others], clean.state[:, others])
    assert torch.equal(out.nll[:3], clean.nll[:3])
    assert out.nll[3:, 2].isnan().all()
    assert out.elbo[2].isnan()


STEP: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"x_t": x(1, B, X)}, ValueError, "x_t must have 2 dimensions (B, input_size = 5), got 3"),
    "features": ({"x_t": x(B, 4)}, ValueError, "x_t must have shape (B, input_size = 5), got (4, 4)"),
    "dtype": ({"x_t": x(B, X).half()}, ValueError, "x_t must have the parameters' dtype"),
    "state": ({"state": torch.zeros(1, 1, H)}, ValueError, "state must have shape (num_layers = 1, B = 4"),
    "eps": ({"eps": torch.zeros(1, B, Z)}, ValueError, "eps must have 2 dimensions (B = 4, Z = 3), got 3"),
}


@pytest.mark.parametrize("case", STEP)
def test_step(case: str) -> None:
    arguments, kind, words = STEP[case]
    with pytest.raises(kind, match=re.escape(words)):
        VRNN(X, H, Z).step(**{"x_t": x(B, X), "state": None, **arguments})


GENERATE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "num_steps": ({"num_steps": 0}, ValueError, "num_steps must be a positive int, got 0"),
    "num_steps float": ({"num_steps": 2.0}, ValueError, "num_steps must be a positive int, got 2.0"),
    "batch_size": ({"batch_size": -1}, ValueError, "batch_size must be a positive int, got -1"),
    "batch_size of the prefix": (
        {"prefix": x(), "batch_size": 3},
        ValueError,
        "batch_size must be the prefix's, 4, or left out, got 3",
    ),
    "batch_size of the state": (
        {"state": torch.zeros(1, B, H), "batch_size": 3},
        ValueError,
        "batch_size must be the state's, 4, or left out, got 3",
    ),
    "state": (
        {"state": torch.zeros(B, H)},
        ValueError,
        "state must have 3 dimensions (num_layers = 1, B, hidden_size = 7), got 2: shape (4, 7)",
    ),
    "state of no rows": ({"state": torch.zeros(1, 0, H)}, ValueError, "state must have B >= 1, got shape (1, 0, 7)"),
    "state and prefix": (
        {"state": torch.zeros(1, B, H), "prefix": x()},
        ValueError,
        "pass either `state` or `prefix`: the prefix determines the state",
    ),
    "state and lengths": (
        {"state": torch.zeros(1, 1, H), "lengths": torch.tensor([3])},
        ValueError,
        "lengths are those of a prefix: pass prefix too",
    ),
    "lengths alone": (
        {"lengths": torch.tensor([3])},
        ValueError,
        "lengths are those of a prefix: pass prefix too",
    ),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be a number > 0, got 0.0"),
    "temperature tensor": (
        {"temperature": torch.ones(2)},
        ValueError,
        "temperature must be a number > 0 or a 0-d tensor, got shape (2,)",
    ),
    "sample_output": ({"sample_output": "no"}, TypeError, "sample_output must be True or False, got 'no'"),
    "generator": ({"generator": 1}, TypeError, "generator must be a torch.Generator, got int"),
    "prefix": ({"prefix": x(T, B, 2)}, ValueError, "prefix must have shape (T, B, input_size = 5), got (6, 4, 2)"),
    "prefix lengths": (
        {"prefix": x(), "lengths": torch.tensor([9, 1, 1, 1])},
        ValueError,
        "lengths must be at most T = 6, got 9 for row 0",
    ),
}


@pytest.mark.parametrize("case", GENERATE)
def test_generate(case: str) -> None:
    arguments, kind, words = GENERATE[case]
    with pytest.raises(kind, match=re.escape(words)):
        VRNN(X, H, Z).generate(**{"num_steps": 3, **arguments})


BUILD: dict[str, tuple[Callable[[], Any], str]] = {
    "input_size": (lambda: VRNN(0, H, Z), "input_size must be a positive int, got 0"),
    "hidden_size": (lambda: VRNN(X, -1, Z), "hidden_size must be a positive int, got -1"),
    "latent_size": (lambda: VRNN(X, H, 2.0), "latent_size must be an int >= 0, got 2.0"),  # type: ignore[arg-type]
    "latent_size negative": (lambda: VRNN(X, H, -1), "latent_size must be an int >= 0, got -1"),
    "no z": (
        lambda: VRNN(X, H, 0, phi_z=(3,)),
        "with latent_size=0 there is no z: phi_z, encoder and prior must be ()",
    ),
    "num_layers": (lambda: VRNN(X, H, Z, num_layers=0), "num_layers must be an int from 1 to 8, got 0"),
    "too many layers": (lambda: VRNN(X, H, Z, num_layers=9), "num_layers must be an int from 1 to 8, got 9"),
    "cond_size": (lambda: VRNN(X, H, Z, cond_size=-1), "cond_size must be an int >= 0, got -1"),
    "cond_networks": (
        lambda: VRNN(X, H, Z, cond_size=2, cond_networks=("encoder", "phi_x")),  # type: ignore[arg-type]
        "cond_networks may hold encoder, prior, decoder, phi_z, cell, got 'phi_x'",
    ),
    "cond_networks twice": (
        lambda: VRNN(X, H, Z, cond_size=2, cond_networks=("prior", "prior")),
        "cond_networks must not name anything twice, got ('prior', 'prior')",
    ),
    "cond_networks nobody": (
        lambda: VRNN(X, H, Z, cond_size=2, cond_networks=()),
        "cond_networks must name who reads the conditioning input, got ()",
    ),
    "cond_networks a prior of no parameters": (
        lambda: VRNN(X, H, Z, cond_size=2, cond_networks=("prior",), prior="standard_normal"),
        "cond_networks must name who reads the conditioning input, got ('prior',)",
    ),
    "input_order": (
        lambda: VRNN(X, H, Z, input_order={"encoder": ("h", "x")}),
        "input_order of encoder must be h, phi_x in some order, got ('h', 'x')",
    ),
    "columns of the decoder": (
        lambda: VRNN(X, H, Z, input_order={"decoder": ("z", "phi_z", "h")}),
        "decoder must be h, phi_z in some order, z in the place of phi_z or not, got ('z', 'phi_z', 'h')",
    ),
    "columns of the cell": (
        lambda: VRNN(X, H, Z, input_order={"cell": ("phi_x",)}),
        "input_order of cell must be phi_x, phi_z in some order, with or without phi_x, got ('phi_x',)",
    ),
    "columns of a cell that would see nothing": (
        lambda: VRNN(X, H, 0, input_order={"cell": ()}),
        "input_order of cell must be phi_x in some order, got ()",
    ),
    "layer_norm": (
        lambda: VRNN(X, H, Z, layer_norm=("cell",)),
        "layer_norm may hold phi_x, phi_z, encoder, prior, decoder, got 'cell'",
    ),
    "layer_norm_eps": (lambda: VRNN(X, H, Z, layer_norm_eps=-1), "norm_eps must be a number > 0, got -1"),
    "columns of a net of one": (
        lambda: VRNN(X, H, Z, input_order={"phi_x": ("x",)}),
        "input_order may name those of phi_z, encoder, prior, decoder and cell, got 'phi_x'",
    ),
    "activations": (
        lambda: VRNN(X, H, Z, activation={"cell": "tanh"}),
        "encoder, prior, decoder, enc_mean, enc_std, prior_mean, prior_std, dec_mean, got 'tanh' for 'cell'",
    ),
    "an activation too many": (
        lambda: VRNN(X, H, Z, activation={"prior": ("relu", "identity")}),
        "activation must name one for each of prior's 1 hidden layers, got ('relu', 'identity')",
    ),
    "an activation of several that is none": (
        lambda: VRNN(X, H, Z, activation={"decoder": ("relu", None)}),  # type: ignore[dict-item]
        "activation may name one of relu, leaky_relu, tanh, elu, identity, silu, gelu, or one for each hidden layer, ",
    ),
    "head_layers of no head": (
        lambda: VRNN(X, H, Z, head_layers={"dec_std": (4,)}),
        "head_layers may be given for each of enc_mean, enc_std, prior_mean, prior_std, dec_mean, got 'dec_std'",
    ),
    "head_layers of a head": (
        lambda: VRNN(X, H, Z, head_layers={"dec_mean": 4}),  # type: ignore[dict-item]
        "head_layers of dec_mean must be a tuple of positive layer widths, got 4",
    ),
    "head_layers": (lambda: VRNN(X, H, Z, head_layers=(0,)), "head_layers must be a tuple of positive layer widths"),
    "cell": (lambda: VRNN(X, H, Z, cell="mlp"), "cell must be one of gru, lstm, rnn, got 'mlp'"),  # type: ignore[arg-type]
    "nonlinearity": (
        lambda: VRNN(X, H, Z, nonlinearity="relu"),
        "nonlinearity is for cell='rnn', got 'relu' with cell='gru'",
    ),
    "activation": (
        lambda: VRNN(X, H, Z, activation="gelu_tanh"),  # type: ignore[arg-type]
        "activation must be one of relu, leaky_relu, tanh, elu, identity, silu, gelu, got 'gelu_tanh'",
    ),
    "std": (lambda: VRNN(X, H, Z, std="exp"), "std must be one of softplus, log_std, log_variance, got 'exp'"),  # type: ignore[arg-type]
    "std floor": (lambda: Std(floor=-1), "std's floor must be a number >= 0, got -1"),
    "std offset": (lambda: Std(offset=NAN), "std's offset must be a finite number, got nan"),
    "std sharpness": (
        lambda: Std(sharpness=0),
        "std's sharpness must be a number > 0, got 0",
    ),
    "std sharpness of exp": (
        lambda: Std("log_std", sharpness=2),
        "std's sharpness must be 1 without a softplus, got 2",
    ),
    "std clamp": (lambda: Std(clamp=(2, 1)), "std's clamp must be (low, high), a number and a larger one, got (2, 1)"),
    "residual": (
        lambda: VRNN(X, H, Z, residual=True, prior="standard_normal"),
        "residual adds the prior's mean, and that of a standard normal prior is zero",
    ),
    "widths": (lambda: VRNN(X, H, Z, prior=(3, 0)), "prior must be a tuple of positive layer widths, got (3, 0)"),
    "prior": (
        lambda: VRNN(X, H, Z, prior="normal"),  # type: ignore[arg-type]
        "prior must be 'standard_normal' or a tuple of positive layer widths, got 'normal'",
    ),
    "width": (lambda: VRNN(X, H, Z, phi_x=4), "phi_x must be a tuple of positive layer widths, got 4"),  # type: ignore[arg-type]
    "backend": (
        lambda: VRNN(X, H, Z, backend="tpu"),
        "backend must be one of auto, cpu, cuda, triton, reference, got 'tpu'",
    ),
    "new_state": (lambda: VRNN(X, H, Z).new_state(0), "batch_size must be a positive int, got 0"),
}


@pytest.mark.parametrize("case", BUILD)
def test_build(case: str) -> None:
    build, words = BUILD[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        build()


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        (("h",), "input_order must be a mapping of networks to tuples of sources, got ('h',)"),
        ({"encoder": 3}, "input_order of encoder must be a tuple of sources, got 3"),
        ({"encoder": {"h", "phi_x"}}, "input_order of encoder must be a tuple of sources, got {"),
        ({"encoder": "h"}, "input_order of encoder must be a tuple of sources, got 'h'"),
    ],
)
def test_build_with_an_order_that_is_none(orders: Any, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        VRNN(X, H, Z, input_order=orders)


def test_the_constants_of_a_standard_deviation_are_named() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        Std("softplus", 0.5)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["bias", "packed_heads", "residual", "batch_first", "recompute", "check_values"])
@pytest.mark.parametrize("value", [None, "no", 1])
def test_build_with_a_flag_that_is_none(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{name} must be True or False, got {value!r}")):
        VRNN(X, H, Z, **{name: value})


def test_numbers_may_be_those_of_numpy() -> None:
    model, data, eps = VRNN(X, H, Z), x(), torch.randn(T, B, Z)
    expected = model(data, eps=eps, beta=0.5, free_nats=2.0, normalizer=5)
    found = model(data, eps=eps, beta=np.float32(0.5), free_nats=np.float16(2.0), normalizer=np.int64(5))
    assert torch.equal(found.loss, expected.loss)

    def seeded(call: Callable[..., Any], *arguments: Any, **options: Any) -> torch.Tensor:
        found = call(*arguments, generator=torch.Generator().manual_seed(0), **options)
        return found[0] if isinstance(found, tuple) else found

    for number in (np.float32(0.5), Fraction(1, 2)):
        fivo = functools.partial(model.bound, data, objective="fivo", num_particles=4)
        assert torch.equal(seeded(fivo, threshold=number), seeded(fivo, threshold=0.5))
        assert torch.equal(
            seeded(model.generate, 3, temperature=number), seeded(model.generate, 3, temperature=torch.tensor(0.5))
        )


def test_a_named_backend_never_falls_back() -> None:
    model = VRNN(X, H, Z, backend="cpu", dtype=torch.float16)
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: "):
        model(x().half())
    model.backend = "gpu"
    with pytest.raises(ValueError, match="backend must be one of auto, cpu, cuda, triton, reference, got 'gpu'"):
        model(x().half())


def test_auto_says_once_why_it_passed_an_executor_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_announced", set())
    model = VRNN(X, H, Z, dtype=torch.float16)
    with pytest.warns(UserWarning, match="running on 'reference', not on 'cpu': ") as caught:
        model(x().half())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x().half())
    assert caught[0].filename == __file__


def test_a_missing_extension_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_announced", set())
    monkeypatch.setitem(executors._UNAVAILABLE, "cpu", "the extension is not built")
    assert vrnn_fast.backends()["cpu"].reason == "the extension is not built"
    assert not vrnn_fast.backends()["cpu"].available
    model = VRNN(X, H, Z)
    with pytest.warns(UserWarning, match="running on 'reference', not on 'cpu': the extension is not built"):
        model(x())
    assert "not cpu: the extension is not built" in model.explain()
    model.backend = "cpu"
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: the extension is not built"):
        model(x())


def test_an_unbuilt_checkout_beside_an_installed_package(tmp_path: Path) -> None:
    """Python prefers the folder that it was started in: warning and explain() name it, and what to do."""
    for parent in ("checkout", "site"):
        for source in Path(vrnn_fast.__path__[0]).rglob("*.py"):
            copied = tmp_path / parent / "vrnn_fast" / source.relative_to(vrnn_fast.__path__[0])
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(source.read_bytes())
    code = (
        "import warnings, torch, vrnn_fast\n"
        "model = vrnn_fast.VRNN(3, 5, 2)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    model(torch.rand(2, 1, 3))\n"
        "print(caught[0].message, model.explain(), sep='\\n')\n"
    )

    (tmp_path / "site" / "vrnn_fast" / "_ops.so").touch()
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run(
        command, cwd=tmp_path / "checkout", env=environment, capture_output=True, text=True, check=True
    ).stdout
    words = (
        f"the extension is not built in {tmp_path / 'checkout' / 'vrnn_fast'}, the folder that was imported; "
        f"{tmp_path / 'site' / 'vrnn_fast'} holds a built one: start Python in another folder than"
    )
    assert found.count(words) == 2, found
    alone = operators._unbuilt(tmp_path / "other" / "_ops.so")
    assert (
        f"not built in {tmp_path / 'other'}, the folder that was imported (pip install --no-build-isolation -e" in alone
    )


def test_explain_says_what_a_call_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VRNN(X, H, Z)
    monkeypatch.setenv("VRNN_FAST_ISA", "baseline")
    assert "cpu: forward 1 operator call, backward 1, each one parallel region of baseline code" in model.explain()
    monkeypatch.setenv("VRNN_FAST_ISA", "avx9")
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        model.explain([1.0])  # type: ignore[arg-type]
    for call in (model.explain, lambda: model(x())):
        with pytest.raises(RuntimeError, match="VRNN_FAST_ISA is 'avx9'; this machine can run: baseline"):
            call()


def test_reference_is_always_there() -> None:
    assert vrnn_fast.backends()["reference"].available
    assert reference.unavailable() is None
