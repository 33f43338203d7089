"""Plain dictionaries of arrays as modules of ours, against the equations walked step by step."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from vrnn_fast import (
    VRNN,
    Gaussian,
    GaussianMixture,
    Handwriting,
    LayoutError,
    Std,
    Stream,
    backends,
    cli,
    load_checkpoint,
)

Arrays = dict[str, np.ndarray]
Tensors = dict[str, Tensor]
Walk = Callable[[Tensors, Tensor, Tensor], tuple[Tensor, Tensor]]


def softplus(v: Tensor) -> Tensor:
    return torch.logaddexp(torch.zeros_like(v), v)


def normal_nll(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((x - mean) / std) ** 2 / 2 + torch.log(std) + math.log(2 * math.pi) / 2


def divergence(mean: Tensor, std: Tensor, p_mean: Tensor, p_std: Tensor) -> Tensor:
    return (torch.log(p_std / std) + (std**2 + (mean - p_mean) ** 2) / (2 * p_std**2) - 0.5).sum(-1)


def filled(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Arrays in float64 with which every path matters."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.3, shape) for name, shape in shapes.items()}


def tensors(arrays: Arrays) -> Tensors:
    return {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}


def agree(ours: VRNN, walk: Walk, arrays: Arrays, x: np.ndarray, eps: np.ndarray, pen: int = 0) -> Arrays:
    """Both give the same nll and kl, (T, B) each, and the same gradient of x, whose ``pen`` first features are our last
    ones. The gradients of the arrays are returned, by name, and the module has those of its parameters."""
    theirs = tensors(arrays)
    x_, noise = torch.from_numpy(x).requires_grad_(), torch.from_numpy(eps)
    nll, kl = walk(theirs, x_, noise)
    ours.zero_grad()
    out = ours(x_.roll(-pen, -1), eps=noise)
    torch.testing.assert_close((out.nll, out.kl), (nll, kl), rtol=1e-11, atol=1e-12)
    mixture = torch.Generator().manual_seed(2)
    u, v = (torch.randn(nll.shape, generator=mixture, dtype=nll.dtype) for _ in range(2))
    (u * out.nll + v * out.kl).sum().backward()
    found, x_.grad = x_.grad, None
    (u * nll + v * kl).sum().backward()
    torch.testing.assert_close(found, x_.grad, rtol=1e-10, atol=1e-11)
    return {n: np.zeros_like(arrays[n]) if t.grad is None else t.grad.numpy() for n, t in theirs.items()}


def assert_gradients(ours: VRNN, gradients: Arrays) -> None:
    """Those of its parameters are the gradients of the arrays, brought into the same places.

    The cell's two biases have that of the single one each, the copies of a correlation that all components share have
    it in parts.
    """
    places = dict(load_checkpoint(gradients).named_parameters())
    for name, p in ours.named_parameters():
        assert p.grad is not None
        found, right = p.grad, places[name.replace("bias_hh", "bias_ih")].data
        if name.startswith("dec_correlation") and len(gradients["b_corr"]) == 1:
            found = found.sum(0).expand_as(found)
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-11, msg=name)


# ---- P: the models of the paper


def paper(prior: bool = True, latent: int = 4, output: str = "gaussian", features: int = 6, shared: int = 1) -> Arrays:
    """Arrays as the models of the paper hold them; ``output`` is ``"gaussian"``, ``"mixture"`` or ``"strokes"``."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outputs: int, **parents: int) -> None:
        shapes.update({f"W_{parent}__{name}": (width, outputs) for parent, width in parents.items()})
        shapes[f"b_{name}"] = (outputs,)

    layer("x_1", 5, x_t=features)
    layer("x_2", 7, x_1=5)
    of_z = {"z_1": 8} if latent else {}
    if latent:
        layer("z_1", 8, z_t=latent)
        layer("phi_1", 9, x_2=7, s_tm1=10)
        layer("phi_mu", latent, phi_1=9)
        layer("phi_sig", latent, phi_1=9)
    if latent and prior:
        layer("prior_mu", latent, s_tm1=10)
        layer("prior_sig", latent, s_tm1=10)
    layer("theta_1", 11, **of_z, s_tm1=10)
    components = 1 if output == "gaussian" else 3
    width = (features - (output == "strokes")) * components
    layer("theta_mu", width, theta_1=11)
    layer("theta_sig", width, theta_1=11)
    if output != "gaussian":
        layer("coeff", components, theta_1=11)
    if output == "strokes":
        layer("corr", shared, theta_1=11)
        layer("binary", 1, theta_1=11)
    layer("rnn", 40, x_2=7, **of_z)
    shapes["U_rnn__rnn"] = (10, 40)
    return filled(shapes)


def paper_nll(a: Tensors, x: Tensor, theta: Tensor) -> Tensor:
    """-log p(x_t), where x is as the paper has it: the pen, if there is one, comes first."""

    def head(name: str) -> Tensor:
        return theta @ a[f"W_theta_1__{name}"] + a[f"b_{name}"]

    mean, std = head("theta_mu"), softplus(head("theta_sig")) + 1e-4
    if "b_coeff" not in a and "b_corr" not in a:
        return normal_nll(x, mean, std).sum(-1)
    weight = torch.exp(head("coeff")) if "b_coeff" in a else torch.ones_like(x[:, :1])
    weight = weight / weight.sum(-1, keepdim=True)
    mean, std = (p.reshape(len(x), -1, weight.shape[-1]) for p in (mean, std))  # features, then components
    if "b_corr" not in a:
        return -torch.log((weight * torch.exp(-normal_nll(x[..., None], mean, std).sum(1))).sum(-1))
    pen, rho = torch.sigmoid(head("binary"))[:, 0], torch.tanh(head("corr"))
    u, v = ((x[:, 1:, None] - mean) / std).unbind(1)
    density = torch.exp(-(u**2 + v**2 - 2 * rho * u * v) / (2 * (1 - rho**2)))
    density = density / (2 * math.pi * std.prod(1) * torch.sqrt(1 - rho**2))
    return -torch.log((weight * density).sum(-1)) - x[:, 0] * torch.log(pen) - (1 - x[:, 0]) * torch.log(1 - pen)


def walk_paper(a: Tensors, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """nll and kl, (T, B) each, of the paper's equations."""

    def sig(v: Tensor) -> Tensor:
        return softplus(v) + 1e-4

    h = c = x.new_zeros(x.shape[1], 10)
    nlls, kls = [], []
    for x_t, eps_t in zip(x, eps, strict=True):
        x_2 = torch.relu(torch.relu(x_t @ a["W_x_t__x_1"] + a["b_x_1"]) @ a["W_x_1__x_2"] + a["b_x_2"])
        into_theta, into_rnn, kl = h @ a["W_s_tm1__theta_1"], x_2 @ a["W_x_2__rnn"], x.new_zeros(len(h))
        if "b_z_1" in a:
            phi = torch.relu(x_2 @ a["W_x_2__phi_1"] + h @ a["W_s_tm1__phi_1"] + a["b_phi_1"])
            mean = phi @ a["W_phi_1__phi_mu"] + a["b_phi_mu"]
            std = sig(phi @ a["W_phi_1__phi_sig"] + a["b_phi_sig"])
            p_mean, p_std = torch.zeros_like(mean), torch.ones_like(std)
            if "b_prior_mu" in a:
                p_mean = h @ a["W_s_tm1__prior_mu"] + a["b_prior_mu"]
                p_std = sig(h @ a["W_s_tm1__prior_sig"] + a["b_prior_sig"])
            kl = divergence(mean, std, p_mean, p_std)
            z_1 = torch.relu((mean + std * eps_t) @ a["W_z_t__z_1"] + a["b_z_1"])
            into_theta, into_rnn = into_theta + z_1 @ a["W_z_1__theta_1"], into_rnn + z_1 @ a["W_z_1__rnn"]
        nlls.append(paper_nll(a, x_t, torch.relu(into_theta + a["b_theta_1"])))
        kls.append(kl)
        g, i, f, o = (into_rnn + h @ a["U_rnn__rnn"] + a["b_rnn"]).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return torch.stack(nlls), torch.stack(kls)


@pytest.mark.parametrize(("prior", "latent"), [(True, 4), (False, 4), (False, 0)])
@pytest.mark.parametrize("output", ["gaussian", "mixture"])
def test_the_papers_models_of_speech(prior: bool, latent: int, output: str) -> None:
    arrays = paper(prior, latent, output)
    ours = load_checkpoint(arrays)
    kind = {"gaussian": Gaussian(1e-4), "mixture": GaussianMixture(3, 1e-4)}[output]
    assert repr(ours.likelihood) == repr(kind)
    generator = np.random.default_rng(1)
    x, eps = generator.normal(size=(7, 5, 6)), generator.normal(size=(7, 5, latent))
    assert_gradients(ours, agree(ours, walk_paper, arrays, x, eps))
    assert isinstance(load_checkpoint(arrays, layout="chung-2015"), VRNN)


@pytest.mark.parametrize("change", ["", "without coeff", "a correlation for each"])
@pytest.mark.parametrize("latent", [4, 0])
def test_the_papers_models_of_handwriting(change: str, latent: int) -> None:
    arrays = paper(latent > 0, latent, "strokes", features=3, shared=3 if change == "a correlation for each" else 1)
    if change == "without coeff":  # a single component
        arrays = {n: a[..., :2] if n.endswith(("theta_mu", "theta_sig")) else a for n, a in arrays.items()}
        arrays = {n: a for n, a in arrays.items() if not n.endswith("coeff")}
    ours = load_checkpoint(arrays)
    assert repr(ours.likelihood) == repr(Handwriting(1 if change == "without coeff" else 3, 1e-4, 1.0))
    generator = np.random.default_rng(1)
    x, eps = generator.normal(size=(7, 5, 3)), generator.normal(size=(7, 5, latent))
    x[..., 0] = generator.integers(0, 2, (7, 5))  # the pen
    assert_gradients(ours, agree(ours, walk_paper, arrays, x, eps, pen=1))
    samples, _ = ours.generate(9, 4)
    assert ((samples[..., 2] == 0) | (samples[..., 2] == 1)).all()


def test_the_papers_arrays_are_all_needed_and_all_used() -> None:
    with pytest.raises(LayoutError, match="layout chung-2015 needs W_x_2__rnn, found"):
        load_checkpoint({n: a for n, a in paper().items() if n != "W_x_2__rnn"})
    with pytest.raises(LayoutError, match="layout chung-2015 has no place for b_corr"):
        load_checkpoint({**paper(), "b_corr": np.zeros(1)})
    with pytest.raises(LayoutError, match="theta_mu must have a multiple of 4 outputs, found 6"):
        load_checkpoint({**paper(), "b_coeff": np.zeros(4), "W_theta_1__coeff": np.zeros((11, 4))})
    strokes = paper(output="strokes", features=3)
    with pytest.raises(LayoutError, match="corr must have 1 or 3 outputs, found 2"):
        load_checkpoint({**strokes, "b_corr": np.zeros(2), "W_theta_1__corr": np.zeros((11, 2))})


# ---- F: filtering objectives

WIDTHS = {"hidden": 10, "data": 7, "latent": 8}


def filtering(binary: bool = True, hidden: int = 1, features: int = 6, z: int = 4, suffix: str = "") -> Arrays:
    """Arrays as that model's checkpoint holds them: ``hidden`` layers in every network."""
    h, data, latent = WIDTHS.values()
    shapes: dict[str, tuple[int, ...]] = {"lstm_cell/kernel": (data + latent + h, 4 * h), "lstm_cell/bias": (4 * h,)}

    def network(name: str, inputs: int, outputs: int) -> None:
        for n, width in enumerate([9 + n for n in range(hidden)] + [outputs]):
            shapes[f"{name}/linear_{n}/w"], shapes[f"{name}/linear_{n}/b"] = (inputs, width), (width,)
            inputs = width

    network("data_encoder", features, data)
    network("latent_encoder", z, latent)
    network("prior_fcnet", h, 2 * z)
    network("approximate_posterior_fcnet", h + data, 2 * z)
    network("generative_fcnet", latent + h, features if binary else 2 * features)
    arrays = {f"{name}{suffix}": array for name, array in filled(shapes).items()}
    return arrays | ({"mean": np.linspace(0, 0.9, features)} if binary else {})


def walk_filtering(a: Tensors, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """nll and kl, (T, B) each: the LSTM runs first, on x_{t-1} less the mean and on the encoded z_{t-1}."""
    a = {name.removesuffix(":0"): array for name, array in a.items()}

    def network(name: str, *inputs: Tensor) -> Tensor:
        y, n = torch.cat(inputs, -1), 0
        while f"{name}/linear_{n}/w" in a:
            y = (torch.relu(y) if n else y) @ a[f"{name}/linear_{n}/w"] + a[f"{name}/linear_{n}/b"]
            n += 1
        return y

    batch = x.shape[1]
    h = c = x.new_zeros(batch, WIDTHS["hidden"])
    latent, before = x.new_zeros(batch, WIDTHS["latent"]), torch.zeros_like(x[0])
    mean_x = a.get("mean", x.new_zeros(x.shape[-1]))
    nlls, kls = [], []
    for x_t, eps_t in zip(x, eps, strict=True):
        gates = torch.cat([network("data_encoder", before), latent, h], -1) @ a["lstm_cell/kernel"]
        i, j, f, o = (gates + a["lstm_cell/bias"]).chunk(4, 1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j)
        h = torch.sigmoid(o) * torch.tanh(c)
        p_mean, p_raw = network("prior_fcnet", h).chunk(2, -1)
        mean, raw = network("approximate_posterior_fcnet", h, network("data_encoder", x_t)).chunk(2, -1)
        mean, std, p_std = mean + p_mean, softplus(raw + 0.5), softplus(p_raw + 0.5)
        kls.append(divergence(mean, std, p_mean, p_std))
        latent = network("latent_encoder", mean + std * eps_t)
        output = network("generative_fcnet", latent, h)
        if output.shape[-1] == x.shape[-1]:
            output = output - torch.log(1 / mean_x.clamp(1e-4, 0.9999) - 1)
            nlls.append((softplus(output) - x_t * output).sum(-1))
        else:
            mean, raw = output.chunk(2, -1)
            nlls.append(normal_nll(x_t, mean, softplus(raw + 0.25)).sum(-1))
        before = x_t - mean_x
    return torch.stack(nlls), torch.stack(kls)


def drawn(binary: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    x = generator.integers(0, 2, (7, 5, 6)).astype(float) if binary else generator.normal(size=(7, 5, 6))
    return x, generator.normal(size=(7, 5, 4))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["", ":0"])
def test_filtering_objectives(binary: bool, hidden: int, suffix: str) -> None:
    arrays = filtering(binary, hidden, suffix=suffix)
    slots = {f"{name}/Adam": array for name, array in arrays.items()}
    beside = {"global_step": np.int64(7), "beta1_power": np.float32(0.9), "rnn/lstm_cell/kernel": np.zeros((17, 40))}
    ours = load_checkpoint({**arrays, **slots, **beside} if not suffix else arrays)
    x, eps = drawn(binary)
    agree(ours, walk_filtering, arrays, x, eps)
    assert load_checkpoint(arrays, layout="fivo").spec == ours.spec


def test_a_mean_of_real_valued_x_centres_what_the_cell_sees() -> None:
    arrays = {**filtering(binary=False), "mean": np.linspace(-1, 1, 6)}
    x, eps = drawn(binary=False)
    agree(load_checkpoint(arrays), walk_filtering, arrays, x, eps)


def test_filtering_arrays_are_all_needed_and_all_used() -> None:
    arrays = filtering()
    with pytest.raises(LayoutError, match="layout fivo needs mean, found"):
        load_checkpoint({n: a for n, a in arrays.items() if n != "mean"})
    with pytest.raises(LayoutError, match="layout fivo needs approximate_posterior_fcnet/linear_0/w, found"):
        load_checkpoint({n: a for n, a in arrays.items() if not n.startswith("approximate")})
    with pytest.raises(LayoutError, match="layout fivo has no place for tilt_fcnet/linear_0/w"):
        load_checkpoint({**arrays, "tilt_fcnet/linear_0/w": np.zeros((18, 6))})
    with pytest.raises(LayoutError, match=r"linear_0/w must have shape \(17, any\), found \(20, 9\)"):  # smoothing
        load_checkpoint({**arrays, "approximate_posterior_fcnet/linear_0/w": np.zeros((20, 9))})
    with pytest.raises(LayoutError, match=r"lstm_cell/kernel must have shape \(25, 40\), found \(24, 40\)"):
        load_checkpoint({**arrays, "lstm_cell/kernel": np.zeros((24, 40))})


def test_a_posterior_that_may_be_the_smoothing_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDTHS, "data", 10)
    with pytest.warns(UserWarning, match="layout fivo: the posterior is taken as the filtering one"):
        load_checkpoint(filtering())


def test_constants_of_filtering_objectives_are_arguments() -> None:
    ours = load_checkpoint(filtering(), std=Std(offset=0.5, floor=0.0, min_std=0.1), batch_first=True)
    assert ours.spec.std.min_std == 0.1
    assert ours.batch_first


# ---- a start that is not zero


@pytest.fixture
def started() -> VRNN:
    """Of one LSTM layer, in float64."""
    return load_checkpoint(filtering())


def same_numbers(ours: VRNN, theirs: VRNN) -> None:
    x, eps = (torch.from_numpy(a) for a in drawn(binary=True))
    torch.testing.assert_close(ours(x, eps=eps).elbo, theirs(x, eps=eps).elbo)


def test_the_start_is_what_no_state_stands_for(started: VRNN, executor: str) -> None:
    started.backend = executor
    state = started.new_state(5)
    assert isinstance(state, tuple)
    assert all(s.shape == (1, 5, 10) and s.abs().min() > 0 for s in state)
    x, eps = (torch.from_numpy(a) for a in drawn(binary=True))
    torch.testing.assert_close(started(x, eps=eps).nll, started(x, eps=eps, state=state).nll)
    with torch.no_grad():
        one, other = started.step(x[0], None, eps[0]), started.step(x[0], state, eps[0])
    assert torch.equal(one.nll, other.nll)
    torch.testing.assert_close(one.nll, started(x, eps=eps).nll[0])
    assert not torch.equal(one.nll, started.step(x[0], tuple(map(torch.zeros_like, state)), eps[0]).nll)
    passed = started(x[:, :2], torch.tensor([0, 7]), eps=eps[:, :2]).state
    torch.testing.assert_close(passed[0][:, 0], state[0][:, 0])


def test_the_start_is_generated_from(started: VRNN) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, _ = started.generate(1, 3, sample_output=False, generator=generator)
    state = started.new_state(3)
    with torch.no_grad():
        noise = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        cell = _cell(started)
        h = state[0][0]
        prior = cell.prior(h)
        z = prior.mean + prior.std * noise
        expected = started.likelihood.mean(cell.decoder(z, cell.phi_z(z), h))
    torch.testing.assert_close(samples[0], expected)


@pytest.mark.parametrize("kind", ["elbo", "iwae", "fivo"])
def test_the_start_is_bounded_from(started: VRNN, kind: Any) -> None:
    x = torch.from_numpy(drawn(binary=True)[0])
    bounds = [
        started.bound(x, objective=kind, num_particles=3, state=state, generator=torch.Generator().manual_seed(0))
        for state in (None, started.new_state(5), tuple(map(torch.zeros_like, started.new_state(5))))
    ]
    torch.testing.assert_close(bounds[0], bounds[1])
    assert not torch.allclose(bounds[0], bounds[2])


def _cell(model: VRNN) -> Any:
    from vrnn_fast.executors.reference import Equations

    return Equations(model.spec, model._reader(model))


@pytest.mark.skipif(not backends()["cpu"].available, reason="the native module is not built")
def test_a_stream_begins_and_begins_anew_from_the_start(started: VRNN) -> None:
    stream = Stream(started, 2, seed=0)
    expected = [s[0].detach().numpy() for s in started.new_state(2)]
    for got, want in zip(stream.state, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    x, eps = drawn(binary=True)
    first = stream.push(np.ascontiguousarray(x[0, :2]), np.ascontiguousarray(eps[0, :2]))
    nll, _ = walk_filtering(tensors(filtering()), torch.from_numpy(x[:, :2]), torch.from_numpy(eps[:, :2]))
    np.testing.assert_allclose(first.nll, nll[0].detach().numpy(), rtol=1e-11)
    stream.reset()
    for got, want in zip(stream.state, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_start_is_saved_copied_and_moved(started: VRNN) -> None:
    assert "initial_state" in started.state_dict()
    same_numbers(copy.deepcopy(started), started)
    same_numbers(pickle.loads(pickle.dumps(started)), started)
    options = {"phi_x": (18,), "phi_z": (9,), "encoder": (9,), "prior": (9,), "decoder": (9,), "packed_heads": True}
    fresh = VRNN(6, 10, 4, cell="lstm", input_order={"encoder": ("h", "phi_x")}, residual=True, dtype=torch.float64,
                 std=Std(offset=0.5, floor=0.0), **options)  # fmt: skip
    assert fresh.initial_state is None
    assert "initial_state" not in fresh.state_dict()
    assert fresh.spec == started.spec
    fresh.load_state_dict(started.state_dict())
    same_numbers(fresh, started)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "initial_state"'):
        fresh.load_state_dict({n: t for n, t in started.state_dict().items() if n != "initial_state"})
    single = copy.deepcopy(started).float()
    assert single.initial_state is not None
    assert single.initial_state.dtype == torch.float32
    assert started.to("meta").new_state(2)[0].device.type == "meta"


@pytest.mark.parametrize("binary", [True, False])
def test_arrays_are_converted_on_the_command_line(binary: bool, tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", **filtering(binary))
    arguments = ["convert", str(tmp_path / "old.npz"), str(tmp_path / "new.safetensors")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    x, eps = drawn(binary)
    agree(load_checkpoint(tmp_path / "new.safetensors"), walk_filtering, filtering(binary), x, eps)


def test_the_start_compiles_whole(started: VRNN) -> None:
    torch._dynamo.reset()
    x, eps = (torch.from_numpy(a) for a in drawn(binary=True))
    compiled = torch.compile(started, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, eps=eps).nll, started(x, eps=eps).nll)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (
            torch.zeros(1, 1, 10).double(),
            r"initial_state must have shape \(parts = 2, num_layers = 1, hidden_size = 10\)",
        ),
        (torch.zeros(2, 1, 10), "initial_state must have the parameters' dtype"),
    ],
)
def test_a_start_that_does_not_fit_is_named(started: VRNN, start: Tensor, words: str) -> None:
    started.initial_state = start
    with pytest.raises(ValueError, match=words):
        started.new_state(2)


def test_resets_go_to_a_start(started: VRNN) -> None:
    x = torch.from_numpy(drawn(binary=True)[0])
    resets = torch.zeros(x.shape[:2], dtype=torch.bool)
    resets[3, 1] = True
    eps = torch.randn(*x.shape[:2], started.latent_size, dtype=x.dtype)
    again = started(x[3:, 1:2], eps=eps[3:, 1:2]).nll
    torch.testing.assert_close(started(x, eps=eps, resets=resets).nll[3:, 1:2], again)


def test_a_start_of_your_own_for_every_kind_of_cell() -> None:
    for cell, parts in (("gru", 1), ("lstm", 2), ("rnn", 1)):
        model = VRNN(3, 4, 2, cell=cell, num_layers=2)  # type: ignore[arg-type]
        model.initial_state = torch.randn(parts, 2, 4)
        state = model.new_state(5)
        for got, want in zip(state if isinstance(state, tuple) else (state,), model.initial_state, strict=True):
            assert torch.equal(got, want[:, None].expand(2, 5, 4))
