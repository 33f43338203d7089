"""An ordinary module: whatever torch's own layers can be put into. Gradients obey the law wherever they come from."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bench.peers.eager import EagerVRNN
from tests.support.oracle import Errors
from vrnn_fast import VRNN, SharedMixture, backends

X, H, Z, T, B = 5, 7, 3, 6, 4
LENGTHS = torch.tensor([6, 0, 3, 1])
needs_cpu = pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built")


def build(executor: str, **options: Any) -> VRNN:
    return VRNN(X, H, Z, backend=executor, **options)


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Numbers that float32 holds, in any dtype."""
    return torch.rand(T, B, X).round().to(dtype), torch.randn(T, B, Z).to(dtype)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# ---- gradients, wherever they come from

Gradients = dict[str, Tensor]


def of_parameters(model: nn.Module, loss: Tensor) -> Gradients:
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def plain(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    return of_parameters(model, model(x, LENGTHS, eps=eps).loss)


def deepcopied(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    return plain(copy.deepcopy(model), x, eps)


def pickled(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    return plain(pickle.loads(pickle.dumps(model)), x, eps)


def saved(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return plain(torch.load(file, weights_only=False), x, eps)


def functional(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    values = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.func.functional_call(model, values, (x, LENGTHS), {"eps": eps}).loss.backward()
    assert all(p.grad is None for p in model.parameters())
    return {name: v.grad for name, v in values.items() if v.grad is not None}


def weight_normalised(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            parametrizations.weight_norm(module)
    parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    found = plain(model, x, eps)
    assert "enc.0.parametrizations.weight.original0" in found
    return found


def autocast(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    narrow = x.bfloat16() if x.dtype == torch.float32 else x  # as a layer before it leaves it
    with torch.autocast("cpu", torch.bfloat16):
        out = model(narrow, LENGTHS, eps=eps)
    assert out.loss.dtype == x.dtype
    return of_parameters(model, out.loss)


def checkpointed(reentrant: bool) -> Callable[[VRNN, Tensor, Tensor], Gradients]:
    def run(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
        def losses(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            out = model(x, LENGTHS, eps=eps)
            return out.loss, out.latent

        x = x.clone().requires_grad_()  # the reentrant one looks at nothing but its tensor arguments
        loss, latent = checkpoint(losses, x, eps, use_reentrant=reentrant)
        found = of_parameters(model, loss + latent.square().mean())
        assert x.grad is not None
        return found | {"x": x.grad}

    return run


def with_hooks(model: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    seen = []
    model.enc[0].weight.register_hook(lambda g: 2 * g)
    model.prior_mean.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.shape))
    found = plain(model, x, eps)
    assert seen == [(Z,)]
    return found


WAYS = {
    "as it is": plain,
    "deepcopy": deepcopied,
    "pickle": pickled,
    "torch.save": saved,
    "functional_call": functional,
    "weight_norm": weight_normalised,
    "autocast": autocast,
    "checkpoint": checkpointed(False),
    "reentrant checkpoint": checkpointed(True),
    "hooks on parameters": with_hooks,
}


def assert_gradients_obey_the_law(
    executor: str, way: Callable[[VRNN, Tensor, Tensor], Gradients], **options: Any
) -> None:
    def found(model: VRNN, backend: str, dtype: torch.dtype, x: Tensor, eps: Tensor) -> Gradients:
        twin = copy.deepcopy(model).to(dtype)
        twin.backend = backend
        return way(twin, x.to(dtype), eps.to(dtype))

    errors = Errors(torch.float32)
    for seed in range(6):
        torch.manual_seed(seed)
        model = build(executor, **options)
        batch = data()
        ours = found(model, executor, torch.float32, *batch)
        errors.add(ours, *(found(model, "reference", dtype, *batch) for dtype in (torch.float32, torch.float64)))
    errors.assert_at_most_twice_torchs()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradients_obey_the_law(executor: str, way: str) -> None:
    assert_gradients_obey_the_law(executor, WAYS[way])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_deterministic_mode_takes_it_as_it_is(executor: str, cell: str, deterministic: None) -> None:
    model = build(executor, cell=cell, likelihood="gaussian")
    x, eps = data()
    found = []
    for _ in range(2):
        model.zero_grad()
        found.append(plain(model, x, eps))
        model.step(x[0], None, eps[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    torch.use_deterministic_algorithms(False)
    model.zero_grad()
    free = plain(model, x, eps)
    assert all(torch.equal(free[name], found[0][name]) for name in free)


def test_copies_are_models_of_their_own(executor: str) -> None:
    model = build(executor, likelihood="gaussian")
    x, eps = data()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        loss = model(x, eps=eps).loss
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
            assert torch.equal(twin(x, eps=eps).loss, loss)
            twin.enc_mean.bias.add_(1)
            assert not torch.equal(twin(x, eps=eps).loss, loss)
        assert torch.equal(model(x, eps=eps).loss, loss)


def test_a_parametrization_is_computed_at_every_call(executor: str) -> None:
    model = build(executor, dtype=torch.float64)
    x, eps = data(torch.float64)
    with torch.no_grad():
        loss = model(x, eps=eps).loss
        parametrizations.weight_norm(model.enc[0])
        torch.testing.assert_close(model(x, eps=eps).loss, loss)
        model.enc[0].parametrizations.weight.original0.mul_(2)
        changed = model(x, eps=eps).loss
        assert not torch.allclose(changed, loss)
        nn.utils.parametrize.remove_parametrizations(model.enc[0], "weight")
        torch.testing.assert_close(model(x, eps=eps).loss, changed)


# ---- auxiliary losses


class Forcing(nn.Module):
    """What z-forcing (Goyal et al. 2017) adds to a VRNN: a network that tells from each z_t what is still to come."""

    def __init__(self, vrnn: VRNN) -> None:
        super().__init__()
        self.vrnn = vrnn
        self.backward_state = nn.Linear(Z, X)

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        out = self.vrnn(x, LENGTHS, eps=eps)
        to_come = x.flip(0).cumsum(0).flip(0)
        real = torch.arange(T)[:, None] < LENGTHS
        auxiliary = (self.backward_state(out.latent) - to_come).square().sum(-1)[real].mean()
        return out.loss + 0.3 * auxiliary


def z_forcing(vrnn: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    torch.manual_seed(1)
    model = Forcing(vrnn)
    model.backward_state.to(x.dtype)
    return of_parameters(model, model(x, eps))


def on_latents_alone(vrnn: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    found = of_parameters(vrnn, vrnn(x, LENGTHS, eps=eps).latent.square().mean())
    inferring = ("phi_x", "phi_z", "enc", "rnn")
    reached = {name for name, g in found.items() if g.any()}
    assert reached == {name for name, _ in vrnn.named_parameters() if name.startswith(inferring)}
    return found


def along_the_prior(vrnn: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    """z drawn from the prior along the states of a sequence, and told from the posterior's."""
    out = vrnn(x, LENGTHS, eps=eps, outputs=("prior",))
    drawn = out.prior.mean + out.prior.std * eps
    found = of_parameters(vrnn, (drawn - out.latent).square().mean())
    assert all(g.any() for name, g in found.items() if not name.startswith("dec"))
    return found


def rolled_out(vrnn: VRNN, x: Tensor, eps: Tensor) -> Gradients:
    """A sequence, and what the model makes of its end: the last states are pulled to what the prior alone reaches."""
    out = vrnn(x[:2], eps=eps[:2])
    imagined = vrnn.rollout_prior(eps[2:], out.state)
    loss = (imagined.prediction - x[2:]).square().mean() + (imagined.latent.mean(0) - out.latent.mean(0)).square().sum()
    found = of_parameters(vrnn, loss)
    assert all(g.any() for g in found.values())
    return found


@pytest.mark.parametrize("way", [z_forcing, on_latents_alone, along_the_prior, rolled_out], ids=lambda f: f.__name__)
def test_auxiliary_losses_reach_the_parameters(executor: str, way: Callable[[VRNN, Tensor, Tensor], Gradients]) -> None:
    assert_gradients_obey_the_law(executor, way, cell="lstm", activation="tanh")


# ---- what is refused


@needs_cpu
@pytest.mark.parametrize("through", ["module", "operator"])
def test_second_derivatives_are_refused(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("cpu")
    x, eps = data()
    x.requires_grad_()
    if through == "operator":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # as traced code calls it
    loss = model(x, eps=eps).loss
    monkeypatch.undo()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    loss.backward(retain_graph=True)  # as long as nobody goes on from the gradient, nothing is refused
    with pytest.raises(RuntimeError, match=r"vrnn_fast has no second derivatives.*backend='reference'"):
        (loss + gradient.square().sum()).backward()


def test_the_reference_has_second_derivatives() -> None:
    model = build("reference", dtype=torch.float64, activation="tanh")
    x, eps = data(torch.float64)
    x = x[:2, :1].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: model(x, eps=eps[:2, :1]).loss, x)


@needs_cpu
def test_transforms_of_torch_func_are_left_to_the_reference() -> None:
    model = build("cpu")
    x, eps = data()

    def loss(x: Tensor) -> Tensor:
        return model(x, eps=eps).loss

    for call in (lambda: torch.func.grad(loss)(x), lambda: torch.func.jvp(loss, (x,), (x,))):
        with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot run: .* no transforms of torch\.func"):
            call()
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivatives"):
        loss(forward_ad.make_dual(x, x))
    model.backend = "auto"
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    with pytest.warns(UserWarning, match="running on 'reference', not on 'cpu': it knows gradients of reverse mode"):
        torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, x))).tangent
    torch.testing.assert_close(tangent, (expected * x).sum())


# ---- without gradients


def test_inference_mode_gives_the_same_numbers(executor: str) -> None:
    model = build(executor)
    x, eps = data()
    out, step = model(x, LENGTHS, eps=eps), model.step(x[0], None, eps[0])
    with torch.inference_mode():
        inside = model(x, LENGTHS, eps=eps)
        assert inside.loss.is_inference()
        assert torch.equal(inside.nll, out.nll)
        torch.testing.assert_close(model.step(x[0], None, eps[0]).nll, step.nll)
        assert model.generate(3, prefix=x, lengths=LENGTHS)[0].shape == (3, B, X)
        made_here = build(executor)  # its parameters count no versions
        made_here.load_state_dict(model.state_dict())
        assert torch.equal(made_here(x, LENGTHS, eps=eps).nll, out.nll)
    model(x, LENGTHS, eps=eps).loss.backward()  # nothing that was made inside is left over
    with torch.no_grad():
        assert torch.equal(model(x, LENGTHS, eps=eps).nll, out.nll)


def test_autocast_reaches_the_layers_around_it_alone(executor: str) -> None:
    before, model = nn.Linear(X, X), build(executor)
    x, eps = data()
    outside = model(x, eps=eps).nll
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x, eps=eps).nll, outside)
        features = torch.sigmoid(before(x))
        assert features.dtype == torch.bfloat16
        model(features, eps=eps).loss.backward()
        step = model.step(features[0].detach(), None, eps[0])
    assert before.weight.grad is not None
    assert before.weight.grad.any()
    assert step.prediction.dtype == torch.float32
    with pytest.raises(ValueError, match=r"x must have the parameters' dtype torch\.float32, got torch\.bfloat16"):
        model(features, eps=eps)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="parameters' dtype"):
        model(x.double(), eps=eps)


def test_autocast_leaves_likelihoods_outside_of_the_launch_alone(executor: str) -> None:
    """Also one that has a layer of its own, and what it predicts."""
    model = build(executor, likelihood=SharedMixture(2))
    x, eps = data()
    mask = torch.rand(x.shape) < 0.7

    def results() -> list[Tensor]:
        outs = [model(x, eps=eps, outputs=("prediction",), mask=given) for given in (None, mask)]
        step, played = model.step(x[0], None, eps[0]), model.rollout_prior(eps)
        found = [t for out in outs for t in (out.nll, *out.prediction)]
        return [*found, step.nll, *step.prediction, *played.prediction, model.bound(x, num_particles=2, eps=two)]

    two = torch.randn(T, B, 2, Z)
    outside = results()
    with torch.autocast("cpu", torch.bfloat16):
        for found, expected in zip(results(), outside, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_16_bits_are_added_up_in_more(dtype: torch.dtype) -> None:
    """A sum of long sequences is beyond float16, and stands still in bfloat16."""
    model = VRNN(X, H, Z, backend="reference", dtype=dtype)
    with torch.no_grad():
        out = model((torch.rand(300, 64, X) < 0.5).to(dtype))
        halved = model((torch.rand(300, 64, X) < 0.5).to(dtype), beta=0.5, free_nats=0.1, normalizer=7)
    exact = out.nll.double() + out.kl.double()
    assert exact.sum() > torch.finfo(torch.float16).max
    for found, right in ((out.loss, exact.mean()), (out.elbo, -exact.sum(0))):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), right, rtol=torch.finfo(dtype).eps, atol=0)
    right = (halved.nll.double() + 0.5 * halved.kl.double().clamp(min=0.1)).sum() / 7
    torch.testing.assert_close(halved.loss.double(), right, rtol=2 * torch.finfo(dtype).eps, atol=0)


# ---- what counters and profilers see


def counted(call: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


FAMILY: dict[str, dict[str, Any]] = {
    "gru": {},
    "lstm of two layers": {"cell": "lstm", "num_layers": 2, "bias": False},
    "raw x": {"cell": "rnn", "packed_heads": True, "phi_x": ()},
    "cond": {"cond_size": 2, "cond_networks": ("decoder", "cell"), "residual": True, "head_layers": (4,)},
    "affine ends": {
        "activation": {"phi_x": ("relu", "identity"), "phi_z": "identity"},
        "head_layers": {"enc_std": (4,), "dec_mean": (3,)},
    },
    "no z": {"latent_size": 0, "cond_size": 2},
}


@needs_cpu
@pytest.mark.parametrize("cell", FAMILY)
@pytest.mark.parametrize("wanted", [True, False], ids=["gradients of inputs", "of parameters alone"])
def test_flops_are_those_of_the_loop(cell: str, wanted: bool) -> None:
    model = VRNN(**{"input_size": X, "hidden_size": H, "latent_size": Z, **FAMILY[cell]})
    x, eps = torch.rand(T, B, X, requires_grad=wanted), torch.randn(T, B, model.latent_size)
    cond = torch.randn(T, B, 2, requires_grad=wanted) if model.spec.cond_size else None
    parts = [torch.zeros(model.num_layers, B, H, requires_grad=True) for _ in range(1 + (model.spec.cell == "lstm"))]
    found = []
    for backend in ("cpu", "reference"):
        model.backend = backend
        forward, out = counted(lambda: model(x, state=tuple(parts) if len(parts) > 1 else parts[0], eps=eps, cond=cond))
        end = sum(s.sum() for s in out.state)  # else the loop spares the last step of the cell
        found.append((forward, *counted((out.loss + end).backward)[:1]))
    if wanted or (model.spec.phi_x and cond is None):
        assert found[0] == found[1]
    else:  # beside h in one concatenation, the loop takes gradients of x and cond that nobody wants
        assert found[0][0] == found[1][0]
        assert found[0][1] < found[1][1] <= 2 * found[1][0]


@needs_cpu
def test_flops_of_a_module_loop_of_padding_and_of_a_step() -> None:
    model = build("cpu")
    eager = EagerVRNN(X, H, Z, phi_x=(H, H), phi_z=(H,), encoder=(H, H), prior=(H,), decoder=(H, H))
    x, eps = data()
    loop, run = counted(lambda: eager(x, eps))
    features = torch.cat([eager.phi_z(run.prior_mean[0]), torch.zeros(B, H)], 1).detach()
    decoded, _ = counted(lambda: eager.heads("dec", eager.dec(features), pair=False))
    again = 2 * B * Z * H + decoded  # phi_z and decoder, at the prior's mean
    with torch.no_grad():
        assert counted(lambda: model(x, eps=eps))[0] == loop  # on packed weights
        assert counted(lambda: model(x, LENGTHS, eps=eps))[0] == loop * int(LENGTHS.sum()) // (T * B)
        assert counted(lambda: model.step(x[0], None, eps[0]))[0] == loop // T + again


@needs_cpu
def test_flops_of_generation_are_those_of_the_loop() -> None:
    model = build("cpu", cell="lstm", likelihood="gaussian")
    ours, _ = counted(lambda: model.generate(T, batch_size=B))
    model.backend = "reference"
    loop, _ = counted(lambda: model.generate(T, batch_size=B))
    assert ours == loop > 0


@needs_cpu
def test_the_profiler_shows_every_phase() -> None:
    model = build("cpu", recompute=True)
    x, eps = data()
    model(x, LENGTHS, eps=eps)  # a program gets its number once in a process
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(x, LENGTHS, eps=eps).loss.backward()
        with torch.no_grad():
            model.step(x[0], None, eps[0])
    times = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    phases = {
        "forward": ("pack", "before", "scan", "after"),
        "backward": ("pack", "restore", "after", "scan", "before", "weights"),
    }
    for way, names in phases.items():
        inside = sum(times[f"vrnn_fast.{way}.{name}"] for name in names)
        assert 0 < inside <= times[f"vrnn_fast::{way}"]
    assert {key for key in times if key.startswith("vrnn_fast")} == {
        "vrnn_fast::step",
        "vrnn_fast::pack",
        "vrnn_fast::watch",
        *(f"vrnn_fast::{way}" for way in phases),
        *(f"vrnn_fast.{way}.{name}" for way, names in phases.items() for name in names),
    }
