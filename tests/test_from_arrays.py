"""Plain dictionaries of arrays as modules of ours, against the equations walked step by step in NumPy."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from vrnn_fast import VRNN, Gaussian, GaussianMixture, Handwriting, LayoutError, Std, Stream, backends, cli

Arrays = dict[str, np.ndarray]


def relu(v: np.ndarray) -> np.ndarray:
    return np.maximum(v, 0)


def softplus(v: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, v)


def logistic(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def normal_nll(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return ((x - mean) / std) ** 2 / 2 + np.log(std) + math.log(2 * math.pi) / 2


def divergence(mean: np.ndarray, std: np.ndarray, p_mean: np.ndarray, p_std: np.ndarray) -> np.ndarray:
    return (np.log(p_std / std) + (std**2 + (mean - p_mean) ** 2) / (2 * p_std**2) - 0.5).sum(-1)


def filled(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Arrays in float64 with which every path matters."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.3, shape) for name, shape in shapes.items()}


def agree(ours: VRNN, x: np.ndarray, eps: np.ndarray, nll: np.ndarray, kl: np.ndarray) -> None:
    out = ours(torch.from_numpy(x), eps=torch.from_numpy(eps))
    np.testing.assert_allclose(out.nll.detach().numpy(), nll, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(out.kl.detach().numpy(), kl, rtol=1e-11, atol=1e-12)


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


def paper_nll(a: Arrays, x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """-log p(x_t), where x is as the paper has it: the pen, if there is one, comes first."""

    def head(name: str) -> np.ndarray:
        return theta @ a[f"W_theta_1__{name}"] + a[f"b_{name}"]

    mean, std = head("theta_mu"), softplus(head("theta_sig")) + 1e-4
    if "b_coeff" not in a and "b_corr" not in a:
        return normal_nll(x, mean, std).sum(-1)
    weight = np.exp(head("coeff")) if "b_coeff" in a else np.ones((len(x), 1))
    weight /= weight.sum(-1, keepdims=True)
    mean, std = (p.reshape(len(x), -1, weight.shape[-1]) for p in (mean, std))  # features, then components
    if "b_corr" not in a:
        return -np.log((weight * np.exp(-normal_nll(x[..., None], mean, std).sum(1))).sum(-1))
    pen, rho = logistic(head("binary"))[:, 0], np.tanh(head("corr"))
    u, v = ((x[:, 1:, None] - mean) / std).transpose(1, 0, 2)
    density = np.exp(-(u**2 + v**2 - 2 * rho * u * v) / (2 * (1 - rho**2)))
    density /= 2 * np.pi * std.prod(1) * np.sqrt(1 - rho**2)
    return -np.log((weight * density).sum(-1)) - np.log(np.where(x[:, 0] == 1, pen, 1 - pen))


def walk_paper(a: Arrays, x: np.ndarray, eps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """nll and kl, (T, B) each, of the paper's equations."""

    def sig(v: np.ndarray) -> np.ndarray:
        return softplus(v) + 1e-4

    h = c = np.zeros((x.shape[1], 10))
    nll, kl = np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    for t, (x_t, eps_t) in enumerate(zip(x, eps, strict=True)):
        x_2 = relu(relu(x_t @ a["W_x_t__x_1"] + a["b_x_1"]) @ a["W_x_1__x_2"] + a["b_x_2"])
        into_theta, into_rnn = h @ a["W_s_tm1__theta_1"], x_2 @ a["W_x_2__rnn"]
        if "b_z_1" in a:
            phi = relu(x_2 @ a["W_x_2__phi_1"] + h @ a["W_s_tm1__phi_1"] + a["b_phi_1"])
            mean = phi @ a["W_phi_1__phi_mu"] + a["b_phi_mu"]
            std = sig(phi @ a["W_phi_1__phi_sig"] + a["b_phi_sig"])
            p_mean, p_std = np.zeros_like(mean), np.ones_like(std)
            if "b_prior_mu" in a:
                p_mean = h @ a["W_s_tm1__prior_mu"] + a["b_prior_mu"]
                p_std = sig(h @ a["W_s_tm1__prior_sig"] + a["b_prior_sig"])
            kl[t] = divergence(mean, std, p_mean, p_std)
            z_1 = relu((mean + std * eps_t) @ a["W_z_t__z_1"] + a["b_z_1"])
            into_theta, into_rnn = into_theta + z_1 @ a["W_z_1__theta_1"], into_rnn + z_1 @ a["W_z_1__rnn"]
        nll[t] = paper_nll(a, x_t, relu(into_theta + a["b_theta_1"]))
        g, i, f, o = np.split(into_rnn + h @ a["U_rnn__rnn"] + a["b_rnn"], 4, 1)
        c = logistic(f) * c + logistic(i) * np.tanh(g)
        h = logistic(o) * np.tanh(c)
    return nll, kl


@pytest.mark.parametrize(("prior", "latent"), [(True, 4), (False, 4), (False, 0)])
@pytest.mark.parametrize("output", ["gaussian", "mixture"])
def test_the_papers_models_of_speech(prior: bool, latent: int, output: str) -> None:
    arrays = paper(prior, latent, output)
    ours = VRNN.from_state_dict(arrays)
    kind = {"gaussian": Gaussian(1e-4), "mixture": GaussianMixture(3, 1e-4)}[output]
    assert repr(ours.likelihood) == repr(kind)
    generator = np.random.default_rng(1)
    x, eps = generator.normal(size=(7, 5, 6)), generator.normal(size=(7, 5, latent))
    agree(ours, x, eps, *walk_paper(arrays, x, eps))
    assert isinstance(VRNN.from_state_dict(arrays, layout="P"), VRNN)


@pytest.mark.parametrize("change", ["", "without coeff", "a correlation for each"])
@pytest.mark.parametrize("latent", [4, 0])
def test_the_papers_models_of_handwriting(change: str, latent: int) -> None:
    arrays = paper(latent > 0, latent, "strokes", features=3, shared=3 if change == "a correlation for each" else 1)
    if change == "without coeff":  # a single component
        arrays = {n: a[..., :2] if n.endswith(("theta_mu", "theta_sig")) else a for n, a in arrays.items()}
        arrays = {n: a for n, a in arrays.items() if not n.endswith("coeff")}
    ours = VRNN.from_state_dict(arrays)
    assert repr(ours.likelihood) == repr(Handwriting(1 if change == "without coeff" else 3, 1e-4, 1.0))
    generator = np.random.default_rng(1)
    x, eps = generator.normal(size=(7, 5, 3)), generator.normal(size=(7, 5, latent))
    x[..., 0] = generator.integers(0, 2, (7, 5))  # the pen
    agree(ours, np.roll(x, -1, -1), eps, *walk_paper(arrays, x, eps))
    samples, _ = ours.generate(9, 4)
    assert ((samples[..., 2] == 0) | (samples[..., 2] == 1)).all()


def test_the_papers_arrays_are_all_needed_and_all_used() -> None:
    with pytest.raises(LayoutError, match="layout P needs W_x_2__rnn, found"):
        VRNN.from_state_dict({n: a for n, a in paper().items() if n != "W_x_2__rnn"})
    with pytest.raises(LayoutError, match="layout P has no place for b_corr"):
        VRNN.from_state_dict({**paper(), "b_corr": np.zeros(1)})
    with pytest.raises(LayoutError, match="theta_mu must have a multiple of 4 outputs, found 6"):
        VRNN.from_state_dict({**paper(), "b_coeff": np.zeros(4), "W_theta_1__coeff": np.zeros((11, 4))})
    strokes = paper(output="strokes", features=3)
    with pytest.raises(LayoutError, match="corr must have 1 or 3 outputs, found 2"):
        VRNN.from_state_dict({**strokes, "b_corr": np.zeros(2), "W_theta_1__corr": np.zeros((11, 2))})


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


def walk_filtering(a: Arrays, x: np.ndarray, eps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """nll and kl, (T, B) each: the LSTM runs first, on x_{t-1} less the mean and on the encoded z_{t-1}."""
    a = {name.removesuffix(":0"): array for name, array in a.items()}

    def network(name: str, *inputs: np.ndarray) -> np.ndarray:
        y, n = np.concatenate(inputs, -1), 0
        while f"{name}/linear_{n}/w" in a:
            y = (relu(y) if n else y) @ a[f"{name}/linear_{n}/w"] + a[f"{name}/linear_{n}/b"]
            n += 1
        return y

    batch = x.shape[1]
    h = c = np.zeros((batch, WIDTHS["hidden"]))
    latent, before = np.zeros((batch, WIDTHS["latent"])), np.zeros_like(x[0])
    mean_x = a.get("mean", np.zeros(x.shape[-1]))
    nll, kl = np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    for t, (x_t, eps_t) in enumerate(zip(x, eps, strict=True)):
        gates = np.concatenate([network("data_encoder", before), latent, h], -1) @ a["lstm_cell/kernel"]
        i, j, f, o = np.split(gates + a["lstm_cell/bias"], 4, 1)
        c = logistic(f + 1) * c + logistic(i) * np.tanh(j)
        h = logistic(o) * np.tanh(c)
        p_mean, p_raw = np.split(network("prior_fcnet", h), 2, -1)
        mean, raw = np.split(network("approximate_posterior_fcnet", h, network("data_encoder", x_t)), 2, -1)
        mean, std, p_std = mean + p_mean, softplus(raw + 0.5), softplus(p_raw + 0.5)
        kl[t] = divergence(mean, std, p_mean, p_std)
        latent = network("latent_encoder", mean + std * eps_t)
        output = network("generative_fcnet", latent, h)
        if output.shape[-1] == x.shape[-1]:
            clipped = np.clip(mean_x, 1e-4, 0.9999)
            output = output - np.log(1 / clipped - 1)
            nll[t] = (softplus(output) - x_t * output).sum(-1)
        else:
            mean, raw = np.split(output, 2, -1)
            nll[t] = normal_nll(x_t, mean, softplus(raw + 0.25)).sum(-1)
        before = x_t - mean_x
    return nll, kl


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
    ours = VRNN.from_state_dict({**arrays, **slots, **beside} if not suffix else arrays)
    x, eps = drawn(binary)
    agree(ours, x, eps, *walk_filtering(arrays, x, eps))
    assert VRNN.from_state_dict(arrays, layout="F").spec == ours.spec


def test_a_mean_of_real_valued_x_centres_what_the_cell_sees() -> None:
    arrays = {**filtering(binary=False), "mean": np.linspace(-1, 1, 6)}
    x, eps = drawn(binary=False)
    agree(VRNN.from_state_dict(arrays), x, eps, *walk_filtering(arrays, x, eps))


def test_filtering_arrays_are_all_needed_and_all_used() -> None:
    arrays = filtering()
    with pytest.raises(LayoutError, match="layout F needs mean, found"):
        VRNN.from_state_dict({n: a for n, a in arrays.items() if n != "mean"})
    with pytest.raises(LayoutError, match="layout F needs approximate_posterior_fcnet/linear_0/w, found"):
        VRNN.from_state_dict({n: a for n, a in arrays.items() if not n.startswith("approximate")})
    with pytest.raises(LayoutError, match="layout F has no place for tilt_fcnet/linear_0/w"):
        VRNN.from_state_dict({**arrays, "tilt_fcnet/linear_0/w": np.zeros((18, 6))})
    with pytest.raises(LayoutError, match=r"linear_0/w must have shape \(17, any\), found \(20, 9\)"):  # smoothing
        VRNN.from_state_dict({**arrays, "approximate_posterior_fcnet/linear_0/w": np.zeros((20, 9))})
    with pytest.raises(LayoutError, match=r"lstm_cell/kernel must have shape \(25, 40\), found \(24, 40\)"):
        VRNN.from_state_dict({**arrays, "lstm_cell/kernel": np.zeros((24, 40))})


def test_a_posterior_that_may_be_the_smoothing_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDTHS, "data", 10)
    with pytest.warns(UserWarning, match="layout F: the posterior is taken as the filtering one"):
        VRNN.from_state_dict(filtering())


def test_constants_of_filtering_objectives_are_arguments() -> None:
    ours = VRNN.from_state_dict(filtering(), std=Std(shift=0.5, floor=0.0, minimum=0.1), batch_first=True)
    assert ours.spec.std.minimum == 0.1
    assert ours.batch_first


# ---- a start that is not zero


@pytest.fixture
def started() -> VRNN:
    """Of one LSTM layer, in float64."""
    return VRNN.from_state_dict(filtering())


def same_numbers(ours: VRNN, theirs: VRNN) -> None:
    x, eps = (torch.from_numpy(a) for a in drawn(binary=True))
    torch.testing.assert_close(ours(x, eps=eps).elbo, theirs(x, eps=eps).elbo)


def test_the_start_is_what_no_state_stands_for(started: VRNN, executor: str) -> None:
    started.backend = executor
    state = started.init_state(5)
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
    samples, _ = started.generate(1, 3, mean=True, generator=generator)
    state = started.init_state(3)
    with torch.no_grad():
        noise = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        cell = _cell(started)
        h = state[0][0]
        prior = cell.prior(h)
        expected = started.likelihood.mean(cell.decoder(cell.phi_z(prior.mean + prior.std * noise), h))
    torch.testing.assert_close(samples[0], expected)


@pytest.mark.parametrize("kind", ["elbo", "iwae", "fivo"])
def test_the_start_is_bounded_from(started: VRNN, kind: Any) -> None:
    x = torch.from_numpy(drawn(binary=True)[0])
    bounds = [
        started.bound(x, kind, 3, state=state, generator=torch.Generator().manual_seed(0))
        for state in (None, started.init_state(5), tuple(map(torch.zeros_like, started.init_state(5))))
    ]
    torch.testing.assert_close(bounds[0], bounds[1])
    assert not torch.allclose(bounds[0], bounds[2])


def _cell(model: VRNN) -> Any:
    from vrnn_fast.executors.reference import Cell

    return Cell(model.spec, model._reader(model))


@pytest.mark.skipif(not backends()["cpu"].available, reason="the native module is not built")
def test_a_stream_begins_and_begins_anew_from_the_start(started: VRNN) -> None:
    stream = Stream(started, 2, seed=0)
    expected = [s[0].detach().numpy() for s in started.init_state(2)]
    for got, want in zip(stream.state, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    x, eps = drawn(binary=True)
    first = stream.push(np.ascontiguousarray(x[0, :2]), np.ascontiguousarray(eps[0, :2]))
    np.testing.assert_allclose(first.nll, walk_filtering(filtering(), x[:, :2], eps[:, :2])[0][0], rtol=1e-11)
    stream.reset()
    for got, want in zip(stream.state, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_start_is_saved_copied_and_moved(started: VRNN) -> None:
    assert "start" in started.state_dict()
    same_numbers(copy.deepcopy(started), started)
    same_numbers(pickle.loads(pickle.dumps(started)), started)
    options = {"phi_x": (18,), "phi_z": (9,), "encoder": (9,), "prior": (9,), "decoder": (9,), "packed_heads": True}
    fresh = VRNN(6, 10, 4, cell="lstm", columns={"encoder": ("h", "phi_x")}, residual=True, dtype=torch.float64,
                 std=Std(shift=0.5, floor=0.0), **options)  # fmt: skip
    assert fresh.start is None
    assert "start" not in fresh.state_dict()
    assert fresh.spec == started.spec
    fresh.load_state_dict(started.state_dict())
    same_numbers(fresh, started)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "start"'):
        fresh.load_state_dict({n: t for n, t in started.state_dict().items() if n != "start"})
    single = copy.deepcopy(started).float()
    assert single.start is not None
    assert single.start.dtype == torch.float32
    assert started.to("meta").init_state(2)[0].device.type == "meta"


@pytest.mark.parametrize("binary", [True, False])
def test_arrays_are_converted_on_the_command_line(binary: bool, tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", **filtering(binary))
    arguments = ["convert", str(tmp_path / "old.npz"), str(tmp_path / "new.safetensors")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    x, eps = drawn(binary)
    agree(VRNN.from_state_dict(tmp_path / "new.safetensors"), x, eps, *walk_filtering(filtering(binary), x, eps))


def test_the_start_compiles_whole(started: VRNN) -> None:
    torch._dynamo.reset()
    x, eps = (torch.from_numpy(a) for a in drawn(binary=True))
    compiled = torch.compile(started, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, eps=eps).nll, started(x, eps=eps).nll)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (torch.zeros(1, 1, 10).double(), r"start must have shape \(parts = 2, num_layers = 1, hidden_size = 10\)"),
        (torch.zeros(2, 1, 10), "start must have the parameters' dtype"),
    ],
)
def test_a_start_that_does_not_fit_is_named(started: VRNN, start: Tensor, words: str) -> None:
    started.start = start
    with pytest.raises(ValueError, match=words):
        started.init_state(2)


def test_resets_go_to_zeros_and_so_not_with_a_start(started: VRNN) -> None:
    x = torch.from_numpy(drawn(binary=True)[0])
    with pytest.raises(ValueError, match="resets go back to a state of zeros, and this model has another start"):
        started(x, resets=torch.zeros(7, 5, dtype=torch.bool))


def test_a_start_of_your_own_for_every_kind_of_cell() -> None:
    for cell, parts in (("gru", 1), ("lstm", 2), ("rnn", 1)):
        model = VRNN(3, 4, 2, cell=cell, num_layers=2)  # type: ignore[arg-type]
        model.start = torch.randn(parts, 2, 4)
        state = model.init_state(5)
        for got, want in zip(state if isinstance(state, tuple) else (state,), model.start, strict=True):
            assert torch.equal(got, want[:, None].expand(2, 5, 4))
