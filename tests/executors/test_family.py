"""The members of the family through the module: what each argument means, on every executor of this machine."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.peers.eager import EagerVRNN
from tests.support.likelihoods import Laplace
from vrnn_fast import VRNN, FixedGaussian, Gaussian, GaussianMixture, Std

X, H, Z, C, T, B = 5, 7, 3, 2, 6, 4
LENGTHS = torch.tensor([6, 0, 3, 1])
EVERYWHERE = ("encoder", "prior", "decoder", "cell")
MEMBERS: dict[str, dict[str, Any]] = {
    "two layers": {"num_layers": 2},
    "three LSTM layers": {"num_layers": 3, "cell": "lstm"},
    "simple cell": {"cell": "rnn"},
    "linear cell": {"cell": "rnn", "nonlinearity": "identity"},
    "residual": {"residual": True},
    "standard normal prior": {"prior": "standard_normal"},
    "deep heads": {"head_layers": (4, 3)},
    "affine ends": {
        "activation": {"phi_x": ("tanh", "identity"), "phi_z": ("identity",), "prior": "tanh", "encoder": "tanh"}
    },
    "heads of their own": {
        "head_layers": {"enc_std": (4, 3), "prior_mean": (5,), "dec_mean": (4,)},
        "activation": {"enc_std": ("elu", "identity"), "encoder": "tanh"},
        "encoder": (),
    },
    "packed heads": {"packed_heads": True},
    "normalised": {"layer_norm": True, "head_layers": (4,), "activation": "silu"},
    "log variance": {"std": "log_variance"},
    "conditioned": {"cond_size": C, "cond_networks": EVERYWHERE},
    "no z": {"latent_size": 0},
}


def build(executor: str, **options: Any) -> VRNN:
    sizes = {"input_size": X, "hidden_size": H, "latent_size": Z}
    return VRNN(**{**sizes, "backend": executor, "dtype": torch.float64, **options})


def data(model: VRNN) -> dict[str, Tensor]:
    given = {"x": torch.rand(T, B, X).round().double(), "eps": torch.randn(T, B, model.latent_size).double()}
    if model.spec.cond_size:
        given["cond"] = torch.randn(T, B, model.spec.cond_size).double()
    return given


def parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("member", MEMBERS)
def test_steps_chained_equal_a_sequence(executor: str, member: str) -> None:
    model = build(executor, **MEMBERS[member])
    given = data(model)
    whole = model(**given)
    state = model.new_state(B)
    assert [s.shape for s in parts(state)] == [(model.num_layers, B, H)] * (2 if model.spec.cell == "lstm" else 1)
    for t in range(T):
        step = model.step(given["x"][t], state, given["eps"][t], *([given["cond"][t]] if "cond" in given else []))
        torch.testing.assert_close((step.nll, step.kl), (whole.nll[t], whole.kl[t]))
        state = step.state
    torch.testing.assert_close(state, whole.state)


@pytest.mark.parametrize("member", MEMBERS)
def test_batch_first_is_the_same_transposed(executor: str, member: str) -> None:
    model = build(executor, **MEMBERS[member])
    swapped = build(executor, batch_first=True, **MEMBERS[member])
    swapped.load_state_dict(model.state_dict())
    given = data(model) | {"resets": torch.rand(T, B) < 0.3, "mask": torch.rand(T, B, X) < 0.7}
    a = model(**given, lengths=LENGTHS)
    b = swapped(**{name: t.transpose(0, 1) for name, t in given.items()}, lengths=LENGTHS)
    torch.testing.assert_close((a.loss, a.nll, a.kl), (b.loss, b.nll.T, b.kl.T))
    torch.testing.assert_close(a.state, b.state)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_parameter_is_used_and_trained(executor: str, member: str) -> None:
    model = build(executor, **({"activation": "tanh"} | MEMBERS[member]))
    assert [p.name for p in model.spec.parameters()] == sorted(
        dict(model.named_parameters()), key=[p.name for p in model.spec.parameters()].index
    )
    model(**data(model)).loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert (p.grad != 0).any(), name


@pytest.mark.parametrize("member", MEMBERS)
def test_generation_continues_a_prefix(executor: str, member: str) -> None:
    model = build(executor, **MEMBERS[member])
    cond = {"cond": torch.randn(9, B, C).double()} if model.spec.cond_size else {}
    samples, state = model.generate(9, batch_size=B, generator=torch.Generator().manual_seed(1), **cond)
    again, _ = model.generate(9, batch_size=B, generator=torch.Generator().manual_seed(1), **cond)
    assert samples.shape == (9, B, X)
    assert torch.equal(samples, again)
    assert [s.shape for s in parts(state)] == [s.shape for s in parts(model.new_state(B))]
    given = data(model)
    prefix = {"prefix": given["x"], "lengths": LENGTHS} | ({"prefix_cond": given["cond"]} if cond else {})
    continued, _ = model.generate(9, **prefix, **cond)
    assert continued.shape == (9, B, X)


def test_layers_are_chained_as_in_torch(executor: str) -> None:
    model = build(executor, num_layers=3, cell="lstm")
    torch_cell = nn.LSTM(2 * H, H, 3).double()
    torch_cell.load_state_dict(model.rnn.state_dict())
    names = [name for name, _ in torch_cell.named_parameters()]
    assert [name for name, _ in model.rnn.named_parameters()] == names
    given, start = data(model), tuple(torch.randn(3, B, H).double() for _ in range(2))
    out = model(**given, state=start)
    with torch.no_grad():
        read = torch.cat([model.phi_x(given["x"]), model.phi_z(out.latent)], -1)
        _, after = torch_cell(read, start)
    torch.testing.assert_close(out.state, after)


def test_the_cells_width_is_free_of_the_networks(executor: str) -> None:
    nets = {"phi_x": (4,), "phi_z": (6,), "encoder": (5,), "prior": (2,), "decoder": (8,)}
    model = VRNN(X, 31, Z, num_layers=2, backend=executor, dtype=torch.float64, **nets)
    eager = EagerVRNN(X, 31, Z, num_layers=2, **nets).double()
    eager.load_state_dict(model.state_dict())
    given = data(model)
    torch.testing.assert_close(model(**given).nll, eager(given["x"], given["eps"]).nll)


def test_heads_with_hidden_layers_have_the_names_of_a_sequence() -> None:
    model = VRNN(X, H, Z, prior=(9,), head_layers=(8, 4), likelihood="gaussian")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.startswith("prior_")}
    widths = {"0": (8, 9), "2": (4, 8), "4": (Z, 4)}
    weights = {f"prior_{n}.{i}.weight": shape for n in ("mean", "std") for i, shape in widths.items()}
    assert {n: s for n, s in shapes.items() if n.endswith("weight")} == weights
    with torch.no_grad():
        h = torch.randn(1, B, H)
        prior = model(torch.randn(1, B, X), state=h, outputs=("prior",)).prior
        torch.testing.assert_close(prior.mean[0], model.prior_mean(model.prior(h[0])))
        torch.testing.assert_close(prior.std[0], model.prior_std(model.prior(h[0])) + 1e-6)


def test_packed_heads_are_one_layer_with_the_mean_first(executor: str) -> None:
    model = build(executor, packed_heads=True, likelihood="gaussian")
    assert model.enc_params.weight.shape == model.prior_params.weight.shape == (2 * Z, H)
    assert model.dec_params.weight.shape == (2 * X, H)
    h = torch.randn(1, B, H).double()
    given = data(model)
    prior = model(given["x"][:1], state=h, eps=given["eps"][:1], outputs=("prior",)).prior
    with torch.no_grad():
        mean, raw = model.prior_params(model.prior(h)).chunk(2, -1)
    torch.testing.assert_close((prior.mean, prior.std), (mean, nn.functional.softplus(raw) + 1e-6))


def test_a_residual_posterior_starts_from_the_prior(executor: str) -> None:
    model = build(executor, residual=True)
    with torch.no_grad():
        model.enc_mean.weight.zero_()
        model.enc_mean.bias.zero_()
    out = model(**data(model), outputs=("prior",))
    assert torch.equal(out.posterior.mean, out.prior.mean)


def test_a_standard_normal_prior_has_no_parameters(executor: str) -> None:
    model = build(executor, prior="standard_normal")
    assert not [name for name, _ in model.named_parameters() if name.startswith("prior")]
    out = model(**data(model), outputs=("prior",))
    mean, std = out.posterior
    torch.testing.assert_close(out.kl, 0.5 * (mean**2 + std**2 - 2 * std.log() - 1).sum(-1))
    assert (out.prior.mean == 0).all()
    assert (out.prior.std == 1).all()


def test_the_gradient_reaches_the_conditioning_input(executor: str) -> None:
    for to in (EVERYWHERE, ("prior",), ("cell",)):
        model = build(executor, cond_size=C, cond_networks=to)
        given = data(model)
        given["cond"].requires_grad_()
        given["x"].requires_grad_()
        model(**given, lengths=LENGTHS).loss.backward()
        gradient = given["cond"].grad
        real = torch.arange(T)[:, None] < LENGTHS
        assert (gradient[~real] == 0).all()
        within = (
            real if to != ("cell",) else torch.arange(T)[:, None] < LENGTHS - 1
        )  # the last step's h is read by none
        assert (gradient[within] != 0).all()


def test_conditioning_may_hold_anything_at_padding(executor: str) -> None:
    model = build(executor, cond_size=C)
    given = data(model)
    clean = model(**given, lengths=LENGTHS).loss
    given["cond"][torch.arange(T)[:, None] >= LENGTHS] = float("nan")
    assert torch.equal(model(**given, lengths=LENGTHS).loss, clean)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_a_reset_is_a_new_sequence(executor: str, cell: str, layers: int) -> None:
    model = build(executor, cell=cell, num_layers=layers)
    given = data(model)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = resets[4, 1] = resets[0, 3] = True
    start = tuple(torch.randn(layers, B, H).double().requires_grad_() for _ in range(2 if cell == "lstm" else 1))
    packed = start if cell == "lstm" else start[0]
    out = model(**given, state=packed, resets=resets)
    plain = model(**given, state=packed)
    torch.testing.assert_close(out.nll[:, (0, 2)], plain.nll[:, (0, 2)])
    for row, begin, end in ((1, 2, 4), (1, 4, T), (3, 0, T)):
        alone = model(given["x"][begin:end, row : row + 1], eps=given["eps"][begin:end, row : row + 1])
        torch.testing.assert_close(out.nll[begin:end, row : row + 1], alone.nll)
        torch.testing.assert_close(out.kl[begin:end, row : row + 1], alone.kl)
    gradients = torch.autograd.grad(out.loss, start)
    for g in gradients:
        assert (g[:, 3] == 0).all()
    later = torch.autograd.grad(model(**given, state=packed, resets=resets).nll[2:, 1].sum(), start)
    assert all((g == 0).all() for g in later)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_a_reset_goes_to_the_initial_state_and_trains_it(executor: str, cell: str, layers: int) -> None:
    model = build(executor, cell=cell, num_layers=layers, learn_initial_state=True)
    with torch.no_grad():
        model.get_parameter("initial_state").normal_()
    given = data(model)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = resets[4, 1] = resets[0, 3] = True
    out = model(**given, resets=resets)
    pieces = ((0, 0, T), (1, 0, 2), (1, 2, 4), (1, 4, T), (2, 0, T), (3, 0, T))
    alone = 0.0
    for row, begin, end in pieces:
        piece = model(given["x"][begin:end, row : row + 1], eps=given["eps"][begin:end, row : row + 1])
        torch.testing.assert_close(out.nll[begin:end, row : row + 1], piece.nll)
        alone = alone + (piece.nll + piece.kl).sum() / (T * B)
    torch.testing.assert_close(out.loss, alone)
    wanted = dict(model.named_parameters())
    found, right = (torch.autograd.grad(loss, list(wanted.values())) for loss in (out.loss, alone))
    for name, ours, theirs in zip(wanted, found, right, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")
    assert right[list(wanted).index("initial_state")].all()
    bound = model.bound(given["x"], objective="iwae", num_particles=2, resets=resets)
    assert torch.autograd.grad(bound.sum(), [wanted["initial_state"]])[0].isfinite().all()


def test_an_initial_state_may_be_set_as_a_parameter(executor: str) -> None:
    model = build(executor)
    model.initial_state = nn.Parameter(torch.randn(1, 1, H).double())
    other = build(executor, learn_initial_state=True)
    other.load_state_dict(model.state_dict())
    given = data(model)
    resets = torch.rand(T, B) < 0.3
    assert torch.equal(other(**given, resets=resets).loss, model(**given, resets=resets).loss)
    assert "initial_state" in dict(model.named_parameters())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_mask_leaves_out_what_was_not_observed(executor: str, likelihood: str) -> None:
    model = build(executor, likelihood=likelihood)
    given = data(model)
    mask = torch.rand(T, B, X) < 0.6
    mask[1, 2] = False
    out = model(**given, mask=mask, outputs=("prediction",))
    if likelihood == "bernoulli":
        density = torch.distributions.Bernoulli(out.prediction).log_prob(given["x"])
    else:
        density = torch.distributions.Normal(*out.prediction).log_prob(given["x"])
    torch.testing.assert_close(out.nll, -(density * mask).sum(-1))
    assert out.nll[1, 2] == 0
    assert torch.equal(model(**given, mask=torch.ones_like(mask)).nll, model(**given).nll)

    hidden = given | {"x": given["x"].masked_fill(~mask, float("nan")).requires_grad_()}
    shown = given | {"x": given["x"].masked_fill(~mask, 0.0)}
    blind = model(**hidden, mask=mask, mask_inputs=True)
    assert torch.equal(blind.loss, model(**shown, mask=mask).loss)
    blind.loss.backward()
    assert hidden["x"].grad.isfinite().all()
    assert (hidden["x"].grad[~mask] == 0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_without_z_it_is_an_ordinary_recurrent_network(executor: str) -> None:
    """RNN-Gauss and RNN-GMM of the paper: h_t of torch's own GRU, the likelihood of a linear layer's output."""
    x = torch.randn(T, B, X).double()
    for likelihood in (Gaussian(), GaussianMixture(3)):
        model = VRNN(X, H, 0, phi_x=(), decoder=(), likelihood=likelihood, backend=executor, dtype=torch.float64)
        names = {n.partition(".")[0] for n, _ in model.named_parameters()}
        assert not names & {"phi_z", "enc", "enc_mean", "prior"}
        gru = nn.GRU(X, H).double()
        gru.load_state_dict(model.rnn.state_dict())
        with torch.no_grad():
            h, _ = gru(x)
            read = torch.cat([torch.zeros(1, B, H).double(), h[:-1]])
            raw = torch.cat(
                [
                    nn.functional.linear(
                        read, model.get_parameter(f"{head}.weight"), model.get_parameter(f"{head}.bias")
                    )
                    for head, _ in model.spec.decoder_heads
                ],
                -1,
            )
        out = model(x)
        torch.testing.assert_close(out.nll, -likelihood.log_prob(raw, x))
        assert (out.kl == 0).all()
        assert out.latent.shape == (T, B, 0)
        out.loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        assert model.generate(3, batch_size=2)[0].shape == (3, 2, X)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "layer_norm_eps": 0.1, "activation": "gelu"}], ids=str)
def test_one_step_is_a_variational_autoencoder(executor: str, options: dict[str, Any]) -> None:
    """T = 1 from a zero state, a standard normal prior: Kingma and Welling 2014, a frame at a time."""
    model = build(executor, prior="standard_normal", likelihood=FixedGaussian(0.5), **options)
    assert any(isinstance(module, nn.LayerNorm) for module in model.modules()) == bool(options)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()  # scales and shifts too
    x, eps = torch.randn(1, B, X).double(), torch.randn(1, B, Z).double()
    h = torch.zeros(B, H).double()
    with torch.no_grad():
        e = model.enc(torch.cat([model.phi_x(x[0]), h], 1))
        q = torch.distributions.Normal(model.enc_mean(e), model.enc_std(e) + 1e-6)
        d = model.dec(torch.cat([model.phi_z(q.loc + q.scale * eps[0]), h], 1))
        p = torch.distributions.Normal(model.dec_mean(d), 0.5)
    out = model(x, eps=eps)
    standard = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(out.nll[0], -p.log_prob(x[0]).sum(1))
    torch.testing.assert_close(out.kl[0], torch.distributions.kl_divergence(q, standard).sum(1))


def test_a_standard_deviation_with_its_constants(executor: str) -> None:
    model = build(executor, std=Std("softplus", sharpness=math.log(2), floor=0, min_std=0.3))
    out = model(**data(model), outputs=("prior",))
    h = torch.cat([torch.zeros(1, B, H).double()])
    with torch.no_grad():
        raw = model.prior_std[0](model.prior(h))
        expected = nn.functional.softplus(raw, beta=math.log(2)).clamp(0.3)
    torch.testing.assert_close(out.prior.std[:1], expected)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "no cond": ({"cond_size": C}, {}, ValueError, "cond must be given: this model was built with cond_size=2"),
    "cond too many": ({}, {"cond": torch.zeros(T, B, C)}, ValueError, "cond must be left out: this model"),
    "cond shape": (
        {"cond_size": C},
        {"cond": torch.zeros(T, B, 3).double()},
        ValueError,
        "cond must have shape (T = 6, B = 4, cond_size = 2), got (6, 4, 3)",
    ),
    "resets dtype": (
        {},
        {"resets": torch.zeros(T, B)},
        ValueError,
        "resets must have dtype torch.bool, got torch.float",
    ),
    "resets shape": (
        {},
        {"resets": torch.zeros(B, T, dtype=torch.bool)},
        ValueError,
        "resets must have shape (T = 6, B = 4), got (4, 6)",
    ),
    "resets list": ({}, {"resets": [[True]]}, TypeError, "resets must be a tensor, got list"),
    "mask dtype": ({}, {"mask": torch.ones(T, B, X)}, ValueError, "mask must have dtype torch.bool"),
    "mask shape": (
        {},
        {"mask": torch.ones(T, B, 2, dtype=torch.bool)},
        ValueError,
        "mask must have shape (T = 6, B = 4, input_size = 5), got (6, 4, 2)",
    ),
    "mask of another likelihood": (
        {"likelihood": Laplace()},
        {"mask": torch.ones(T, B, X, dtype=torch.bool)},
        ValueError,
        "mask needs a likelihood with marginal_log_prob, and Laplace has none",
    ),
    "mask_inputs alone": ({}, {"mask_inputs": True}, ValueError, "mask_inputs needs a mask"),
    "layers of the state": (
        {"num_layers": 2},
        {"state": torch.zeros(1, B, H).double()},
        ValueError,
        "state must have shape (num_layers = 2, B = 4, hidden_size = 7), got (1, 4, 7)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, arguments, kind, words = BAD[case]
    with pytest.raises(kind, match=re.escape(words)):
        build("reference", **options)(torch.zeros(T, B, X).double(), **arguments)


def test_check_looks_at_the_condition(executor: str) -> None:
    model = build(executor, cond_size=C, check_values=True)
    given = data(model)
    given["cond"][2, 0, 1] = given["cond"][1, 1, 0] = float("nan")
    with pytest.raises(ValueError, match=re.escape("cond[2, 0, 1] is nan: expected finite values")):
        model(**given, lengths=LENGTHS)
    with pytest.raises(ValueError, match=re.escape("cond[0, 1] is nan: expected finite values")):
        model.step(given["x"][2], None, cond=given["cond"][2])


def test_steps_and_generation_ask_for_their_condition() -> None:
    model = build("reference", cond_size=C)
    x, cond = torch.zeros(T, B, X).double(), torch.zeros(T, B, C).double()
    with pytest.raises(ValueError, match="cond must be given"):
        model.step(x[0], None)
    with pytest.raises(ValueError, match=re.escape("cond must have shape (B = 4, cond_size = 2), got (3, 2)")):
        model.step(x[0], None, cond=cond[0, :3])
    with pytest.raises(ValueError, match="cond must be given"):
        model.generate(3)
    with pytest.raises(ValueError, match="prefix_cond must be given"):
        model.generate(3, prefix=x, cond=cond)
    with pytest.raises(ValueError, match="prefix_cond is that of a prefix"):
        model.generate(3, prefix_cond=cond, cond=cond)
    with pytest.raises(ValueError, match=re.escape("cond must have shape (T = 3, B = 1, cond_size = 2)")):
        model.generate(3, cond=cond)
