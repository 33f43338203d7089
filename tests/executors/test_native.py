"""The native module: elementary functions, the machine's features and peak, and streaming without torch."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from bench.functions import FUNCTIONS, measure
from tests.support.oracle import Errors
from vrnn_fast import VRNN, Gaussian, Likelihood, Std, Stream

native = pytest.importorskip("vrnn_fast._native", reason="the native module is optional and not built here")
ISAS = native.usable_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VRNN_FAST_ISA", request.param)
    return str(request.param)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_over_all_floats(isa: str, name: str) -> None:
    """Every 251st float of the range: 17 million values, all exponents and both signs."""
    assert measure(name, [isa], every=251)[isa].error <= FUNCTIONS[name].bound


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1, 3])
def test_functions_that_gradients_sum_up_are_right_on_average(isa: str, name: str, scale: float) -> None:
    """A bias' gradient adds sigmoids over all rows, where errors of one sign add up. A mean error below an 80th of an
    ulp is less than chance leaves of half an ulp's in 1,600 rows."""
    x = (scale * np.random.default_rng(0).standard_normal(1 << 20)).astype(np.float32)
    right = FUNCTIONS[name].exact(x.astype(np.float64))
    unit = np.spacing(np.abs(right).astype(np.float32)).astype(np.float64)
    assert abs(((native.apply(name, x) - right) / unit).mean()) < 1 / 80


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_at_the_edges(isa: str, name: str) -> None:
    exact = FUNCTIONS[name].exact
    x = np.array([np.nan, -np.inf, -1e4, -0.0, 0.0, 1e4, np.inf], np.float32)
    with np.errstate(all="ignore"):
        right = exact(x.astype(np.float64)).astype(np.float32)
        if name == "sigmoid":
            right[1:3] = 0
        if name == "softplus":
            right[1:3] = 0
            right[-1] = np.inf
    np.testing.assert_array_equal(native.apply(name, x), right)


def test_apply_names_what_it_knows() -> None:
    with pytest.raises(ValueError, match="function must be one of exp, log"):
        native.apply("sine", np.zeros(1, np.float32))


@pytest.mark.parametrize("size", [1, 15, 16, 100])
def test_apply_writes_where_it_is_told(isa: str, size: int) -> None:
    x, out = np.linspace(-3, 3, size, dtype=np.float32), np.full(size + 1, np.nan, np.float32)
    assert native.apply("tanh", x, out[:size]).base is out
    np.testing.assert_array_equal(out[:size], native.apply("tanh", x))
    assert np.isnan(out[size])


def test_apply_refuses_an_unfit_out() -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="out must be a C-contiguous array of dtype float32, got float64"):
        native.apply("exp", x, np.zeros(4))
    with pytest.raises(ValueError, match="out must hold 1 x 4 values, got 3"):
        native.apply("exp", x, np.zeros(3, np.float32))
    fixed = np.zeros(4, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        native.apply("exp", x, fixed)


def test_the_peak_is_finite_and_the_isa_checked() -> None:
    assert native.usable_isas()[0] == "baseline"
    for name in ISAS:
        assert math.isfinite(native.fma_peak(name, 0.01))
        assert native.fma_peak(name, 0.01) > 0
    with pytest.raises(ValueError, match="isa must be one that this machine can run, got 'mmx'"):
        native.fma_peak("mmx")


def model(**changes: Any) -> VRNN:
    torch.manual_seed(0)
    return VRNN(7, 18, 3, **({"dtype": torch.float32} | changes))


def followed(m: VRNN, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """What the reference executor says of each frame of x (T, B, X), in the dtype of x, and the state at the end."""
    m = copy.deepcopy(m).to(x.dtype)
    m.backend = "reference"
    state, frames = None, []
    with torch.no_grad():
        for t in range(len(x)):
            nll, kl, prediction, state = m.step(x[t], state, eps[t])
            frames.append((nll, kl, *pytree.tree_leaves(prediction)))
    return named(frames, [layer for part in pytree.tree_leaves(state) for layer in part])


def pushed(stream: Stream, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """The same of a stream."""
    stream.reset()
    frames = []
    for t in range(len(x)):
        nll, kl, prediction = stream.push(x[t].numpy(), eps[t].numpy())
        frames.append([torch.from_numpy(a.copy()) for a in (nll, kl, *pytree.tree_leaves(prediction))])
    return named(frames, [torch.from_numpy(layer.copy()) for layer in stream.state])


def named(frames: Sequence[Sequence[Tensor]], state: Sequence[Tensor]) -> dict[str, Tensor]:
    numbers = {f"number {i}": torch.stack(ts) for i, ts in enumerate(zip(*frames, strict=True))}
    return numbers | {f"state {i}": t for i, t in enumerate(state)}


def assert_streams_lawfully(m: VRNN, batch: int, steps: int, draws: int = 4) -> None:
    """Errors at most twice those of plain torch in the model's dtype, both against float64."""
    stream = Stream(m, batch)
    errors = Errors(next(m.parameters()).dtype)
    for _ in range(draws):
        x, eps = torch.rand(steps, batch, m.input_size), torch.randn(steps, batch, m.latent_size)
        mine = [t.to(errors.dtype) for t in (x, eps)]
        errors.add(pushed(stream, *mine), followed(m, *mine), followed(m, x.double(), eps.double()))
    errors.assert_at_most_twice_torchs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "gaussian", Gaussian(std=Std("log_variance", offset=1, clamp=(-1, math.inf)))]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_is_the_model_step_by_step(
    isa: str, dtype: torch.dtype, cell: str, likelihood: str | Likelihood, batch: int
) -> None:
    assert_streams_lawfully(model(dtype=dtype, cell=cell, likelihood=likelihood), batch, steps=9)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "cell": "lstm"},
        {"residual": True, "head_layers": (4,)},
        {"head_layers": {"enc_std": (4,), "dec_mean": (3, 9)}, "activation": {"phi_x": ("tanh", "identity")}},
        {"prior": "standard_normal"},
        {"packed_heads": True, "std": "log_variance"},
        {"latent_size": 0, "phi_z": (), "encoder": (), "prior": ()},
    ],
)
def test_a_stream_of_any_member_of_the_family(isa: str, options: dict[str, Any]) -> None:
    m = VRNN(**{"input_size": 7, "hidden_size": 18, "latent_size": 3, "likelihood": "gaussian"} | options)
    assert_streams_lawfully(m, batch=2, steps=4)


def test_a_stream_holds_a_snapshot_until_it_is_refreshed() -> None:
    m = model()
    stream, x, eps = Stream(m), np.ones((1, 7), np.float32), np.zeros((1, 3), np.float32)
    stream.push(x, eps)
    held = stream.state
    first = stream.push(x, eps)
    with torch.no_grad():
        for p in m.parameters():
            p.mul_(0.5)
    stream.state = held
    assert stream.push(x, eps).nll == first.nll
    stream.state = held
    stream.refresh()
    np.testing.assert_array_equal(stream.state[0], held[0])
    assert stream.push(x, eps).nll != first.nll
    stream.reset()
    assert not stream.state[0].any()


def test_a_stream_draws_its_own_noise_from_its_seed() -> None:
    x = np.ones((1, 7), np.float32)
    a, b, c = (Stream(model(), seed=s).push(x).nll for s in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stream_draws_what_numpy_draws_frame_by_frame(dtype: torch.dtype) -> None:
    m = model(dtype=dtype)
    drawing, given = Stream(m, 200, seed=5), Stream(m, 200)
    noise, kind = np.random.default_rng(5), torch.zeros(1, dtype=dtype).numpy().dtype
    x = np.ones((200, 7), kind)
    for frame in range(20):  # 4096 numbers at a time are less than seven frames
        expected = given.push(x, noise.standard_normal((200, 3), dtype=kind))
        np.testing.assert_array_equal(drawing.push(x).nll, expected.nll)
        if frame == 9:
            drawing.refresh()


def test_a_stream_without_a_latent_variable_draws_nothing() -> None:
    m = VRNN(7, 18, 0)
    assert_streams_lawfully(m, batch=2, steps=1)
    assert not Stream(m).push(np.ones((1, 7), np.float32)).kl.any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copied_stream_goes_on_alone(copied: Any) -> None:
    stream, x = Stream(model(cell="lstm"), 2, seed=3), np.ones((2, 7), np.float32)
    for _ in range(3):
        stream.push(x)
    twin = copied(stream)
    ahead = [stream.push(x).nll for _ in range(800)]  # beyond the block of noise at hand
    np.testing.assert_array_equal([twin.push(x).nll for _ in range(800)], ahead)
    for found, right in zip(twin.state, stream.state, strict=True):
        np.testing.assert_array_equal(found, right)


def test_a_stream_refuses_what_it_cannot_take() -> None:
    stream = Stream(model())
    good = np.zeros((1, 7), np.float32)
    with pytest.raises(TypeError, match="x must be a C-contiguous array of dtype float32, got float64"):
        stream.push(good.astype(np.float64))
    with pytest.raises(TypeError, match="x must be a C-contiguous array"):
        stream.push(np.zeros((1, 14), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="x must hold 1 x 7 values, got 6"):
        stream.push(np.zeros((1, 6), np.float32))
    with pytest.raises(ValueError, match="eps must hold 1 x 3 values, got 4"):
        stream.push(good, np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match=r"state\[0\] must have shape \(1, 18\), got \(2, 18\)"):
        stream.state = (np.zeros((2, 18), np.float32),)
    with pytest.raises(ValueError, match="state must be 1 arrays, got 2"):
        stream.state = (np.zeros((1, 18), np.float32),) * 2
    with pytest.raises(TypeError, match="state must be a tuple of arrays, got ndarray"):
        stream.state = np.zeros((1, 18), np.float32)
    with pytest.raises(TypeError, match="x must be a NumPy array, got Tensor"):
        stream.push(torch.zeros(1, 7))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a VRNN, got int"):
        Stream(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        Stream(model(), 0)
    with pytest.raises(ValueError, match="Stream takes no conditioning input"):
        Stream(model(cond_size=2))
    with pytest.raises(TypeError, match=r"float32 or float64, and the model is torch\.bfloat16"):
        Stream(model(dtype=torch.bfloat16))


def test_a_stream_without_the_native_module_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.sys.modules, "vrnn_fast._native", None)
    with pytest.raises(RuntimeError, match="Stream needs the native module, which is not built"):
        Stream(model())
