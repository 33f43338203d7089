"""The oracle itself, against modules called step by step with torch's own GRU and LSTM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.peers.eager import EagerRun, EagerVRNN
from vrnn_fast import VRNN, Gaussian
from vrnn_fast.cell.spec import ACTIVATIONS, CellSpec, Std
from vrnn_fast.executors import reference
from vrnn_fast.executors.base import Batch, Want

X, H, Z, T, B = 5, 7, 3, 6, 4
OURS_ALONE = object()
NETS: dict[str, dict[str, tuple[int, ...]]] = {
    "none": {},
    "one": {"phi_x": (4,), "phi_z": (6,), "encoder": (5,), "prior": (2,), "decoder": (8,)},
    "two": {"phi_x": (4, 3), "phi_z": (6, 2), "encoder": (5, 9), "prior": (2, 3), "decoder": (8, 1)},
    "three": dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (3, 5, 4)),
    "mixed": {"phi_x": (4, 3), "encoder": (5,), "decoder": (8, 1, 2)},
}


def _pair(theirs: dict[str, Any] | None = None, **options: Any) -> tuple[VRNN, EagerVRNN]:
    """Ours and the module loop with the same parameters; ``theirs`` is what the loop calls by another name."""
    full = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), ()) | options
    z = full.pop("latent_size", Z)
    ours = VRNN(X, H, z, backend="reference", dtype=torch.float64, **full)
    eager = EagerVRNN(
        X, H, z, **{name: v for name, v in (full | (theirs or {})).items() if v is not OURS_ALONE}
    ).double()
    eager.load_state_dict(ours.state_dict(), strict=True)
    return ours, eager


def _data(likelihood: str = "bernoulli") -> tuple[Tensor, Tensor]:
    x = torch.rand(T, B, X).round() if likelihood == "bernoulli" else torch.randn(T, B, X)
    return x.double().requires_grad_(), torch.randn(T, B, Z, dtype=torch.float64, requires_grad=True)


def _weighted(run: EagerRun, seed: int = 1) -> Tensor:
    """A scalar in which every number of every result has a weight of its own."""
    g = torch.Generator().manual_seed(seed)
    tensors = [*run[:-1], *run.state]
    return sum(((t * torch.randn(t.shape, generator=g, dtype=t.dtype)).sum() for t in tensors), torch.zeros(()))


def _run(
    model: VRNN,
    x: Tensor,
    eps: Tensor,
    lengths: Tensor | None,
    state: tuple[Tensor, ...],
    **optional: Tensor | None,
) -> EagerRun:
    parameters = [model.get_parameter(p.name) for p in model.spec.parameters()]
    batch = Batch(x, eps, state, lengths, **optional)
    result = reference.run(model.spec, parameters, batch, Want(prior=True, raw=True))
    assert result.prior_mean is not None
    assert result.prior_std is not None
    assert result.raw is not None
    return EagerRun(*result[:-1])  # type: ignore[arg-type]  # without particles there are no ancestors


def _same(ours: VRNN, eager: EagerVRNN, lengths: Tensor | None, likelihood: str, **optional: Tensor | None) -> None:
    x, eps = _data(likelihood)
    eps = eps[..., : ours.latent_size]
    n = ours.spec.state_tensors
    state = tuple(torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(n))
    if ours.spec.cond_size:
        optional["cond"] = torch.randn(T, B, ours.spec.cond_size, dtype=torch.float64, requires_grad=True)
    a = _run(ours, x, eps, lengths, state, **optional)
    b = eager(x, eps, state, **optional) if lengths is None else eager.ragged(x, eps, lengths, state, **optional)
    for name, p, q in zip(EagerRun._fields[:-1], a, b, strict=False):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    for p, q in zip(a.state, b.state, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    names, values = zip(*ours.named_parameters(), strict=True)
    inputs = {"x": x, **({"eps": eps} if ours.latent_size else {}), **{f"state[{i}]": s for i, s in enumerate(state)}}
    inputs |= {name: t for name, t in optional.items() if t is not None and t.requires_grad}
    ga = torch.autograd.grad(_weighted(a), [*values, *inputs.values()])
    gb = torch.autograd.grad(_weighted(b), [*(eager.get_parameter(n) for n in names), *inputs.values()])
    labels = [*names, *inputs]
    for name, p, q in zip(labels, ga, gb, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"gradient of {n}: {m}")


@pytest.mark.parametrize("nets", NETS)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_depth_equals_the_module_loop(nets: str, cell: str, likelihood: str) -> None:
    ours, eager = _pair(cell=cell, likelihood=likelihood, **NETS[nets])
    _same(ours, eager, None, likelihood)


softplus, exp = torch.nn.functional.softplus, torch.exp
STDS: tuple[tuple[Std, Callable[[Tensor], Tensor]], ...] = (
    (
        Std("softplus", offset=0.5, sharpness=0.7, floor=1e-4),
        lambda r: softplus(r + 0.5, beta=0.7, threshold=99) + 1e-4,
    ),
    (Std("softplus", floor=0, min_std=0.6), lambda r: softplus(r, threshold=99).clamp(0.6)),
    (Std("softplus", floor=0, offset=1, clamp=(-0.2, 0.1)), lambda r: softplus(r.clamp(-0.2, 0.1) + 1, threshold=99)),
    (Std("log_std", floor=0), exp),
    (Std("log_std", floor=1e-2, clamp=(-0.3, math.inf)), lambda r: exp(r.clamp(-0.3)) + 1e-2),
    (Std("log_variance", floor=0), lambda r: exp(r).sqrt()),
    (Std("log_variance", floor=0, offset=-0.2, min_std=0.8), lambda r: exp(r - 0.2).sqrt().clamp(0.8)),
)


@pytest.mark.parametrize(("std", "formula"), STDS)
def test_every_standard_deviation_equals_its_formula(std: Std, formula: Callable[[Tensor], Tensor]) -> None:
    own = {"likelihood": "gaussian", "std": OURS_ALONE, "latent_std": formula, "output_std": formula}
    ours, eager = _pair(own, std=std, likelihood=Gaussian(std=std), **NETS["one"])
    _same(ours, eager, None, "gaussian")


@pytest.mark.parametrize("nets", ["none", "two"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_residual_posteriors_and_standard_normal_priors_equal_the_module_loop(nets: str, cell: str) -> None:
    for lengths in (None, torch.tensor([6, 0, 3, 1])):
        _same(*_pair(cell=cell, residual=True, **NETS[nets]), lengths, "bernoulli")
        _same(*_pair(cell=cell, **(NETS[nets] | {"prior": "standard_normal"})), lengths, "bernoulli")


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_simple_cell_equals_the_module_loop(nonlinearity: str, bias: bool) -> None:
    ours, eager = _pair(cell="rnn", nonlinearity=nonlinearity, bias=bias, **NETS["one"])
    _same(ours, eager, None, "bernoulli")


CONDITIONED: tuple[tuple[str, ...], ...] = (
    ("encoder", "prior", "decoder"),
    ("encoder", "prior", "decoder", "cell"),
    ("encoder",),
    ("prior", "cell"),
)
FAMILY: dict[str, dict[str, Any]] = {
    "two layers": {"num_layers": 2},
    "three layers without bias": {"num_layers": 3, "bias": False},
    "deep heads": {"head_layers": (4, 3)},
    "packed heads": {"packed_heads": True},
    "packed deep heads": {"packed_heads": True, "head_layers": (4,)},
    **{f"condition to {' '.join(to)}": {"cond_size": 2, "cond_networks": to} for to in CONDITIONED},
    "residual, conditioned": {"cond_size": 2, "residual": True},
    "all at once": {
        "cond_size": 2,
        "cond_networks": CONDITIONED[1],
        "residual": True,
        "num_layers": 2,
        "head_layers": (4,),
    },
    "activations of their own": {"activation": {"phi_x": "leaky_relu", "phi_z": "elu", "prior": "tanh"}},
    "smooth activations": {"activation": {"phi_x": "silu", "phi_z": "gelu", "encoder": "gelu", "decoder": "silu"}},
    "heads of their own": {
        "head_layers": {"enc_std": (4,), "prior_mean": (5, 2), "prior_std": (3,), "dec_mean": (6, 4)},
        "activation": {"encoder": "elu", "prior_mean": ("tanh", "identity"), "decoder": "tanh"},
        "cond_size": 2,
        "cond_networks": CONDITIONED[1],
        "residual": True,
    },
    "packed heads of their own": {"packed_heads": True, "head_layers": {"enc_params": (4,), "dec_params": (3, 2)}},
    "no z": {"latent_size": 0, "phi_z": (), "encoder": (), "prior": ()},
    "no z, conditioned": {"latent_size": 0, "phi_z": (), "encoder": (), "prior": (), "cond_size": 2, "num_layers": 2},
}


@pytest.mark.parametrize("nets", ["none", "two"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", FAMILY)
def test_the_whole_family_equals_the_module_loop(member: str, cell: str, nets: str) -> None:
    options: dict[str, Any] = {"cell": cell, **NETS[nets], **FAMILY[member]}
    for likelihood in ("bernoulli", "gaussian"):
        for lengths in (None, torch.tensor([6, 0, 3, 1])):
            _same(*_pair(likelihood=likelihood, **options), lengths, likelihood)


AFFINE = {
    "phi_x": ("leaky_relu", "identity"),
    "phi_z": ("identity", "identity"),
    "encoder": ("identity", "tanh"),
    "prior": ("relu", "identity"),
    "decoder": ("elu", "identity"),
}


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_what_follows_each_layer_equals_the_module_loop(likelihood: str) -> None:
    _same(*_pair(likelihood=likelihood, activation=AFFINE, **NETS["two"]), None, likelihood)


@pytest.mark.parametrize("nets", ["none", "two"])
@pytest.mark.parametrize("head_layers", [{"dec_std": (4,)}, {"dec_mean": (4, 2), "dec_std": (3,)}])
def test_heads_of_an_output_have_layers_of_their_own(head_layers: dict[str, tuple[int, ...]], nets: str) -> None:
    options = {"head_layers": head_layers, "activation": {"dec_std": "tanh"}, **NETS[nets]}
    _same(*_pair(likelihood="gaussian", **options), None, "gaussian")


def test_columns_in_another_order_are_the_same_columns() -> None:
    """A weight's columns moved together with their sources change nothing."""
    options: dict[str, Any] = {"cond_size": 2, "cond_networks": CONDITIONED[1], **NETS["one"]}
    orders = {
        "encoder": ("h", "phi_x", "cond"),
        "prior": ("h", "cond"),
        "decoder": ("phi_z", "h", "cond"),
        "cell": ("cond", "phi_z", "phi_x"),
    }
    plain, eager = _pair(**options)
    moved = VRNN(X, H, Z, backend="reference", dtype=torch.float64, input_order=orders, **options)
    state = plain.state_dict()
    readers = {"encoder": "enc.0", "prior": "prior.0", "decoder": "dec.0", "cell": "rnn"}
    for name, order in orders.items():
        key = f"{readers[name]}.weight" + ("_ih_l0" if name == "cell" else "")
        widths = plain.spec.inputs(name)
        columns = dict(zip(widths, state[key].split(list(widths.values()), 1), strict=True))
        state[key] = torch.cat([columns[source] for source in order], 1)
    moved.load_state_dict(state)
    x, eps = _data()
    cond, start = torch.randn(T, B, 2, dtype=torch.float64), (torch.randn(B, H, dtype=torch.float64),)
    for a, b in zip(_run(moved, x, eps, None, start, cond=cond)[:-1], eager(x, eps, start, cond)[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_resets_and_masks_equal_the_module_loop(cell: str, layers: int) -> None:
    resets, mask = torch.rand(T, B) < 0.4, torch.rand(T, B, X) < 0.6
    for likelihood in ("bernoulli", "gaussian"):
        for lengths in (None, torch.tensor([6, 0, 3, 1])):
            ours, eager = _pair(cell=cell, num_layers=layers, likelihood=likelihood, **NETS["one"])
            _same(ours, eager, lengths, likelihood, resets=resets, mask=mask)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_activation_equals_the_module_loop(activation: str, bias: bool) -> None:
    ours, eager = _pair(activation=activation, bias=bias, **NETS["two"])
    _same(ours, eager, None, "bernoulli")


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("lengths", [[6, 0, 3, 1], [1, 1, 0, 0], [2, 5, 4, 6]])
def test_ragged_rows_equal_rows_run_alone(cell: str, lengths: list[int]) -> None:
    ours, eager = _pair(cell=cell, **NETS["one"])
    _same(ours, eager, torch.tensor(lengths), "bernoulli")


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_padding_may_hold_nan(cell: str) -> None:
    model, _ = _pair(cell=cell, likelihood="gaussian", **NETS["one"])
    lengths = torch.tensor([6, 0, 3, 1])
    clean, eps = _data("gaussian")
    padding = torch.arange(T)[:, None] >= lengths
    dirty = clean.detach().clone()
    dirty[padding] = float("nan")
    noise = eps.detach().clone()
    noise[padding] = float("inf")
    dirty.requires_grad_()
    states = tuple(torch.zeros(B, H, dtype=torch.float64) for _ in range(model.spec.state_tensors))
    for s in states:
        s[1] = float("nan")  # the inert row
    a = _run(model, dirty, noise, lengths, states)
    b = _run(model, clean, eps, lengths, tuple(s.nan_to_num() for s in states))
    wanted = [dirty, *model.parameters()]
    for p, q in zip(a[:-1], b[:-1], strict=True):
        assert torch.equal(p, q)
    for s in a.state:
        assert s[1].isnan().all()
        assert s[[0, 2, 3]].isfinite().all()
    gradients = torch.autograd.grad(a.nll.sum() + a.kl.sum() + a.z.sum() + a.raw.sum(), wanted)
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][padding] == 0).all()


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_gradcheck(cell: str, likelihood: str) -> None:
    spec = CellSpec(
        2,
        3,
        2,
        cell=cell,  # type: ignore[arg-type]
        phi_x=(2,),
        encoder=(3,),
        activation="tanh",
        likelihood=likelihood,  # type: ignore[arg-type]
        decoder_heads=(("dec_mean", 2), ("dec_std.0", 2)) if likelihood == "gaussian" else (),
        output_std=Std(floor=1e-3),
    )
    options = {"dtype": torch.float64, "requires_grad": True}
    parameters = [(0.4 * torch.randn(p.shape, dtype=torch.float64)).requires_grad_() for p in spec.parameters()]
    x, eps = torch.rand(3, 2, 2, **options), torch.randn(3, 2, 2, **options)
    state = [torch.randn(2, 3, **options) for _ in range(spec.state_tensors)]
    lengths = torch.tensor([3, 1])

    def call(x: Tensor, eps: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        states, values = rest[: spec.state_tensors], rest[spec.state_tensors :]
        out = reference.run(spec, values, Batch(x, eps, states, lengths), Want(prior=True, raw=True))
        return (*(t for t in out[:-1] if isinstance(t, Tensor)), *out.state)

    assert torch.autograd.gradcheck(call, (x, eps, *state, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    model = VRNN(X, H, Z, backend="reference", dtype=dtype)
    out = model(torch.rand(T, B, X).to(dtype), lengths=torch.tensor([6, 2, 0, 1]))
    out.loss.backward()
    assert out.loss.dtype == out.state.dtype == dtype
    assert out.loss.isfinite()
