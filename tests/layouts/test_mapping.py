"""Models as they are found: their names, their parts outside of the scan, mappings, and damaged checkpoints."""

from __future__ import annotations

import copy
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from tests.support.foreign import copied, wild
from vrnn_fast import VRNN, LayoutError, ProofError, accelerate, cli, load_checkpoint
from vrnn_fast.acceleration.module import Accelerated
from vrnn_fast.cell.spec import Std
from vrnn_fast.checkpoints.convert import convert
from vrnn_fast.layouts.base import Run

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def assert_same(model: nn.Module, fast: nn.Module, *arguments: Any) -> None:
    """Outputs, gradients and buffers of both from the same seed and the same buffers."""
    assert isinstance(fast, Accelerated)
    held, found = copy.deepcopy(dict(model.named_buffers())), []
    for module in (model, fast):
        for name, buffer in module.named_buffers():
            buffer.copy_(held[name])
        torch.manual_seed(3)
        output = module(*arguments)
        total = sum(t.square().sum() for t in tensors(output))
        gradients = torch.autograd.grad(total, list(module.parameters()), allow_unused=True)
        found.append((tensors(output), gradients, [b.clone() for b in module.buffers()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def binary() -> Tensor:
    return torch.rand(7, 5, 6).round()


# --- names


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("build", "data"),
    [
        (lambda: wild.LogVariances(6, 9, 4), lambda: torch.randn(7, 5, 6)),
        (lambda: wild.OneHead(6, 9, 4), binary),
        (lambda: wild.OneHead(6, 9, 4, inside=True), binary),
    ],
)
def test_variants_of_the_eager_vrnn_by_their_names(build: Callable[[], nn.Module], data: Callable[[], Tensor]) -> None:
    model = build()
    assert_same(model, accelerate(model), data())


@pytest.mark.usefixtures("double")
def test_a_checkpoint_with_log_variances() -> None:
    """Its numbers, and the Gaussian's deviation with them; where a module behind the head is unknown, it asks."""
    theirs, x = wild.LogVariances(6, 9, 4), torch.randn(7, 5, 6)
    state = theirs.state_dict()
    torch.manual_seed(0)
    kl, nll, _, logvars = theirs(x)
    torch.manual_seed(0)
    eps = torch.stack([torch.randn(5, 4) for _ in x])
    out = load_checkpoint(state)(x, eps=eps)
    torch.testing.assert_close(2 * out.posterior.std.log(), torch.stack(logvars))
    torch.testing.assert_close((out.kl.sum(), out.nll.sum()), (kl, nll))
    hidden = {name.replace("enc_logvar.", "enc_logvar.0."): t for name, t in state.items()}
    with pytest.raises(LayoutError, match=r"do not tell whether enc_logvar gives log variances: pass std="):
        load_checkpoint(hidden)
    assert load_checkpoint(hidden, std=Std(floor=0.0)).spec.std == Std(floor=0.0)


class Renamed(copied.VRNN):
    """The eager VRNN whose standard deviations have another name, behind the same Softplus."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        for name in ("enc", "prior"):
            self._modules[f"{name}_logvar"] = self._modules.pop(f"{name}_std")

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name.replace("_std", "_logvar") if name in ("enc_std", "prior_std") else name)


def test_a_log_variance_by_name_is_a_deviation_by_its_softplus() -> None:
    fast = accelerate(Renamed(6, 9, 4))
    assert fast._recipe.structures[0].spec.std == Std(floor=0.0)


# --- what the output is


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("std", [None, Std(floor=0.1)])
def test_no_likelihood_is_guessed_from_a_name(std: Std | None) -> None:
    theirs, x = wild.Clamped(6, 9, 4), torch.randn(7, 5, 6)
    if std is not None:
        for head in (theirs.enc_std, theirs.prior_std, theirs.dec_std):
            head.append(Plus(std.floor))
    state = theirs.state_dict()
    words = r"what is made of the output of dec_mean\.0: pass likelihood='bernoulli' .*, 'gaussian' if dec_std\.0 gives"
    with pytest.raises(LayoutError, match=words):
        load_checkpoint(state)
    torch.manual_seed(0)
    _, nll, _, _ = theirs(x)
    torch.manual_seed(0)
    eps = torch.stack([torch.randn(5, 4, dtype=torch.float32) for _ in x]).double()
    ours = load_checkpoint(state, likelihood="gaussian", **({} if std is None else {"std": std}))
    torch.testing.assert_close(ours(x, eps=eps).nll.sum(), nll, rtol=0, atol=7 * 5 * 6 * 4 * copied.EPS / 0.1)


class Plus(nn.Module):
    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant


def test_a_head_alone_is_asked_for() -> None:
    with pytest.raises(
        LayoutError, match=r"made of the output of dec_mean\.0: pass likelihood='bernoulli' if a sigmoid"
    ):
        load_checkpoint(wild.OneHead(6, 9, 4).state_dict())
    state = wild.OneHead(6, 9, 4, inside=True).state_dict()
    assert load_checkpoint(state, likelihood="bernoulli").spec.decoder == (9, 9)


# --- parts outside of the scan


def crossed(run: Run) -> Any:
    """What :class:`wild.Notes` returns."""
    kl = kl_divergence(Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)).sum()
    return {"kl": kl, "nll": F.cross_entropy(run.heads[0].flatten(0, 1), run.x.flatten(), reduction="sum")}


PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "batch normalisation": (lambda: wild.normalised(6, 9, 4), binary, {}),
    "and dropout of x": (lambda: wild.normalised(6, 9, 4, dropout=0.3), binary, {}),
    "a convolution": (lambda: wild.convolved(6, 9, 4), binary, {"example": torch.rand(3, 2, 6)}),
    "an embedding": (lambda: wild.Notes(6, 9, 4), lambda: torch.randint(6, (7, 5)), {"layout": {"outputs": crossed}}),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PARTS)
def test_what_is_needed_outside_of_the_scan_alone_is_called_as_it_is(name: str, training: bool) -> None:
    build, data, options = PARTS[name]
    model = build()
    fast = accelerate(model, **options)
    for module in (model, fast):
        module.train(training)
    assert_same(model, fast, data())


def test_running_statistics_are_those_of_the_original() -> None:
    """One copy of them, moved by whichever module runs, and left alone by the proof."""
    model = wild.normalised(6, 9, 4)
    fast = accelerate(model)
    assert model.phi_x[1].num_batches_tracked == 0
    fast(binary())
    assert model.phi_x[1].num_batches_tracked == model.dec[0].num_batches_tracked == 7
    fast.eval()
    fast(binary())
    assert model.phi_x[1].num_batches_tracked == 7


class NormalisesAll(copied.VRNN):
    """Embeds all steps in one call, so that a batch is T * B rows."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.phi_x.insert(1, nn.BatchNorm1d(9))

    def forward(self, x: Tensor) -> Any:
        made = iter(self.phi_x(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        hook = self.phi_x.register_forward_hook(lambda *_: next(made))
        try:
            return super().forward(x)
        finally:
            hook.remove()


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (NormalisesAll(6, 9, 4), ProofError, r"differs by [\d.e-]+ .* in train\(\)"),
        (wild.convolved(6, 9, 4), LayoutError, "phi_x begins with Conv1d, .* pass example="),
    ],
)
def test_what_they_cannot_do_is_refused(model: nn.Module, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        accelerate(model)


@pytest.mark.parametrize(
    ("path", "module", "words"),
    [
        ("phi_z.1", nn.BatchNorm1d(9), r"phi_z\.1 is BatchNorm1d, .* inside of the recurrence it is not run here"),
        ("enc.1", nn.Dropout(0.2), r"enc\.1 is Dropout\(p=0\.2\): dropout inside of the recurrence"),
        ("dec.1", nn.Dropout(0.2), r"dec\.1 is Dropout\(p=0\.2\): dropout behind z draws between"),
    ],
)
def test_inside_of_the_scan_they_are_refused(path: str, module: nn.Module, words: str) -> None:
    model = copied.VRNN(6, 9, 4)
    model.set_submodule(path, module)
    with pytest.raises(LayoutError, match=words):
        accelerate(model)


def test_an_input_that_phi_x_takes_but_is_no_sequence() -> None:
    fast = accelerate(wild.normalised(6, 9, 4))
    with pytest.raises(ValueError, match=r"x must have 2 dimensions or more \(T, B, \.\.\.\), got shape \(6,\)"):
        fast(torch.rand(6))
    with pytest.raises(ValueError, match=r"x must have T >= 1 and B >= 1, got shape \(0, 5, 6\)"):
        fast(torch.rand(0, 5, 6))


# --- mappings


def forecast(run: Run) -> Any:
    kl = kl_divergence(Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)).sum(-1)
    error = (run.target - run.heads[0]).square().sum(-1)
    return {"kl": kl.mean(), "loss": error.mean() + run.arguments["weight"] * kl.mean()}


def apart(module: nn.Module, sees: Tensor, after: Tensor, recipe: Tensor, weight: float) -> tuple[Any, ...]:
    x, target, cond = (t.transpose(0, 1)[1:] for t in (sees, after, recipe))
    return x, cond, None, target


FORECASTER = {
    "phi_x": "look",
    "phi_z": "",
    "encoder": "post",
    "encoder_mean": "post_mu",
    "encoder_std": "post_sigma",
    "prior": "pri",
    "prior_mean": "pri_mu",
    "prior_std": "pri_sigma",
    "decoder": "tell",
    "decoder_heads": "out",
    "cell": "cell",
    "residual": True,
    "outputs": forecast,
}
BY_NAMES = {"x": "sees", "cond": "recipe", "target": "after", "skip": 1, "batch_first": True}
BY_FUNCTION = {"sequences": apart, "cond_networks": ("encoder", "prior", "decoder")}
SIZES = 6, 3, 2, 9, 4
ARGUMENTS = torch.randn(5, 7, 6), torch.randn(5, 7, 3), torch.randn(5, 7, 2), 0.3


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "options",
    [
        {"layout": FORECASTER | BY_NAMES, "example": tuple(ARGUMENTS)},
        {"layout": FORECASTER | BY_FUNCTION, "example": tuple(ARGUMENTS)},
    ],
)
def test_a_mapping_says_all_that_the_cell_can_do(options: dict[str, Any]) -> None:
    model = wild.Forecaster(*SIZES)
    arguments = tuple(a.double() if isinstance(a, Tensor) else a for a in ARGUMENTS)
    assert_same(model, accelerate(model, **options), *arguments)


@pytest.mark.usefixtures("double")
def test_a_mapping_makes_its_own_example() -> None:
    model = wild.Forecaster(6, 6, 2, 9, 4)
    fast = accelerate(model, layout=FORECASTER | BY_NAMES)
    assert_same(model, fast, torch.randn(5, 7, 6), torch.randn(5, 7, 6), torch.randn(5, 7, 2))


class FromTheSecond(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x[1:])[:2]


def from_the_second(module: nn.Module, x: Tensor) -> tuple[Tensor]:
    return (x[1:],)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layout", [{"skip": 1}, {"sequences": from_the_second}])
def test_a_loop_that_begins_at_the_second_step(layout: dict[str, Any]) -> None:
    model = FromTheSecond(6, 9, 4)
    assert_same(model, accelerate(model, layout=layout), binary())


def test_who_reads_the_conditioning_input() -> None:
    """Its width follows from any network that reads it."""
    for cond_networks in (("cell",), ("encoder",), ("encoder", "cell"), ("decoder",), ("prior", "cell")):
        for phi_x in ((9,), ()):
            state = dict(VRNN(6, 9, 4, phi_x=phi_x, cond_size=3, cond_networks=cond_networks).state_dict())
            layout = {"cond_networks": cond_networks} | ({} if phi_x else {"phi_x": ""})
            if cond_networks == ("encoder", "cell") and not phi_x:
                with pytest.raises(LayoutError, match="the widths of x and cond cannot be told"):
                    load_checkpoint(state, layout, likelihood="bernoulli")
                continue
            spec = load_checkpoint(state, layout, likelihood="bernoulli").spec
            assert (spec.input_size, spec.cond_size, spec.cond_networks) == (6, 3, cond_networks)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"residual": 1}, r"layout\['residual'\] must be True or False, got 1"),
        ({"skip": -1}, r"layout\['skip'\] must be an int >= 0, got -1"),
        (
            {"cond_networks": ("phi_x",)},
            r"layout\['cond_networks'\] may hold encoder, prior, decoder, phi_z, cell, got 'phi_x'",
        ),
        ({"cond_networks": "cell"}, r"layout\['cond_networks'\] must be a tuple of names out of .*, got 'cell'"),
        ({"std": "softplus"}, r"layout\['std'\] must be a vrnn_fast\.Std, got 'softplus'"),
        ({"activation": "swish"}, r"layout\['activation'\] must be one of relu, .*, got 'swish'"),
        ({"cond": 3}, r"layout\['cond'\] must be the name of an argument of forward, got 3"),
        ({"cond": "y", "outputs": forecast}, r"layout\['cond'\] must be one of forward's x, got 'y'"),
        ({"lengths": "x_len"}, r"layout\['lengths'\] must be one of forward's x, got 'x_len'"),
        ({"target": "x"}, r"layout\['target'\] goes with layout\['outputs'\]"),
        ({"sequences": 3}, r"layout\['sequences'\] must be a function, got 3"),
        ({"sequences": apart, "skip": 1}, r"layout\['sequences'\] stands for 'skip': leave out one or the other"),
    ],
)
def test_a_mapping_that_says_nothing_sensible(layout: dict[str, Any], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        accelerate(copied.VRNN(6, 9, 4), layout=layout)


# --- checkpoints


def test_a_trainers_file(tmp_path: Path) -> None:
    theirs = copied.VRNN(6, 9, 4, gaussian=True)
    torch.save(wild.Wrapped(theirs).checkpoint(), tmp_path / "epoch=3.ckpt")
    ours = load_checkpoint(tmp_path / "epoch=3.ckpt")
    torch.testing.assert_close(ours.enc_mean.weight, theirs.enc_mean.weight)
    own = VRNN(6, 9, 4, phi_x=(3,), activation="tanh")
    torch.save(wild.Wrapped(own).checkpoint(), tmp_path / "own.ckpt")
    assert load_checkpoint(tmp_path / "own.ckpt").spec == own.spec


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_model_in_a_file(legacy: bool, tmp_path: Path) -> None:
    torch.save(copied.VRNN(6, 9, 4), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LayoutError, match=r"m\.pt holds no tensors .*; save model\.state_dict\(\)$") as caught:
        load_checkpoint(tmp_path / "m.pt")
    assert str(caught.value).isprintable()
    assert legacy or "a whole model or other objects in it (tests.support.foreign.copied.VRNN)" in str(caught.value)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(LayoutError, match=r"no checkpoint at a{80}\.\.\.: File name too long"):
        load_checkpoint("a" * 5000)


FLIPS = 150  # of each kind of file


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_a_flipped_bit_is_no_others_exception(ours: bool, legacy: bool, tmp_path: Path) -> None:
    own: dict[str, Any] = {"phi_x": (3,), "phi_z": (), "encoder": (), "prior": (), "decoder": ()}
    model = VRNN(2, 3, 2, **own) if ours else copied.VRNN(2, 3, 2)
    file, chance = io.BytesIO(), random.Random(2 * ours + legacy)
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=not legacy)
    content, path, refused = file.getvalue(), tmp_path / "flipped.pth", 0
    for _ in range(FLIPS):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_checkpoint(path, **({} if ours else {"likelihood": "bernoulli"}))
        except LayoutError:
            refused += 1
    assert FLIPS // 10 < refused < FLIPS


def flipped(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) >= 1
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"num_layers", b"num_layerq", r"can be built: TypeError: .* 'num_layerq'"),
        (b"enc_mean.weight", b"enc_mea[.weight", "found enc_mean.bias"),
        (b"dec_mean.0.bias", b"dec_mean.0.\x1b[/s", "no such tensor"),
    ],
)
def test_on_the_command_line_it_is_one_line(
    old: bytes,
    new: bytes,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.pth"
    torch.save(VRNN(6, 9, 4).state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(flipped(path.read_bytes(), old, new))
    with pytest.raises(LayoutError):
        convert(path, tmp_path / "new.safetensors", "auto", {})
    monkeypatch.setattr(sys, "argv", ["vrnn-fast", "convert", str(path), str(tmp_path / "new.safetensors")])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    assert message.isprintable()
