"""Checkpoints of foreign layouts as modules of ours, from a dictionary, a file, and the command line."""

from __future__ import annotations

import math
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.support.foreign import audio, copied, deep, dynamical, own, trajectories, variants
from tests.support.likelihoods import Laplace
from vrnn_fast import (
    VRNN,
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    GaussianMixture,
    LayoutError,
    Likelihood,
    SharedMixture,
    cli,
    load_checkpoint,
)
from vrnn_fast.cell.spec import Std
from vrnn_fast.checkpoints import files
from vrnn_fast.checkpoints.convert import convert


def means(model: nn.Module, x: Tensor) -> Tensor:
    """The posterior means of the eager VRNN, or of ours, from the same noise."""
    torch.manual_seed(0)
    if isinstance(model, VRNN):
        eps = torch.stack([torch.randn(x.shape[1], model.latent_size) for _ in x])
        return model(x, eps=eps).posterior.mean
    return torch.stack(model(x)[2][0])


def likelihood_of(gaussian: bool) -> dict[str, Any]:
    """What no checkpoint of the eager VRNN tells: that a sigmoid follows its mean."""
    return {} if gaussian else {"likelihood": "bernoulli"}


@pytest.fixture
def theirs() -> copied.VRNN:
    return copied.VRNN(6, 9, 4)


def agree(ours: VRNN, theirs: nn.Module) -> None:
    x = (torch.rand(7, 5, 6) < 0.4).float()
    torch.testing.assert_close(means(ours, x), means(theirs, x))


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "a.net."])
def test_a_state_dict(gaussian: bool, bias: bool, prefix: str) -> None:
    theirs = copied.VRNN(6, 9, 4, bias=bias, gaussian=gaussian, fixed=True)
    ours = load_checkpoint({prefix + name: t for name, t in theirs.state_dict().items()}, **likelihood_of(gaussian))
    assert ours.spec.likelihood == ("gaussian" if gaussian else "bernoulli")
    assert ours.spec.bias == bias
    agree(ours, theirs)


def test_ours_goes_through_too() -> None:
    model = VRNN(6, 9, 4, phi_x=(7,), decoder=(5,), dtype=torch.float64)
    again = load_checkpoint(model.state_dict())
    assert again.spec == model.spec
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


OURS: dict[str, dict[str, Any]] = {
    "of other constants": {
        "std": Std("log_std", clamp=(-3.0, math.inf)),
        "likelihood": Gaussian(0.1),
        "activation": "tanh",
    },
    "of another cell": {"cell": "rnn", "nonlinearity": "elu", "num_layers": 2, "bias": False, "residual": True},
    "of packed heads": {
        "packed_heads": True,
        "input_order": {"encoder": ("h", "phi_x")},
        "likelihood": SharedMixture(2),
    },
    "without a prior": {"prior": "standard_normal", "batch_first": True, "likelihood": Categorical(3)},
    "of layers by name": {
        "activation": {"phi_x": ("tanh", "identity"), "dec_mean": "elu"},
        "head_layers": {"dec_mean": (5,), "enc_std": (3, 2)},
    },
    "of all that came last": {
        "layer_norm": ("encoder", "phi_x"),
        "layer_norm_eps": 1e-3,
        "learn_initial_state": True,
        "activation": {"phi_x": "silu", "decoder": "gelu"},
        "input_order": {"decoder": ("z", "h"), "cell": ("phi_z",)},
    },
    "of constants twice": {"likelihood": Gaussian(std=Std(offset=0.3)), "activation": {"phi_x": "leaky_relu"}},
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kept", ["in memory", "in a file", "among others, in a wrapper", "converted", "twice"])
def test_ours_is_told_by_its_state_dict(name: str, kept: str, tmp_path: Path) -> None:
    model = VRNN(6, 9, 4, dtype=torch.float64, **OURS[name])
    state: Any = nn.DataParallel(model).state_dict() if kept.startswith("among") else model.state_dict()
    if kept != "in memory":
        among = {"epoch": 3, "networks": {"model": state}}
        torch.save(among if kept.startswith("among") else state, tmp_path / "ours.pt")
        state = tmp_path / "ours.pt"
    for number in range({"converted": 1, "twice": 2}.get(kept, 0)):
        convert(state, tmp_path / f"{number}.safetensors", "auto", {})
        state = tmp_path / f"{number}.safetensors"
    again = load_checkpoint(state)
    assert again.spec == model.spec
    assert repr(again.likelihood) == repr(model.likelihood)
    assert again.batch_first == model.batch_first
    assert type(again.initial_state) is type(model.initial_state)
    x, eps = torch.rand(5, 7, 6).round().double(), torch.randn(5, 7, 4).double()
    assert torch.equal(again(x, eps=eps).loss, model(x, eps=eps).loss)


@pytest.mark.parametrize("converted", [False, True])
def test_a_likelihood_of_your_own_is_passed(converted: bool, tmp_path: Path) -> None:
    model = VRNN(6, 9, 4, likelihood=Laplace(), activation="tanh", residual=True)
    state: Any = model.state_dict()
    if converted:
        torch.save(state, tmp_path / "ours.pt")
        state = tmp_path / "ours.safetensors"
        convert(tmp_path / "ours.pt", state, "auto", {"likelihood": Laplace()})
    assert load_checkpoint(state, likelihood=Laplace()).spec == model.spec
    with pytest.raises(LayoutError, match="the likelihood Laplace is a class of your own: pass likelihood="):
        load_checkpoint(state)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_a_file_of_torch(theirs: copied.VRNN, tmp_path: Path, legacy: bool, beside: bool) -> None:
    path = tmp_path / "old.pth"
    optimizer = torch.optim.Adam(theirs.parameters())
    stored: Any = theirs.state_dict()
    if beside:
        stored = {"epoch": 3, "optimizer": optimizer.state_dict(), "model": stored}
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    agree(load_checkpoint(path, likelihood="bernoulli"), theirs)
    agree(load_checkpoint(str(path), layout="eager-vrnn", likelihood="bernoulli"), theirs)


@pytest.fixture
def double() -> Iterator[None]:
    """Models, and the states that they make themselves, in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("gaussian", [False, True])
def test_eager_vrnn_is_exact(gaussian: bool) -> None:
    """No floor that the original does not have: its losses up to what it adds inside of logarithms itself."""
    theirs, x = copied.VRNN(6, 9, 4, gaussian=gaussian, fixed=True), (torch.rand(7, 5, 6) < 0.4).double()
    ours = load_checkpoint(theirs.state_dict(), **likelihood_of(gaussian))
    torch.manual_seed(0)
    kl, nll, (means, stds), _ = theirs(x)
    torch.manual_seed(0)
    out = ours(x, eps=torch.stack([torch.randn(5, 4, dtype=torch.float32) for _ in range(7)]).double())
    torch.testing.assert_close(out.posterior.mean, torch.stack(means), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.posterior.std, torch.stack(stds), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.kl.sum(), kl, rtol=0, atol=7 * 5 * 4 * 4 * copied.EPS)
    torch.testing.assert_close(out.nll.sum(), nll, rtol=0, atol=7 * 5 * 6 * 4 * copied.EPS)


def test_arrays(theirs: copied.VRNN, tmp_path: Path) -> None:
    arrays = {name: t.numpy() for name, t in theirs.state_dict().items()}
    agree(load_checkpoint(arrays, likelihood="bernoulli"), theirs)
    np.savez(tmp_path / "old.npz", **arrays)
    agree(load_checkpoint(tmp_path / "old.npz", likelihood="bernoulli"), theirs)


def test_arguments_say_what_names_and_shapes_do_not() -> None:
    theirs = copied.VRNN(6, 9, 4, act=nn.Tanh)
    arguments = {"activation": "tanh", "batch_first": True, "std": Std(floor=0.0), "likelihood": "bernoulli"}
    ours = load_checkpoint(theirs.state_dict(), **arguments)
    assert ours.batch_first
    ours.batch_first = False
    agree(ours, theirs)


def test_a_mapping() -> None:
    layout = {
        "phi_x": "embed",
        "phi_z": "embed_latent",
        "encoder": "infer",
        "encoder_mean": "infer_mu",
        "encoder_std": "infer_sigma",
        "prior": "expect",
        "prior_mean": "expect_mu",
        "prior_std": "expect_sigma",
        "decoder": "render",
        "decoder_heads": "logits",
        "cell": "memory",
        "activation": "elu",
        "batch_first": True,
    }
    theirs = own.SequenceModel(6, 9, 4)
    ours = load_checkpoint(theirs.state_dict(), layout, likelihood="bernoulli")
    x = torch.rand(5, 7, 6)
    torch.manual_seed(0)
    eps = torch.stack([torch.randn(5, 4) for _ in range(7)], 1)
    torch.manual_seed(0)
    logits = theirs(x)["logits"]
    torch.testing.assert_close(ours(x, eps=eps, outputs=("prediction",)).prediction, torch.sigmoid(logits))


def test_dynamical_vae(tmp_path: Path) -> None:
    theirs = dynamical.VRNN(6, 4, dense_z=(7, 8), dim_RNN=9)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    with pytest.warns(UserWarning, match="hidden layers are taken as tanh and the output as log variances"):
        ours = load_checkpoint(tmp_path / "theirs.pt")
    x, eps = torch.rand(7, 5, 6), torch.randn(7, 5, 4)
    torch.manual_seed(0)
    eps = torch.stack([torch.randn(5, 4) for _ in range(7)])
    torch.manual_seed(0)
    y = theirs(x)
    out = ours(x, eps=eps)
    torch.testing.assert_close(out.posterior.mean, theirs.z_mean)
    torch.testing.assert_close((out.nll.sum() + out.kl.sum()), theirs.loss(x, y) - 7 * 5 * 4 / 2)


def test_deep_features() -> None:
    theirs, x = deep.VRNN(6, 9, 4), torch.rand(5, 7, 6)
    state = {f"module.{name}": t for name, t in theirs.state_dict().items()}
    with pytest.raises(
        LayoutError, match=r"what is made of the output of decoder_mean\.4: pass likelihood='bernoulli'"
    ):
        load_checkpoint(state)
    ours = load_checkpoint(state, likelihood="bernoulli")
    assert ours.batch_first
    torch.manual_seed(0)
    eps = torch.stack([torch.rand(5, 4) for _ in range(7)], 1)
    torch.manual_seed(0)
    means = torch.stack(theirs(x)[4], 1)
    torch.testing.assert_close(ours(x, eps=eps, outputs=("prediction",)).prediction, means)
    assert ours.spec.std == Std(floor=0.0)


def test_affine_ends_are_told_by_an_argument() -> None:
    """Shapes are those of layers with an activation behind them."""
    theirs = variants.AffineEnds(6, 9, 4)
    affine = {"phi_x": ("relu", "identity"), "phi_z": "identity", "encoder": ("elu", "relu"), "prior": "identity"}
    ours = load_checkpoint(theirs.state_dict(), activation=affine, likelihood="gaussian", std=Std(floor=0.0))
    agree(ours, theirs)


def test_heads_with_layers_of_their_own_are_told_by_shapes() -> None:
    theirs = variants.DeepMean(6, 9, 4)
    arguments = {"likelihood": "bernoulli", "activation": {"dec_mean": "tanh"}, "std": Std(floor=0.0)}
    ours = load_checkpoint(theirs.state_dict(), **arguments)
    assert ours.spec.own_layers == (("dec_mean", (7,)),)
    agree(ours, theirs)
    again = VRNN(6, 9, 4, bias=False, head_layers={"dec_mean": (7,)}, **arguments)
    with pytest.warns(UserWarning, match="dropped dec_std"):
        again.load_state_dict(theirs.state_dict())
    for model in (ours, again):
        torch.manual_seed(0)
        eps, x = torch.stack([torch.randn(5, 4) for _ in range(7)]), torch.ones(7, 5, 6)
        torch.manual_seed(0)
        right = torch.stack(theirs(x)[3][0])
        torch.testing.assert_close(model(x, eps=eps, outputs=("prediction",)).prediction, right)


@pytest.mark.usefixtures("double")
def test_trajectories() -> None:
    theirs, states = trajectories.VRNN(6, 6, 4, 7, 9), torch.randn(8, 5, 6)
    ours = load_checkpoint(theirs.state_dict())
    assert ours.num_layers == 2
    torch.manual_seed(0)
    eps = torch.stack([torch.randn(5, 4) for _ in range(7)])
    torch.manual_seed(0)
    losses = theirs(states)
    out = ours(states[1:], cond=states[:-1], eps=eps)
    torch.testing.assert_close(out.kl.sum().unsqueeze(0), losses["kl_loss"], rtol=1e-12, atol=1e-12)
    # Theirs adds the float32 neighbour of the constant for each number that is predicted.
    cut = trajectories.half_log_two_pi(states).double() - 0.5 * math.log(2 * math.pi)
    recon = losses["recon_loss"] - states[1:].numel() * cut
    torch.testing.assert_close(out.nll.sum().unsqueeze(0), recon, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("agent", "agents"), [(0, 3), (1, 3), (2, 3), (0, 1)])
def test_one_of_several_agents(agent: int, agents: int, tmp_path: Path) -> None:
    """What its networks give, and the gradients of the losses, in which all agents' are added up."""
    theirs, states = trajectories.Agents(agents, 2, 4, 7, 9), torch.randn(8, 5, 2 * agents)
    names = "enc_mean", "enc_std", "prior_mean", "prior_std", "dec_mean", "dec_std"
    given: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:
        theirs.get_submodule(f"{name}.{agent}").register_forward_hook(lambda *args, n=name: given[n].append(args[2]))
    torch.manual_seed(0)
    eps = torch.stack([torch.stack([torch.randn(5, 4) for _ in range(agents)])[agent] for _ in range(7)])
    torch.manual_seed(0)
    sum(theirs(states).values()).backward()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    arguments = ["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors"), "--agent", str(agent)]
    CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    gradients = load_checkpoint({name: p.grad for name, p in theirs.named_parameters()}, agent=agent)
    x = states[1:, :, 2 * agent : 2 * agent + 2]
    for ours in (load_checkpoint(theirs.state_dict(), agent=agent), load_checkpoint(arguments[2])):
        out = ours(x, cond=states[:-1], eps=eps, outputs=("prior", "prediction"))
        found = (*out.posterior, *out.prior, *out.prediction)
        for name, value in zip(names, found, strict=True):
            torch.testing.assert_close(value, torch.stack(given[name]), rtol=1e-12, atol=1e-12, msg=name)
        (out.kl.sum() + out.nll.sum()).backward()
        for (name, p), right in zip(ours.named_parameters(), gradients.parameters(), strict=True):
            torch.testing.assert_close(p.grad, right.data, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("agent", [None, 3, -1, True, "0"])
def test_which_agent_must_be_told(agent: Any) -> None:
    words = r"holds the networks of 3 agents, .* by agent=0 to agent=2 \(--agent on the command line\), got "
    with pytest.raises(LayoutError, match=words + repr(agent)):
        load_checkpoint(trajectories.Agents(3, 2, 4, 7, 9).state_dict(), agent=agent)


def test_of_a_list_of_one_agent_none_need_be_told() -> None:
    state = trajectories.Agents(1, 6, 4, 7, 9).state_dict()
    one, again = load_checkpoint(state).state_dict(), load_checkpoint(state, agent=0).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in again)
    with pytest.raises(LayoutError, match=r"holds the networks of 1 agent, .* by agent=0 \(.*\), got 1"):
        load_checkpoint(state, agent=1)


@pytest.mark.parametrize("kept", ["theirs", "ours", "converted"])
def test_without_a_list_of_agents_there_is_none_to_choose(kept: str, theirs: copied.VRNN, tmp_path: Path) -> None:
    source: Any = theirs.state_dict() if kept == "theirs" else VRNN(6, 9, 4).state_dict()
    if kept == "converted":
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        source = tmp_path / "ours.safetensors"
        convert(tmp_path / "theirs.pth", source, "auto", {"likelihood": "bernoulli"})
    with pytest.raises(LayoutError, match=r"agent must be left out, .* got 0"):
        load_checkpoint(source, agent=0)


class Agents(nn.Module):
    """The eager VRNN for each agent of a list: the first one's mean is ``dec_mean.0`` with a sigmoid, and without one
    as well."""

    def __init__(self, gaussian: bool, count: int) -> None:
        super().__init__()
        agents = [copied.VRNN(6, 9, 4, gaussian=gaussian, fixed=True) for _ in range(count)]
        for name in dict(agents[0].named_children()):
            self.add_module(name, nn.ModuleList([agent.get_submodule(name) for agent in agents]))


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(("agent", "agents"), [(0, 2), (1, 2), (0, 1)])
def test_what_the_output_of_an_agent_is(gaussian: bool, agent: int, agents: int) -> None:
    state = Agents(gaussian, agents).state_dict()
    if not gaussian:
        with pytest.raises(LayoutError, match=r"what is made of the output of dec_mean\.\d\.0: pass likelihood="):
            load_checkpoint(state, agent=agent)
    ours = load_checkpoint(state, agent=agent, **likelihood_of(gaussian))
    assert ours.spec.likelihood == ("gaussian" if gaussian else "bernoulli")


def assert_equal_runs(theirs: audio.VRNNAudio, ours: VRNN) -> None:
    """Both on the same noise, lengths and state."""
    x, lengths = 2 * torch.rand(5, 42).double() - 1, torch.tensor([42, 12, 6, 30, 36])
    frames, state = x.unflatten(1, (7, 6)), torch.randn(5, 14).double()
    torch.manual_seed(0)
    eps = torch.stack([torch.randn(5, 4, dtype=torch.float64) for _ in range(7)], 1)
    torch.manual_seed(0)
    loss, _, outputs = theirs(x, lengths, beta=0.5, h0=state)
    out = ours(frames, lengths // 6, state=state[None], eps=eps, beta=0.5, normalizer=float(lengths.sum()))
    torch.testing.assert_close(-out.nll.sum(1), outputs.log_prob, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(out.elbo, outputs.elbo, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(out.kl.sum(1), outputs.kl, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(out.loss, loss, rtol=1e-11, atol=1e-11)


GAUSSIAN = (
    r"the posterior is taken as residual and the output is taken as Gaussian, .* pass residual=False, or for "
    r"discretised logistic distributions a likelihood= of your own"
)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("one", [True, False])
def test_speech_benchmark(residual: bool, one: bool, tmp_path: Path) -> None:
    likelihood = audio.OneGaussianDense() if one else audio.MixtureDense(3)
    theirs = audio.VRNNAudio(7, 4, 6, residual=residual, likelihood=likelihood).double()
    torch.save({"model_state_dict": theirs.state_dict()}, tmp_path / "theirs.pt")
    arguments: dict[str, Any] = {} if residual else {"residual": False}
    words = GAUSSIAN if residual else r"\): the output is taken as Gaussian"
    with pytest.warns(UserWarning, match=words):
        ours = load_checkpoint(tmp_path / "theirs.pt", **arguments)
    assert ours.input_size == 6
    assert ours.batch_first
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    assert_equal_runs(theirs, ours)
    with pytest.warns(UserWarning, match=words):
        convert(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", "auto", arguments)
    assert_equal_runs(theirs, load_checkpoint(tmp_path / "ours.safetensors"))


def test_speech_benchmark_with_another_floor() -> None:
    theirs = audio.VRNNAudio(7, 4, 6, likelihood=audio.OneGaussianDense()).double()
    theirs.vrnn.likelihood.sd_activation = audio.deviation(2.0, 0.3)
    likelihood = SharedMixture(1, 0.3, 2.0, width=2)
    assert_equal_runs(theirs, load_checkpoint(theirs.state_dict(), likelihood=likelihood, residual=True))


class SharedLogistic(nn.Module, Likelihood):
    """The speech benchmark's discretised logistic mixture.

    3 K values for each sample, a leaky ReLU and one layer for all samples.
    """

    def __init__(self, components: int, bins: int) -> None:
        super().__init__()
        self.width, self.bins = 3 * components, bins
        self.params = nn.Linear(self.width, self.width)

    def heads(self, features: int) -> dict[str, int]:
        return {"dec_shared": features * self.width}

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        values = self.params(nn.functional.leaky_relu(raw.unflatten(-1, (-1, self.width))))
        logits, mean, log_scale = values.chunk(3, -1)
        distance, half = x.unsqueeze(-1) - mean, 1 / (self.bins - 1)
        below, until = ((distance + d) / log_scale.clamp(min=-7).exp() for d in (-half, half))
        below = torch.where(x.unsqueeze(-1) < 2 / self.bins - 1, -torch.inf, below)
        until = torch.where(x.unsqueeze(-1) > 1 - 2 / self.bins, torch.inf, until)
        mass = torch.sigmoid(until) - torch.sigmoid(below)
        return (logits.softmax(-1) * mass).sum(-1).log().sum(-1)


def test_speech_benchmark_with_logistic_distributions() -> None:
    """Read as Gaussians with a warning, refused for another parametrisation, and exact with one that is theirs."""
    theirs = audio.VRNNAudio(7, 4, 6, likelihood=audio.LogisticMixtureDense(3)).double()
    state = theirs.state_dict()
    with pytest.warns(UserWarning, match=GAUSSIAN):
        assert isinstance(load_checkpoint(state).likelihood, SharedMixture)
    with pytest.warns(UserWarning, match=r"\): the posterior is taken as residual, which .* pass residual=False$"):
        load_checkpoint(state, likelihood=SharedLogistic(3, 256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load_checkpoint(state, likelihood=SharedLogistic(3, 256), residual=True)
    assert_equal_runs(theirs, ours)
    words = (
        r"DiscretizedLogisticMixture\(.*\) has no params for vrnn\.likelihood\.params: in layout speech-benchmark .* "
        r"K logits, means and log scales, at least -7; DiscretizedLogisticMixture has three heads instead, no such "
        r"layer, and scales "
    )
    with pytest.raises(LayoutError, match=words):
        load_checkpoint(state, likelihood=DiscretizedLogisticMixture(3))
    with pytest.raises(LayoutError, match="gaussian has no params"):
        load_checkpoint(state, likelihood="gaussian")


def test_of_the_speech_benchmark_two_or_three_values_are_read() -> None:
    state = audio.VRNNAudio(7, 4, 6, 3).state_dict()
    state |= {"vrnn.decoder.4.weight": torch.zeros(24, 7), "vrnn.decoder.4.bias": torch.zeros(24)}
    with pytest.raises(LayoutError, match=r"vrnn\.decoder\.4 must give two values .* found 24"):
        load_checkpoint(state)


def test_safetensors_of_others(theirs: copied.VRNN, tmp_path: Path) -> None:
    save_file(theirs.state_dict(), tmp_path / "old.safetensors")
    agree(load_checkpoint(tmp_path / "old.safetensors", likelihood="bernoulli"), theirs)
    convert(tmp_path / "old.safetensors", tmp_path / "new.safetensors", "auto", {"likelihood": "bernoulli"})
    agree(load_checkpoint(tmp_path / "new.safetensors"), theirs)


def test_a_run_is_not_converted(tmp_path: Path) -> None:
    """What it was trained on may be standardised, as its checkpoint alone tells."""
    files.save(tmp_path / "best.safetensors", VRNN(6, 9, 4).state_dict(), {"source": {}, "model": {}, "train": {}})
    with pytest.raises(LayoutError, match=r"best\.safetensors is a run's checkpoint, not a converted file"):
        load_checkpoint(tmp_path / "best.safetensors")
    with pytest.raises(LayoutError, match=r"best\.safetensors is a run's checkpoint, not a converted file"):
        convert(tmp_path / "best.safetensors", tmp_path / "new.safetensors", "auto", {})


def test_converted_on_the_command_line(theirs: copied.VRNN, tmp_path: Path) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save(theirs.state_dict(), old)
    arguments = ["convert", str(old), str(new), "--likelihood", "bernoulli"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "VRNN(" in result.output
    agree(load_checkpoint(new), theirs)


@pytest.mark.parametrize("arguments", [("missing.pth", "new.safetensors"), ("old.pth", "new.pth")])
def test_one_line_and_status_one(
    theirs: copied.VRNN,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, str],
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "old.pth")
    monkeypatch.setattr(sys, "argv", ["vrnn-fast", "convert", *(str(tmp_path / a) for a in arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


class Malicious:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for legacy in (False, True):
        torch.save({"x": Malicious()}, tmp_path / "bad.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(LayoutError, match=r"bad\.pth holds no tensors that can be read without running code"):
            load_checkpoint(tmp_path / "bad.pth")
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(LayoutError):
        load_checkpoint(tmp_path / "bad.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_an_archive_of_arrays_that_is_damaged(theirs: copied.VRNN, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: t.numpy() for name, t in theirs.state_dict().items()})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LayoutError, match=r"bad\.npz holds no tensors that can be read"):
        load_checkpoint(path)


def without(name: str) -> dict[str, Tensor]:
    state = copied.VRNN(6, 9, 4).state_dict()
    return {n: t for n, t in state.items() if not n.startswith(name)}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            without("enc_mean"),
            r"layout eager-vrnn .*: looked for phi_x, .*; no enc_mean\n.*found: phi_x\.0\.weight \(9, 6\)",
        ),
        ({}, "there is no state dict in {}"),
        ({"epoch": 3, "model": {"lr": 0.1}}, "there is no state dict in {epoch, model}"),
        (
            {**copied.VRNN(6, 9, 4).state_dict(), "extra.weight": torch.zeros(3, 3)},
            r"layout eager-vrnn .* has no place for extra\.weight",
        ),
        (
            {**trajectories.Agents(2, 3, 4, 7, 9).state_dict(), "enc.2.0.weight": torch.zeros(3, 3)},
            r"layout trajectories .* has no place for enc\.2\.0\.weight$",
        ),
        (
            {**without("rnn"), "rnn.weight_hh_l0": torch.zeros(18, 9)},
            r"rnn must be a GRU, .* found weight_hh_l0",
        ),
    ],
)
def test_what_is_no_checkpoint_of_a_known_layout(state: dict[str, Any], words: str) -> None:
    with pytest.raises(LayoutError, match=f"(?s){words}"):
        load_checkpoint(state)


def test_what_is_neither_a_mapping_nor_a_path() -> None:
    words = "state must be a state dict, a dictionary of arrays or a file's path, got VRNN"
    with pytest.raises(TypeError, match=words):
        load_checkpoint(VRNN(3, 4, 2))  # type: ignore[arg-type]


def test_a_likelihood_that_the_heads_do_not_fit() -> None:
    state = copied.VRNN(6, 9, 4).state_dict()
    with pytest.raises(LayoutError, match=r"GaussianMixture\(.*\) needs a decoder head dec_.* of width \d+, found 6"):
        load_checkpoint(state, likelihood=GaussianMixture(20))
