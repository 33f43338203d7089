"""Foreign models, written afresh from their description, beside their accelerated selves."""

from __future__ import annotations

import copy
import inspect
import io
import operator
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from tests.support.foreign import audio, copied, deep, dynamical, own, trajectories, variants, wild
from tests.support.oracle import Errors
from tests.support.replay import RecordNoise, ReplayNoise
from vrnn_fast import VRNN, LayoutError, ProofError, accelerate, backends, checks
from vrnn_fast.acceleration.double import double_by_default
from vrnn_fast.acceleration.module import Accelerated
from vrnn_fast.executors.cpu import operators
from vrnn_fast.layouts.base import Run
from vrnn_fast.layouts.sampling import Player

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


@dataclass
class Case:
    """A foreign model in a variant, and its input. ``loss`` is what its users call backward on; ``rest`` are further
    arguments of its forward."""

    build: Callable[[], nn.Module]
    data: Callable[[], Tensor]
    loss: Callable[[Any], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    rest: tuple[Any, ...] = ()
    launches: int = 1  # of each direction and cell

    def accelerate(self, model: nn.Module) -> nn.Module:
        return accelerate(model, **self.options)

    def run(self, model: nn.Module, x: Tensor) -> Any:
        """What forward returns, its objects as dictionaries."""
        return opened(model(x, *self.rest))

    def copy(self, model: nn.Module) -> nn.Module:
        """Another such model with the same parameters."""
        twin = self.build().to(next(model.parameters()).dtype)
        twin.load_state_dict(model.state_dict())
        return twin


def opened(value: Any) -> Any:
    """A result whose namespaces and metrics are dictionaries."""
    if isinstance(value, (SimpleNamespace, audio.Metric)):
        return {name: opened(entry) for name, entry in vars(value).items()}
    return type(value)(map(opened, value)) if type(value) in (list, tuple) else value


def binary() -> Tensor:
    return (torch.rand(7, 5, 6) < 0.4).to(torch.get_default_dtype())


def real() -> Tensor:
    return torch.randn(7, 5, 6)


def batch_first() -> Tensor:
    return binary().transpose(0, 1)


def both(output: Any) -> Tensor:
    return output[0] + output[1]


def squares(output: Tensor) -> Tensor:
    return output.square().sum()


def one_layer_nets() -> nn.Module:
    """The eager VRNN with other depths and widths."""
    model = copied.VRNN(6, 9, 4)
    model.phi_x = nn.Sequential(nn.Linear(6, 7), nn.ReLU())
    model.phi_z = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 8), nn.ReLU())
    model.enc[0], model.dec[0] = nn.Linear(7 + 9, 9), nn.Linear(8 + 9, 9)
    model.rnn = nn.GRU(7 + 8, 9, 1)
    return model


def written(run: Run) -> Any:
    kl = kl_divergence(Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)).sum(-1)
    nll = F.binary_cross_entropy_with_logits(run.heads[0], run.x, reduction="none").sum(-1)
    return {"loss": (nll + kl).mean(), "logits": run.heads[0].transpose(0, 1)}


OWN = {
    "phi_x": "embed",
    "phi_z": "embed_latent",
    "encoder": "infer",
    "encoder_mean": "infer_mu",
    "encoder_std": "infer_sigma",
    "prior": "expect",
    "prior_mean": "expect_mu",
    "prior_std": "expect_sigma",
    "decoder": "render",
    "decoder_heads": ("logits",),
    "cell": "memory",
    "batch_first": True,
    "outputs": written,
}


def sound() -> Tensor:
    return 2 * torch.rand(5, 7 * 6) - 1


def first(output: Any) -> Tensor:
    loss: Tensor = output[0]
    return loss


SAMPLES = torch.tensor([42, 13, 6, 1, 30])  # real ones of each row

CASES = {
    "E": Case(lambda: copied.VRNN(6, 9, 4), binary, both),
    "E with biases": Case(lambda: copied.VRNN(6, 9, 4, bias=True), binary, both),
    "E Gaussian": Case(lambda: copied.VRNN(6, 9, 4, gaussian=True, fixed=True), real, both),
    "E with tanh": Case(lambda: copied.VRNN(6, 9, 4, act=nn.Tanh), binary, both),
    "E with LeakyReLU": Case(lambda: copied.VRNN(6, 9, 4, act=nn.LeakyReLU), binary, both),
    "E with one LeakyReLU": Case(lambda: changed(put("prior.1", nn.LeakyReLU())), binary, both),
    "E with other depths": Case(one_layer_nets, binary, both),
    "E with uniform noise": Case(lambda: variants.DrawsUniform(6, 9, 4), binary, both),
    "E with another return": Case(lambda: variants.ReturnsMeans(6, 9, 4), binary, lambda output: output["loss"]),
    "E with affine ends": Case(lambda: variants.AffineEnds(6, 9, 4), binary, both),
    "E with cross entropy": Case(lambda: variants.CrossEntropy(6, 9, 4), binary, both),
    "E with a rounded constant": Case(lambda: variants.RoundedConstant(6, 9, 4), real, lambda output: output["loss"]),
    "E with two layers": Case(lambda: copied.VRNN(6, 9, 4, n_layers=2, bias=True), binary, both),
    "H": Case(lambda: deep.VRNN(6, 9, 4), batch_first, lambda output: sum(map(squares, map(torch.stack, output)))),
    "H with heads unlike one another": Case(
        lambda: variants.UnlikeHeads(6, 9, 4), batch_first, lambda output: sum(map(squares, map(torch.stack, output)))
    ),
    "H with its losses": Case(lambda: deep.WithLosses(6, 9, 4), batch_first, lambda output: output[0]),
    "Z": Case(lambda: trajectories.VRNN(6, 6, 4, 7, 9), real, lambda output: output["kl_loss"] + output["recon_loss"]),
    "D with two layers": Case(lambda: dynamical.VRNN(6, 4, dim_RNN=9, num_RNN=2), real, squares),
    "D": Case(lambda: dynamical.VRNN(6, 4, dense_z=(7, 8), dim_RNN=9), real, squares),
    "D without hidden layers": Case(
        lambda: dynamical.VRNN(6, 4, "relu", (), (), (), (), (), 9, exponential=True), real, squares
    ),
    "Z for three agents": Case(
        lambda: trajectories.Agents(3, 2, 4, 7, 9), real, lambda output: output["kl_loss"] + output["recon_loss"]
    ),
    "Z for a list of one agent": Case(
        lambda: trajectories.Agents(1, 6, 4, 7, 9), real, lambda output: output["kl_loss"] + output["recon_loss"]
    ),
    "B": Case(lambda: audio.VRNNAudio(7, 4, 6, 3), sound, first, rest=(SAMPLES, 0.5, 0.1), launches=2),
    "B without a residual": Case(
        lambda: audio.VRNNAudio(7, 4, 6, 3, residual=False, scripted=False), sound, first, rest=(SAMPLES,), launches=2
    ),
    "B with logistic distributions": Case(
        lambda: audio.VRNNAudio(7, 4, 6, likelihood=audio.LogisticMixtureDense(3)),
        sound,
        first,
        rest=(SAMPLES, 0.5, 0.1),
        launches=2,
    ),
    "B with one Gaussian": Case(
        lambda: audio.VRNNAudio(7, 4, 6, likelihood=audio.OneGaussianDense()),
        sound,
        first,
        rest=(SAMPLES, 0.5, 0.1),
        launches=2,
    ),
    "B with another return": Case(lambda: audio.FramesOnly(7, 4, 6, 3), sound, first, {"layout": audio.SPEECH}),
    "a mapping": Case(lambda: own.SequenceModel(6, 9, 4), binary, lambda output: output["loss"], {"layout": OWN}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def results(case: Case, model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What a forward returns and leaves as attributes, and the gradients of a random mixture of it all."""
    x = x.clone().requires_grad_()
    output = case.run(model, x)
    found: dict[str, Any] = {
        f"output{pytree.keystr(path)}": leaf for path, leaf in pytree.tree_flatten_with_path(output)[0]
    }
    found |= {name: value for name, value in vars(model).items() if isinstance(value, Tensor) and name[0] != "_"}
    mixture = torch.Generator().manual_seed(0)
    total = sum(
        (t * torch.randn(t.shape, generator=mixture, dtype=torch.float32).to(t.dtype)).sum()
        for t in found.values()
        if isinstance(t, Tensor) and t.requires_grad
    )
    leaves = {"x": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return found | {f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}


def test_every_field_and_every_gradient_in_double_precision(case: Case) -> None:
    with default_dtype(torch.float64):
        model, x = case.build(), case.data()
        original = case.copy(model)
        fast = case.accelerate(model)
        torch.manual_seed(3)
        theirs = results(case, original, x)
        torch.manual_seed(3)
        ours = results(case, fast, x)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name], value, rtol=1e-11, atol=1e-12, msg=name)
        elif isinstance(value, float):
            assert ours[name] == pytest.approx(value, rel=1e-11, abs=1e-12), name
        else:
            assert ours[name] == value, name


def test_in_single_precision_by_the_law(case: Case) -> None:
    """The error, root mean square over some seeds, is at most twice the original's own, both against float64."""
    errors = Errors(torch.float32)
    for seed in range(6):
        torch.manual_seed(seed)
        model, x = case.build(), case.data()
        with default_dtype(torch.float64):
            precise = case.copy(model).double()
        fast = case.accelerate(model)
        with RecordNoise() as record:
            torch.manual_seed(seed)
            theirs = results(case, model, x)
        torch.manual_seed(seed)
        ours = results(case, fast, x)
        with default_dtype(torch.float64), ReplayNoise(record):
            oracle = results(case, precise, x.double())
        for name, right in oracle.items():
            if isinstance(right, Tensor) and right.is_floating_point():
                part = name.rstrip("0123456789[]")
                single = ours[name].float(), theirs[name].float()  # some metrics are float64, of float32 numbers
                errors.add({part: single[0]}, {part: single[1]}, {part: right})
    errors.assert_at_most_twice_torchs()


def test_three_steps_of_an_optimiser_that_was_built_before(case: Case) -> None:
    with default_dtype(torch.float64):
        model, x = case.build(), case.data()
        original = case.copy(model)
        optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1) for m in (original, model)]
        fast = case.accelerate(model)
        for step in range(3):
            for module, optimizer in zip((original, fast), optimizers, strict=True):
                torch.manual_seed(step)
                optimizer.zero_grad()
                case.loss(case.run(module, x)).backward()
                optimizer.step()
    for (name, p), q, r in zip(original.named_parameters(), model.parameters(), fast.parameters(), strict=True):
        assert q is r
        torch.testing.assert_close(q, p, rtol=1e-8, atol=1e-10, msg=name)
        assert (q.grad is None) == (p.grad is None), name


def test_it_is_the_original_to_whoever_looks(case: Case) -> None:
    model = case.build()
    fast = case.accelerate(model)
    assert isinstance(fast, type(model))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(p is q for p, q in zip(model.parameters(), fast.parameters(), strict=True))
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, value in vars(model).items():
        if not name.startswith("_"):
            assert getattr(fast, name) == value
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)


def test_the_original_goes_on_unchanged(case: Case) -> None:
    model, x = case.build(), case.data()
    modules = [(name, type(m)) for name, m in model.named_modules()]
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before, random = torch.get_default_dtype(), torch.get_rng_state()
    torch.manual_seed(1)
    theirs = tensors(case.run(model, x))
    torch.set_rng_state(random)
    fast = case.accelerate(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == before
    case.run(fast, x)
    fast.eval()
    assert all(m.training for m in model.modules())
    assert [(name, type(m)) for name, m in model.named_modules()] == modules
    assert not isinstance(model, Accelerated)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes | {"": set(vars(model))}
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(theirs, tensors(case.run(model, x)), strict=True))


@pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built")
def test_the_fused_executor_ran(case: Case) -> None:
    fast, x = case.accelerate(case.build()), case.data()
    before = sum(operators.launch_counts().values())
    case.loss(case.run(fast, x)).backward()
    assert sum(operators.launch_counts().values()) == before + 2 * case.launches * len(fast._recipe.structures)


class Graphs(list[torch.fx.GraphModule]):
    """A compiler that keeps what it is given, and compiles it as another does."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


def leaves_and_gradients(case: Case, run: nn.Module, fast: nn.Module, x: Tensor) -> list[Any]:
    """All that a forward returns but words, and the gradients of its loss."""
    fast.zero_grad()
    torch.manual_seed(2)
    output = case.run(run, x)
    case.loss(output).backward()
    leaves = [leaf for leaf in pytree.tree_leaves(output) if not isinstance(leaf, str)]
    return [*leaves, *(p.grad for p in fast.parameters())]


def assert_alike(traced: list[Any], ours: list[Any]) -> None:
    for a, b in zip(traced, ours, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b)


def test_it_compiles_into_one_graph(case: Case, graphs: Graphs) -> None:
    """What B logs is made beside it, by the original's classes, which read numbers out of tensors."""
    fast, x = case.accelerate(case.build()), case.data()
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    assert_alike(leaves_and_gradients(case, compiled, fast, x), leaves_and_gradients(case, fast, fast, x))
    assert len(graphs) == 1


def launches_in(graph: torch.fx.GraphModule) -> int:
    return sum(node.op == "call_function" and "vrnn_fast" in str(node.target) for node in graph.graph.nodes)


def test_b_compiles_in_place_and_for_every_beta_and_state(graphs: Graphs) -> None:
    case = CASES["B"]
    fast, x = case.accelerate(case.build()), case.data()
    calls = [(SAMPLES, 0.5, 0.1), (SAMPLES, 0.6, 0.1), (SAMPLES, 0.7, 0.1), (SAMPLES, 0.8, 0.1, torch.rand(5, 14))]
    eager = [leaves_and_gradients(replace(case, rest=rest), fast, fast, x) for rest in calls]
    fast.compile(fullgraph=True, backend=graphs)
    for rest, found in zip(calls, eager, strict=True):
        assert_alike(leaves_and_gradients(replace(case, rest=rest), fast, fast, x), found)
    assert len(graphs) == 3  # a number, any number, and from a state
    if backends()["cpu"].available:
        assert [launches_in(graph) for graph in graphs] == [case.launches] * 3


def test_b_compiles_once_more_for_another_length(graphs: Graphs) -> None:
    case = CASES["B"]
    fast = case.accelerate(case.build())
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    for samples in (42, 60, 42, 60):
        longer = replace(case, rest=(torch.cat([torch.tensor([samples]), SAMPLES[1:]]),))
        x = 2 * torch.rand(5, samples) - 1
        assert_alike(leaves_and_gradients(longer, compiled, fast, x), leaves_and_gradients(longer, fast, fast, x))
    assert len(graphs) == 2


def test_compiled_b_slices_where_the_compiler_knows(graphs: Graphs) -> None:
    """Inductor has no gradient of a slice that ends at a number out of a tensor."""
    case = CASES["B"]
    torch.compile(case.accelerate(case.build()), fullgraph=True, backend=graphs)(case.data(), *case.rest)
    stops = [
        part.stop
        for node in graphs[0].graph.find_nodes(op="call_function", target=operator.getitem)
        for part in pytree.tree_leaves(node.args[1])
        if isinstance(part, slice)
    ]
    assert any(isinstance(stop, int) for stop in stops)
    assert not any(isinstance(stop, torch.fx.Node) for stop in stops)


class Breaks(audio.MixtureDense):
    def log_prob(self, y: Tensor, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        torch._dynamo.graph_break()
        return super().log_prob(y, params)


def test_a_graph_break_in_b_still_raises(graphs: Graphs) -> None:
    """It is what comes after the launch alone that is not traced."""
    case = CASES["B"]
    fast = accelerate(audio.VRNNAudio(7, 4, 6, likelihood=Breaks(3)))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        torch.compile(fast, fullgraph=True, backend=graphs)(case.data(), *case.rest)
    assert not graphs


def test_compiled_b_refuses_what_reaches_not_the_end(graphs: Graphs) -> None:
    case = CASES["B"]
    fast = case.accelerate(case.build())
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    with pytest.raises(RuntimeError, match="x_sl must reach the last sample of x, in compiled code"):
        compiled(case.data(), SAMPLES.clamp(max=41))


def test_b_compiles_around_its_metrics_inside_of_other_code(graphs: Graphs) -> None:
    """In parts, where it may: a function of the user's calls it."""
    case = CASES["B"]
    fast, x = case.accelerate(case.build()), case.data()

    def step(x: Tensor) -> Tensor:
        return 2 * case.loss(fast(x, *case.rest))

    torch.manual_seed(2)
    ours = step(x)
    torch.manual_seed(2)
    torch.testing.assert_close(torch.compile(step, backend=graphs)(x), ours)
    assert max(map(launches_in, graphs)) > 0
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        torch.compile(step, fullgraph=True, backend=graphs)(x)


def test_a_copy_is_a_module_of_its_own(case: Case) -> None:
    fast, x = case.accelerate(case.build()), case.data()
    twin = copy.deepcopy(fast)
    assert not any(p is q for p, q in zip(fast.parameters(), twin.parameters(), strict=True))
    torch.manual_seed(0)
    ours = tensors(case.run(fast, x))
    torch.manual_seed(0)
    torch.testing.assert_close(tensors(case.run(twin, x)), ours)
    case.loss(case.run(twin, x)).backward()
    assert all(p.grad is None for p in fast.parameters())


PICKLED = [name for name in CASES if not name.startswith("B") or name == "B without a residual"]  # others are scripted


@pytest.mark.parametrize("name", PICKLED)
def test_it_is_saved_whole_where_the_original_is(name: str) -> None:
    case = CASES[name]
    fast, x = case.accelerate(case.build()), case.data()
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    found = []
    for module in (fast, torch.load(file, weights_only=False), pickle.loads(pickle.dumps(fast))):
        assert isinstance(module, Accelerated)
        torch.manual_seed(0)
        before = sum(operators.launch_counts().values())
        found.append(tensors(case.run(module, x)))
        if backends()["cpu"].available:
            assert sum(operators.launch_counts().values()) > before
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_pickle_keeps_what_is_mended_and_how_it_samples() -> None:
    fast = accelerate(copied.VRNN(6, 9, 4), fix=("kl",))
    twin = pickle.loads(pickle.dumps(fast))
    assert isinstance(twin, copied.VRNN)
    assert twin._recipe == fast._recipe
    if backends()["cpu"].available:
        before = sum(operators.launch_counts().values())
        twin.sample(3)
        assert sum(operators.launch_counts().values()) == before + 1
    dynamic = pickle.loads(pickle.dumps(accelerate(dynamical.VRNN(6, 4, dim_RNN=9), fix=("kl",))))
    x = torch.rand(7, 5, 6)
    y = dynamic(x)
    q, p = (
        Normal(dynamic.z_mean, (dynamic.z_logvar / 2).exp()),
        Normal(dynamic.z_mean_p, (dynamic.z_logvar_p / 2).exp()),
    )
    torch.testing.assert_close(dynamic.loss(x, y), dynamic.divergence(x, y) + kl_divergence(q, p).sum())


def test_outputs_that_cannot_be_imported_cannot_be_pickled() -> None:
    fast = accelerate(own.SequenceModel(6, 9, 4), layout={**OWN, "outputs": lambda run: written(run)})
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(fast)


class SamplesDoubled(copied.VRNN):
    def sample(self, seq_len: int) -> Tensor:
        return 2 * super().sample(seq_len)


def test_methods_of_the_class_run_as_they_are_written() -> None:
    """A sampling of its own, too."""
    model = SamplesDoubled(6, 9, 4)
    with pytest.warns(UserWarning, match="sample runs as its class is written, not on a backend"):
        fast = accelerate(model)
    torch.manual_seed(4)
    theirs = model.sample(5)
    torch.manual_seed(4)
    assert torch.equal(fast.sample(5), theirs)
    assert torch.equal(fast.kld(*[torch.ones(2, 4)] * 4), model.kld(*[torch.ones(2, 4)] * 4))


class SamplesInEval(copied.VRNN):
    def sample(self, seq_len: int) -> Tensor:
        return super().sample(seq_len) * (1 + self.training)


class SamplesBatches(copied.VRNN):
    def sample(self, batch: int, seq_len: int) -> Tensor:  # type: ignore[override]
        return torch.stack([super(SamplesBatches, self).sample(seq_len) for _ in range(batch)])


class SamplesItself(own.SequenceModel):
    def sample(self, seq_len: int) -> Tensor:
        return torch.randn(seq_len, 6)


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (SamplesDoubled, {}, r"sample differs by [\d.e-]+ with random parameters in train\(\) with gradients"),
        (SamplesInEval, {}, r"sample differs by [\d.e-]+ with random parameters in train\(\)"),
        (SamplesBatches, {}, "the original's own sample fails in float64 on 1, .*missing 1 required .* 'seq_len'"),
        (SamplesItself, {"layout": OWN}, "does not sample from such a decoder: the gaussian likelihood reads heads of"),
    ],
)
def test_a_sampling_that_is_not_proven_is_told_once(
    build: Callable[[int, int, int], nn.Module], options: dict[str, Any], words: str
) -> None:
    with pytest.warns(UserWarning, match="sample runs as its class is written.*" + words) as caught:
        accelerate(build(6, 9, 4), **options)
    assert sum("sample runs" in str(warning.message) for warning in caught) == 1


def test_a_fault_of_ours_in_sampling_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Player, "play", fails)
    with pytest.raises(ZeroDivisionError, match="ours"):
        accelerate(copied.VRNN(6, 9, 4))


STATES = torch.Generator().manual_seed(0)
SAMPLED: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], int]] = {
    "E": (lambda: copied.VRNN(6, 9, 4), (11,), 1),
    "E of one step": (lambda: copied.VRNN(6, 9, 4), (1,), 1),
    "E Gaussian": (lambda: copied.VRNN(6, 9, 4, gaussian=True, fixed=True), (11,), 1),
    "E with two layers and uniform noise": (lambda: variants.DrawsUniform(6, 9, 4, n_layers=2), (11,), 1),
    "Z": (lambda: trajectories.VRNN(6, 6, 4, 7, 9), (torch.randn(8, 5, 6, generator=STATES),), 7),
    "Z after a prefix": (lambda: trajectories.VRNN(6, 6, 4, 7, 9), (torch.randn(8, 5, 6, generator=STATES), 4), 1 + 3),
    "Z, all of it known": (lambda: trajectories.VRNN(6, 6, 4, 7, 9), (torch.randn(8, 5, 6, generator=STATES), 9), 1),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_the_originals(name: str) -> None:
    build, arguments, launches = SAMPLED[name]
    model = build()
    fast = accelerate(model)
    for _ in range(2):
        torch.manual_seed(4)
        with torch.no_grad():
            theirs = model.sample(*arguments)
        torch.manual_seed(4)
        before = sum(operators.launch_counts().values())
        with torch.no_grad():
            ours = fast.sample(*arguments)
        if backends()["cpu"].available:
            assert sum(operators.launch_counts().values()) == before + launches
        torch.testing.assert_close(ours, theirs)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.3)


def test_samples_have_the_gradients_of_the_originals() -> None:
    copied_, trajectory = accelerate(copied.VRNN(6, 9, 4)), accelerate(trajectories.VRNN(6, 6, 4, 7, 9))
    assert not copied_.sample(3).requires_grad
    assert trajectory.sample(torch.randn(4, 5, 6))[0].requires_grad
    with (
        pytest.raises(ValueError, match=r"states must have shape \(T \+ 1, B, X = 6\), got \(4, 5, 3\)"),
        torch.no_grad(),
    ):
        trajectory.sample(torch.randn(4, 5, 3))


def test_parametrized_layers_and_frozen_parameters() -> None:
    with default_dtype(torch.float64):
        model, x = copied.VRNN(6, 9, 4), binary()
        nn.utils.parametrizations.weight_norm(model.enc[0])
        model.prior[0].weight.requires_grad_(False)
        original, fast = copy.deepcopy(model), accelerate(model)
        assert list(fast.state_dict()) == list(model.state_dict())
        found = []
        for module in (original, fast):
            torch.manual_seed(0)
            both(module(x)).backward()
            found.append([p.grad for p in module.parameters()])
        for theirs, ours in zip(*found, strict=True):
            assert (theirs is None) == (ours is None)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs)


def test_every_sub_module_keeps_its_mode() -> None:
    with default_dtype(torch.float64):
        model, x = copied.VRNN(6, 9, 4), binary()
        model.enc.eval()
        modes = [module.training for module in model.modules()]
        fast = accelerate(model)
        assert [module.training for module in model.modules()] == modes
        assert [module.training for module in fast.modules()] == modes
        for module in (model, fast):
            module.eval()
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                found = []
                for module in (model, fast):
                    torch.manual_seed(0)
                    found.append(module(x))
                torch.testing.assert_close(*found)


def test_a_wrapper_with_the_prefix_module() -> None:
    model = copied.VRNN(6, 9, 4)
    wrapped = nn.DataParallel(model)
    fast = accelerate(wrapped)
    assert isinstance(fast, nn.DataParallel)
    assert list(fast.state_dict()) == list(wrapped.state_dict())
    assert next(iter(fast.state_dict())).startswith("module.")
    assert isinstance(fast.module, Accelerated)
    assert wrapped.module is model
    x = binary()
    torch.manual_seed(0)
    theirs = both(wrapped(x))
    torch.manual_seed(0)
    torch.testing.assert_close(both(fast(x)), theirs)


# --- deviations


def told(**options: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerate(copied.VRNN(6, 9, 4, **options.pop("model", {})), **options)
    mine = [str(w.message) for w in caught if "accelerated as" in str(w.message)]
    assert len(mine) <= 1
    return mine[0] if mine else ""


def test_one_warning_lists_each_fault() -> None:
    text = told()
    assert "layout eager-vrnn (the most copied PyTorch VRNN)" in text
    for name in ("nan:", "nll:", "kl:"):
        assert name in text
    assert "kl:" not in told(fix=("kl",))
    assert told(fix=("kl", "nll", "nan")) == ""
    assert "TypeError" in told(model={"gaussian": True})


def test_what_yields_no_number_is_mended_and_nothing_else() -> None:
    model, x = copied.VRNN(6, 9, 4), binary()
    logits = torch.tensor([-40.0, -10.0, 0.0, 10.0, 20.0, 200.0])
    with torch.no_grad():
        model.dec_mean[0].weight.zero_()
        model.dec_mean[0].bias.copy_(logits)
    assert model(x)[1].isnan()
    fast = accelerate(model)
    kl, nll, _, _ = fast(x)
    theta = torch.sigmoid(logits)
    theirs = model.nll_bernoulli(theta[:4], x[..., :4]) - (x[..., 4:] * torch.log(theta[4:] + copied.EPS)).sum()
    torch.testing.assert_close(nll, theirs + ((1 - x[..., 4:]) * logits[4:]).sum())
    (kl + nll).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fast.parameters())


def test_a_gaussian_original_that_raises_gets_its_number() -> None:
    broken, fixed = (copied.VRNN(6, 9, 4, gaussian=True, fixed=f) for f in (False, True))
    fixed.load_state_dict(broken.state_dict())
    x = real()
    with pytest.raises(TypeError):
        broken(x)
    log = torch.log
    fast = accelerate(broken)
    assert torch.log is log
    torch.manual_seed(0)
    theirs = fixed(x)
    torch.manual_seed(0)
    torch.testing.assert_close(fast(x), theirs)


@pytest.mark.parametrize("gaussian", [False, True])
def test_mended_losses_are_the_exact_ones(gaussian: bool) -> None:
    with default_dtype(torch.float64):
        model = copied.VRNN(6, 9, 4, gaussian=gaussian)
        fast = accelerate(model, fix=("kl", "nll"))
        x = real() if gaussian else binary()
        _, nll, _, (outputs, output_stds) = fast(x)
        if gaussian:
            density = Normal(torch.stack(outputs), torch.stack(output_stds))
        else:
            density = Bernoulli(torch.stack(outputs))
        torch.testing.assert_close(nll, -density.log_prob(x).sum())
        one, p = fast(x[:1]), model.prior(torch.zeros(5, 9))  # what the prior reads at the first step is known
        exact = kl_divergence(Normal(one[2][0][0], one[2][1][0]), Normal(model.prior_mean(p), model.prior_std(p)))
        torch.testing.assert_close(one[0], exact.sum())


def test_b_with_lengths_a_state_and_its_weights() -> None:
    with default_dtype(torch.float64):
        model, x = audio.FramesOnly(7, 4, 6, 3), sound()
        fast = accelerate(model, layout=audio.SPEECH)
        lengths = torch.tensor([7, 3, 1, 0, 5])
        state = torch.randn(5, 14, requires_grad=True)
        found = []
        for module in (model, fast):
            torch.manual_seed(0)
            loss, fields = module(x, lengths, beta=0.5, free_nats=0.1, h0=state)
            gradients = torch.autograd.grad(loss + fields["h_n"].sum(), [state, *model.parameters()])
            found.append((loss, fields, gradients))
        torch.testing.assert_close(found[1], found[0])
        with pytest.raises(ProofError, match=r"say what forward returns with layout=\{'outputs': ...\}"):
            accelerate(model)
        with pytest.raises(ValueError, match=r"h0 must have shape \(B = 5, H = 14\), got \(4, 14\)"):
            fast(x, h0=torch.zeros(4, 14))


def test_lengths_stay_on_the_device_where_a_cuda_graph_is_captured() -> None:
    """Of meta tensors nothing can be read."""
    fast = accelerate(audio.FramesOnly(7, 4, 6, 3), layout=audio.SPEECH, backend="reference").to("meta")
    x, lengths = sound().to("meta"), torch.tensor([7, 3, 1, 0, 5])
    with mock.patch.object(checks, "_captured", return_value=True):
        loss, _ = fast(x, lengths.to("meta"), beta=0.5)
        loss.backward()
        assert loss.device.type == "meta"
        with pytest.raises(ValueError, match="lengths must be on meta where a CUDA graph is captured, got cpu"):
            fast(x, lengths)


@pytest.mark.parametrize("samples", [42, 40, 6, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_b_as_it_is_called(samples: int, rank: int) -> None:
    """Frames that are not full, samples with a dimension of their own, a state from the last chunk."""
    with default_dtype(torch.float64):
        model, x = audio.VRNNAudio(7, 4, 6, 3), sound()[:, :samples]
        fast = accelerate(model)
        x = x.unsqueeze(-1) if rank == 3 else x
        state = torch.randn(5, 14, requires_grad=True)
        lengths = SAMPLES.clamp(max=samples)
        found = []
        for module in (model, fast):
            torch.manual_seed(0)
            loss, metrics, outputs = module(x, lengths, beta=0.3, free_nats=0.2, h0=state)
            gradients = torch.autograd.grad(
                loss + outputs.h_n.sum(), [state, *model.parameters()], materialize_grads=True
            )
            found.append((loss, vars(outputs), [m.value for m in metrics], gradients))
        torch.testing.assert_close(found[1], found[0])


def test_b_mended_goes_on_from_its_last_frame() -> None:
    with default_dtype(torch.float64):
        model, x = audio.VRNNAudio(7, 4, 6, 3), sound()
        fast = accelerate(model, fix=("h_n",))
        torch.manual_seed(0)
        states, _ = model.vrnn.walk(x, torch.zeros(5, 14))
        torch.manual_seed(0)
        _, _, outputs = fast(x, SAMPLES)
        torch.testing.assert_close(outputs.h_n, states[-1])


def test_a_scripted_cell_goes_on_in_the_fast_model() -> None:
    model = audio.VRNNAudio(7, 4, 6, 3)
    fast = accelerate(model)
    twin = copy.deepcopy(fast)
    x, h = torch.randn(5, 7), torch.randn(5, 14)
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(1.1)
    for module in (fast, twin, twin.double()):
        inputs = x.to(next(module.parameters()).dtype), h.to(next(module.parameters()).dtype)
        torch.manual_seed(0)
        expected = audio.VRNNAudio(7, 4, 6, 3, scripted=False).to(inputs[0].dtype)
        expected.load_state_dict(module.state_dict())
        torch.manual_seed(0)
        theirs = expected.vrnn.vrnn_cell(*inputs)[0]
        torch.manual_seed(0)
        torch.testing.assert_close(module.vrnn.vrnn_cell(*inputs)[0], theirs)
    assert fast.vrnn.vrnn_cell.r_dim == 14
    with pytest.raises(AttributeError, match="nothing"):
        fast.vrnn.vrnn_cell.nothing  # noqa: B018


def test_the_loss_of_d_reads_what_its_forward_left() -> None:
    model = dynamical.VRNN(6, 4, dim_RNN=9)
    fast, x = accelerate(model), torch.rand(7, 5, 6)
    found = []
    for module in (model, fast):
        torch.manual_seed(0)
        found.append(module.loss(x, module(x)))
    torch.testing.assert_close(*found)
    assert "z_mean" in vars(fast)
    accelerate(model)  # which holds the results of its last run


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_d_is_mended_where_its_kl_is_computed(beta: float) -> None:
    with default_dtype(torch.float64):
        model, x = dynamical.VRNN(6, 4, dim_RNN=9), torch.rand(7, 5, 6)
        with pytest.warns(UserWarning, match=r"kl: its KL drops the -1, .* \(kept\)"):
            accelerate(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast = accelerate(model, fix=("kl",))
        y = fast(x)
        left = {name: getattr(fast, name) for name in ("z_mean", "z_logvar", "z_mean_p", "z_logvar_p")}
        loss, parts = fast.loss(x, y), fast.parts(x, y, beta)
        q, p = Normal(fast.z_mean, (fast.z_logvar / 2).exp()), Normal(fast.z_mean_p, (fast.z_logvar_p / 2).exp())
        kl, divergence = kl_divergence(q, p).sum(), (x / y.exp() - torch.log(x / y.exp()) - 1).sum()
        torch.testing.assert_close(loss, divergence + kl)
        torch.testing.assert_close(parts, {"recon": divergence / 35, "kl": beta * kl / 35, "nats": True})
        assert all(getattr(fast, name) is value for name, value in left.items())
        fixed, exact = (
            torch.autograd.grad(t, list(fast.parameters()), retain_graph=True) for t in (loss, divergence + kl)
        )
        torch.testing.assert_close(fixed, exact)


def test_a_fault_outside_of_the_class_is_told_and_cannot_be_mended() -> None:
    with pytest.warns(UserWarning, match=r"kl: its KL drops the -1, .* \(outside of forward, kept\)"):
        accelerate(dynamical.WithoutLoss(6, 4, dim_RNN=9))
    with pytest.raises(ValueError, match="fix may hold nothing for layout dynamical-vae"):
        accelerate(dynamical.WithoutLoss(6, 4, dim_RNN=9), fix=("kl",))


def test_faults_of_an_outcome_that_was_found_by_running() -> None:
    with pytest.warns(UserWarning, match=r"noise: its noise is uniform on \[0, 1\) .* \(kept\)"):
        accelerate(variants.DrawsUniform(6, 9, 4))
    with pytest.warns(UserWarning, match=r"kl: its KL is that of the prior to the posterior.*reduction: "):
        accelerate(variants.ReturnsMeans(6, 9, 4))
    with default_dtype(torch.float64):
        plain, faulty, x = copied.VRNN(6, 9, 4), variants.DrawsUniform(6, 9, 4), binary()
        faulty.load_state_dict(plain.state_dict())
        torch.manual_seed(0)
        theirs = accelerate(faulty, fix=("noise",))(x)
        torch.manual_seed(0)
        run = [torch.randn(5, 4) for _ in x]  # uniform noise has the parameters' dtype here
        model = copied.VRNN(6, 9, 4)
        model.load_state_dict(plain.state_dict())
        model.draw = lambda mean, std: mean + std * run.pop(0)
        torch.testing.assert_close(theirs, model(x))

        faulty = variants.ReturnsMeans(6, 9, 4)
        faulty.load_state_dict(plain.state_dict())
        fixed = accelerate(faulty, fix=("kl", "nll", "reduction"))
        exact = accelerate(plain, fix=("kl", "nll"))
        torch.manual_seed(0)
        kl, nll, _, _ = exact(x)
        torch.manual_seed(0)
        found = fixed(x)
    steps = x.shape[0] * x.shape[1]
    torch.testing.assert_close(found["kl"], kl / steps)
    torch.testing.assert_close(found["loss"], (kl + nll) / steps)


def saturated(model: nn.Module, logit: float) -> nn.Module:
    """Its logits in turn about this large and this small."""
    with torch.no_grad():
        model.dec_mean[0].bias.copy_(logit * torch.tensor([1.0, -1, 1, -1, 1, -1]))
    return model


@pytest.mark.parametrize("logit", [0.0, 16.0, 20.0, 40.0])
def test_theta_that_loses_its_digits_is_accelerated_and_told(logit: float) -> None:
    model = saturated(variants.WithoutEps(6, 9, 4), logit)
    with pytest.warns(UserWarning, match=r"nan: .* NaN or infinite from logit 17 on \(always fixed"):
        fast = accelerate(model)
    kl, nll, _, _ = fast(binary())
    assert kl.isfinite()
    assert nll.isfinite()


@pytest.mark.parametrize("build", [variants.CrossEntropy, variants.Clamped])
def test_a_bounded_likelihood_stays_bounded(build: Callable[[int, int, int], nn.Module]) -> None:
    """It is what the original gives, until fixed."""
    with default_dtype(torch.float64):
        model, x = build(6, 9, 4), binary()
        with pytest.warns(UserWarning, match="bound: .*likelihood"):
            fast = accelerate(model)
        fixed = accelerate(model, fix=("bound",))
        for logit in (1.0, 20.0, 50.0, 200.0):
            saturated(model, logit)
            found = []
            for module in (model, fast, fixed):
                torch.manual_seed(0)
                kl, nll, _, outputs = module(x)
                gradients = torch.autograd.grad(kl + nll, list(module.parameters()), allow_unused=True)
                found.append((kl, nll, outputs, gradients))
            torch.testing.assert_close(found[1], found[0])
            logits = torch.logit(torch.stack(found[2][2][0]))
            if logit == 1:
                exact = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
                torch.testing.assert_close(found[2][1], exact)
        assert found[2][1] > found[0][1]  # at the last logit


def test_a_bound_that_nobody_knows_is_refused() -> None:
    words = r"output\[1\], float64 of shape \(\), is, where the decoder saturates, another number .*'outputs'"
    with pytest.raises(ProofError, match=words):
        accelerate(variants.ClampedElsewhere(6, 9, 4))


def test_a_constant_of_single_precision_is_found_told_and_mended() -> None:
    with default_dtype(torch.float64):
        model, x = trajectories.VRNN(6, 6, 4, 7, 9), real()
        with pytest.warns(UserWarning, match=r"constant: .* off by -?[\d.]+e-08 nats .* rounded to float32 \(kept\)"):
            fast = accelerate(model)
        fixed = accelerate(model, fix=("constant",))
        found = []
        for module in (model, fast, fixed):
            torch.manual_seed(0)
            found.append(module(x)["recon_loss"].item())
        off = float(trajectories.half_log_two_pi(x).double()) - 0.5 * torch.log(torch.tensor(2 * torch.pi)).item()
        assert found[1] == pytest.approx(found[0], rel=1e-13)
        assert found[0] - found[2] == pytest.approx(6 * 5 * 6 * off, rel=1e-4)


def test_noise_is_counted_not_shaped() -> None:
    model, x = variants.DrawsFlat(6, 9, 4), binary()
    fast = accelerate(model)
    torch.manual_seed(0)
    theirs = both(model(x))
    torch.manual_seed(0)
    torch.testing.assert_close(both(fast(x)), theirs)


# --- refusals


def changed(change: Callable[[Any], None], **options: Any) -> nn.Module:
    model = copied.VRNN(6, 9, 4, **options)
    change(model)
    return model


class ReadsAnother(copied.VRNN):
    """Its networks read the state that the cell has just been given, doubled."""

    def read(self, h: Tensor) -> Tensor:
        return 2 * h[-1]


class LeaksInside(copied.VRNN):
    """Its modules say ReLU, its forward adds a leak of its own."""

    def forward(self, x: Tensor) -> Any:
        leaking = [m for m in self.modules() if isinstance(m, nn.ReLU)]
        hooks = [m.register_forward_hook(lambda _, i, o: o + 0.01 * i[0].clamp(max=0)) for m in leaking]
        try:
            return super().forward(x)
        finally:
            for hook in hooks:
                hook.remove()


class ReturnsMore(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        return (*super().forward(x), x.cos())


class DrawsOnce(copied.VRNN):
    """Draws one noise for each sequence."""

    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * torch.randn(mean.shape[1])


class MeanInEval(copied.VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().draw(mean, std) if self.training else mean


class MeanWithoutGradients(copied.VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().draw(mean, std) if torch.is_grad_enabled() else mean


class WiderInEval(copied.VRNN):
    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        return super().draw(mean, std if self.training else 1.01 * std)


class OnlyItsLossInTraining(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return both(found) if self.training else found


class FailsInEval(copied.VRNN):
    def forward(self, x: Tensor) -> Any:
        assert self.training
        return super().forward(x)


class ScriptedMeanInEval(audio.VRNNCell):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, audio.CellOutputs]:
        prior_mu, prior_sd = self.prior(h)
        enc_mu, enc_sd = self.posterior(torch.cat([h, x], -1))
        enc_mu = enc_mu + prior_mu
        z = torch.randn_like(enc_mu).mul(enc_sd).add(enc_mu) if self.training else enc_mu
        phi_z = self.phi_z(z)
        h = self.gru_cell(torch.cat([x, phi_z], -1), h)
        return h, audio.CellOutputs(h, z, enc_mu, enc_sd, prior_mu, prior_sd, phi_z)


def scripted_mean_in_eval() -> nn.Module:
    model = audio.VRNNAudio(7, 4, 6, 3)
    model.vrnn.vrnn_cell = torch.jit.script(ScriptedMeanInEval(7, 4, 14, residual=True))
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (MeanInEval, r"the noise differs .* in eval\(\).*: the original draws nothing, the accelerated one normal"),
        (MeanWithoutGradients, r"the noise differs .* in train\(\) without gradients: the original draws nothing"),
        (WiderInEval, r"output\[.*\].* differs by [\d.e-]+ with .* parameters in eval\(\) with gradients"),
        (OnlyItsLossInTraining, r"output.* differs with random parameters in (eval|train)\(\) with gradients"),
        (FailsInEval, r"the original's own forward fails .* eval\(\) with gradients: AssertionError"),
        (lambda *_: scripted_mean_in_eval(), r"the noise differs .* in eval\(\) .*"),
    ],
)
def test_what_hangs_on_its_mode_is_found_in_either(
    build: Callable[[int, int, int], nn.Module], words: str, training: bool
) -> None:
    with pytest.raises(ProofError, match=words):
        accelerate(build(6, 9, 4).train(training))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ReadsAnother(6, 9, 4), r"output\[0\], the KL, differs by [\d.e-]+ with its own parameters"),
        (LeaksInside(6, 9, 4), r"output\[0\], the KL, differs by [\d.e-]+ with its own parameters"),
        (ReturnsMore(6, 9, 4), r"output\[4\], float64 of shape \(4, 3, 6\), is none of the quantities of a run"),
        (
            DrawsOnce(6, 9, 4),
            r"the noise differs .*: the original draws normal \(4,\) .* accelerated one normal \(2, 4\)",
        ),
    ],
)
def test_what_names_and_shapes_cannot_tell_is_found_by_running(model: nn.Module, words: str) -> None:
    with pytest.raises(ProofError, match=words):
        accelerate(model)


def test_densities_that_raise_where_a_deviation_is_0() -> None:
    model, x = wild.Densities(6, 9, 4), torch.randn(5, 3, 6)
    fast = accelerate(model)
    torch.manual_seed(3)
    theirs = model(x)
    torch.manual_seed(3)
    for ours, right in zip(fast(x), theirs, strict=True):
        torch.testing.assert_close(ours, right)


def test_a_batch_that_comes_first_is_told_by_its_draws() -> None:
    with pytest.raises(ProofError, match=r"layout=\{'batch_first': True\} says that x is \(B, T, \.\.\.\)"):
        accelerate(wild.BatchFirst(6, 9, 4))


def test_several_readings_fail_and_the_one_that_came_farthest_is_told() -> None:
    words = (
        r"output\[4\], float64 of shape \(4, 3, 9\), is none of the quantities of a run: .*layout=\{'outputs': ...\}"
    )
    with pytest.raises(ProofError, match=words):
        accelerate(variants.ReturnsFeatures(6, 9, 4))


def test_a_difference_names_its_quantity_and_the_cure() -> None:
    words = r"output\[0\], the KL.*, differs by .* \(layout=\{'outputs': ...\} says what forward returns; 'activation'"
    with pytest.raises(ProofError, match=words):
        accelerate(LeaksInside(6, 9, 4))


def test_two_counts_of_draws_are_told_and_no_list_of_them() -> None:
    with pytest.raises(ProofError, match=r"float32 and so on, 2 times, .* float32 and so on, 3 times") as caught:
        accelerate(variants.StartsLate(6, 9, 4))
    assert str(caught.value).count("normal") == 2


def bounded(run: Run) -> Any:
    """What a Gaussian eager VRNN returns whose mean has gone through a module."""
    q, p = Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)
    mean, std = run.module.dec_mean[1](run.heads[0]), F.softplus(run.heads[1])
    logs = torch.log(p.stddev + copied.EPS) - torch.log(q.stddev + copied.EPS)
    kl = (logs + (q.variance + (q.mean - p.mean) ** 2) / (2 * p.variance) - 0.5).sum()
    nll = run.module.nll_gauss(mean, std, run.x)
    return kl, nll, tuple(list(t) for t in (run.mean, run.std)), tuple(list(t) for t in (mean, std))


def test_a_module_behind_a_head_is_named_with_what_lets_it_run() -> None:
    model, x = variants.Bounded(6, 9, 4), real()
    with pytest.raises(
        LayoutError, match=r"dec_mean\.1 is Hardtanh.*layout=\{'outside': \('dec_mean\.1',\), 'outputs'"
    ):
        accelerate(model)
    with pytest.warns(UserWarning, match="sample runs as its class is written"):
        fast = accelerate(model, layout={"outside": ("dec_mean.1",), "outputs": bounded})
    torch.manual_seed(0)
    theirs = both(model(x))
    torch.manual_seed(0)
    torch.testing.assert_close(both(fast(x)), theirs)


ROLES_OF_E = {
    **{name: name for name in ("phi_x", "phi_z", "prior", "prior_mean", "prior_std")},
    "encoder": "enc",
    "encoder_mean": "enc_mean",
    "encoder_std": "enc_std",
    "decoder": "dec",
    "cell": "rnn",
    "decoder_heads": ("dec_mean", "dec_std"),
    "outputs": lambda run: run.heads[0],
}


def test_a_layout_that_lacks_what_it_calls_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"calls vrnn\.encoder of the model, found no vrnn;"):
        accelerate(copied.VRNN(6, 9, 4), layout={"like": "speech-benchmark", **ROLES_OF_E})


class Unfriendly(copied.VRNN):
    """Its fields can be compared with nothing."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[0], Unequal(), {"mask": x > 0.5}, {torch.ones(2): x.detach().numpy()}


class Unequal:
    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


class Locked(copied.VRNN):
    """Which cannot be copied."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.lock = Lock()


class Untrainable(copied.VRNN):
    def train(self, mode: bool = True) -> Any:
        raise KeyError("train")


class TakesLists(copied.VRNN):
    def forward(self, x: Any) -> Any:
        raise ValueError(f"expected other numbers than {torch.stack(x) if isinstance(x, list) else x}")


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (Unfriendly, {}, "output"),
        (
            Unfriendly,
            {"layout": {"outputs": lambda run: (run.z.sum(), Unequal(), {"mask": run.x > 0.5}, {})}},
            "output",
        ),
        (Locked, {}, r"the original's own copy\.deepcopy fails: TypeError: cannot pickle"),
        (Untrainable, {}, "the original's own train fails: KeyError"),
        (TakesLists, {}, r"on an input of shape \(3, 2, 6\).*ValueError: expected other numbers than tensor\(\.\.\.\)"),
        (TakesLists, {"example": ([torch.rand(3)] * 2,)}, r"fails in float64 on list of length 2 .*tensor\(\.\.\.\)"),
        (copied.VRNN, {"layout": {"outputs": lambda run: {}["nothing"]}}, "the accelerated forward fails .*KeyError"),
        (
            copied.VRNN,
            {"layout": {"outputs": lambda run: run.module.x_dim}},
            "'tuple of length 4', the accelerated one 6",
        ),
    ],
)
def test_whatever_the_models_code_raises_is_told_in_words_and_without_numbers(
    build: Callable[[int, int, int], nn.Module], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ProofError, match=words) as caught:
        accelerate(build(6, 9, 4), **options)
    assert "tensor([" not in str(caught.value)
    assert len(str(caught.value)) < 900


def test_parameters_without_numbers_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model must have its parameters on a device that holds numbers, found .* on meta"
    ):
        accelerate(copied.VRNN(6, 9, 4).to("meta"))
    with pytest.raises(LayoutError, match=r"enc_mean\.weight has no shape yet"):
        accelerate(changed(put("enc_mean", nn.LazyLinear(4))))


# --- threads


class LooksAside(copied.VRNN):
    """Looks into another thread whenever it computes a likelihood."""

    def nll_gauss(self, mean: Tensor, std: Tensor, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(untouched).result()
        return super().nll_gauss(mean, std, x)


def untouched() -> None:
    LOOKED.append(torch.get_default_dtype())
    assert torch.zeros(1).dtype == torch.tensor(0.5).dtype == torch.float32
    assert torch.log(torch.ones(1)) == 0
    with pytest.raises(TypeError):
        torch.log(2.0)  # type: ignore[call-overload]


LOOKED: list[torch.dtype] = []


def test_the_proof_is_seen_by_no_other_thread() -> None:
    LOOKED.clear()
    accelerate(LooksAside(6, 9, 4, gaussian=True))
    assert set(LOOKED) == {torch.float32}


def test_threads_accelerate_at_once() -> None:
    """Which share a random state and, for a Gaussian eager VRNN, ``torch.log``."""
    log = torch.log
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(accelerate, [copied.VRNN(6, 9, 4, gaussian=i % 2 == 0) for i in range(8)]))
    assert torch.log is log


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, 3),
        lambda: torch.full((2,), 0.1),
        lambda: torch.full((2,), 1),
        lambda: torch.arange(3),
        lambda: torch.arange(0, 1, 0.3),
        lambda: torch.linspace(0, 1, 4),
        lambda: torch.tensor(0.1),
        lambda: torch.tensor([1, 2]),
        lambda: torch.as_tensor([0.1, 0.2]),
        lambda: torch.tensor(0.1, dtype=torch.float32),
        lambda: torch.as_tensor(0.1, dtype=torch.float32),
        lambda: torch.ones(2, dtype=torch.float32),
        lambda: torch.ones(2, dtype=torch.float32) / 3,
        lambda: torch.ones(2, dtype=torch.int64) / 3,
        lambda: torch.tensor([True, False]).float(),
        lambda: torch.tensor([2, 3]).log(),
        lambda: torch.randn(3),
        lambda: torch.rand(3),
        lambda: torch.randn(3, dtype=torch.float32),
        lambda: torch.randn(3, generator=torch.Generator().manual_seed(1)),
        lambda: torch.normal(0.0, 1.0, (3,)),
        lambda: torch.empty(3).normal_(),
        lambda: torch.randint(5, (3,)),
        lambda: torch.randperm(4),
        lambda: torch.jit.script(zeros)(3),
    ],
)
def test_double_by_default_is_the_default_dtype_of_one_thread(make: Callable[[], Tensor]) -> None:
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        expected = make()
    torch.manual_seed(0)
    with double_by_default():
        found = make()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def zeros(size: int) -> Tensor:
    return torch.zeros(size)


# --- refusals of parts


def put(path: str, module: nn.Module) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.set_submodule(path, module)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("enc.1", nn.LeakyReLU(0.2)), r"enc\.1 is LeakyReLU\(negative_slope=0\.2\): only negative_slope=0\.01"),
        (put("enc.1", nn.Dropout(0.1)), r"enc\.1 is Dropout\(p=0\.1\): dropout"),
        (put("enc.1", nn.BatchNorm1d(9)), r"enc\.1 is BatchNorm1d, which ties the sequences of a batch together"),
        (put("enc.1", nn.LayerNorm(9)), r"enc\.1 is LayerNorm, a sub-module that layout eager-vrnn .* does not know"),
        (put("enc.1", Swish()), r"enc\.1 is Swish, a sub-module that layout eager-vrnn .* does not know"),
        (put("enc.1", nn.Sigmoid()), r"one of ReLU, .* or nothing after enc\.0, found enc\.1, Sigmoid"),
        (lambda m: m.add_module("norm", nn.BatchNorm1d(9)), "norm is BatchNorm1d"),
        (
            lambda m: m.add_module("extra", nn.Linear(3, 3)),
            r"extra\.weight \(Linear\) has no role in layout eager-vrnn",
        ),
        (lambda m: m.register_parameter("h0", nn.Parameter(torch.zeros(9))), "h0 .* has no role in layout eager-vrnn"),
        (put("rnn", nn.GRU(18, 9, 2, dropout=0.1)), r"rnn is GRU\(dropout=0\.1\): dropout"),
        (put("rnn", nn.GRU(18, 9, bidirectional=True)), "rnn runs in both directions"),
        (put("rnn", nn.Linear(18, 9)), "rnn must be a recurrent cell with weight_hh_l0 or weight_hh"),
        (put("enc.0", nn.Linear(18, 9, bias=False)), r"enc\.0 must be an affine layer with a bias"),
        (put("prior.0", nn.Linear(18, 9)), r"prior\.0\.weight must have shape \(9, 9\) .* found \(9, 18\)"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: Callable[[nn.Module], None], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        accelerate(changed(change))


def test_one_head_alone_may_be_deep() -> None:
    """It is proven when it is accelerated, and so is what it samples."""
    model = variants.DeepMean(6, 9, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "sample runs as its class is written")
        accelerated = accelerate(model)
    torch.manual_seed(1)
    expected = model.sample(3)
    torch.manual_seed(1)
    torch.testing.assert_close(accelerated.sample(3), expected)


def test_dropout_of_d_is_refused_by_name() -> None:
    with pytest.raises(LayoutError, match=r"mlp_hz_x\.dropout0 is Dropout\(p=0\.1\): dropout behind z draws between"):
        accelerate(dynamical.VRNN(6, 4, dropout_p=0.1))


def test_dropout_without_effect_is_no_obstacle() -> None:
    accelerate(changed(lambda m: m.phi_x.append(nn.Dropout(0.0))))


def test_an_unknown_model_hears_what_was_looked_for_and_found() -> None:
    model = copied.VRNN(6, 9, 4)
    model.encoder = model.enc
    del model.enc
    with pytest.raises(LayoutError) as caught:
        accelerate(model)
    text = str(caught.value)
    assert "layout eager-vrnn (the most copied PyTorch VRNN): looked for phi_x, phi_z, enc, enc_mean" in text
    assert "; no enc" in text
    assert "encoder (Sequential)" in text
    with pytest.raises(LayoutError, match="found: 0 \\(Linear\\)"):
        accelerate(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"fix": ("speed",)}, ValueError, "fix may hold nan, nll, kl for layout eager-vrnn .*, got 'speed'"),
        ({"fix": "kl"}, TypeError, "fix must be a tuple of names"),
        ({"layout": "Q"}, ValueError, "layout must be 'auto', 'eager-vrnn'.* or a mapping, got 'Q'"),
        ({"layout": 3}, TypeError, "layout must be"),
        ({"layout": {"encodr": "enc"}}, LayoutError, "layout may hold phi_x, .* got 'encodr'"),
        ({"layout": {"encoder": 3}}, LayoutError, r"layout\['encoder'\] must be the path of a sub-module, got 3"),
        ({"layout": {"outputs": 3}}, LayoutError, r"layout\['outputs'\] must be a function"),
        ({"backend": "abacus"}, ValueError, "backend must be one of"),
        ({"example": torch.rand(3, 2, 5)}, ProofError, r"forward fails in float64 on an input of shape \(3, 2, 5\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        accelerate(copied.VRNN(6, 9, 4), **arguments)


def test_no_model_and_one_that_is_fast_already() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got int"):
        accelerate(3)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"model is a vrnn_fast\.VRNN: it runs on these backends as it is"):
        accelerate(VRNN(6, 9, 4))
    fast = accelerate(copied.VRNN(6, 9, 4))
    with pytest.raises(ValueError, match="accelerated already, as layout eager-vrnn"):
        accelerate(fast)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.rand(3, 2, 5), ValueError, r"x must have shape \(T, B, X = 6\), got \(3, 2, 5\)"),
        (torch.rand(3, 6), ValueError, "x must have 3 dimensions"),
        (torch.rand(3, 2, 6).double(), ValueError, "x must have the parameters' dtype"),
        ("x", TypeError, "x must be a tensor"),
    ],
)
def test_bad_input_to_the_fast_one(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        accelerate(copied.VRNN(6, 9, 4))(x)


def test_a_call_binds_as_the_original_does() -> None:
    fast, x = accelerate(copied.VRNN(6, 9, 4)), binary()
    torch.manual_seed(0)
    a = both(fast(x))
    torch.manual_seed(0)
    assert torch.equal(both(fast(x=x)), a)
    for args, kwargs in (((), {}), ((x, x), {}), ((x,), {"y": x})):
        with pytest.raises(TypeError, match="takes x alone"):
            fast(*args, **kwargs)


def test_a_changed_sub_module_is_named_at_the_next_call() -> None:
    fast, x = accelerate(copied.VRNN(6, 9, 4)), binary()
    fast.enc[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"sub-module 'enc\.0' carries a forward or backward hook"):
        fast(x)
