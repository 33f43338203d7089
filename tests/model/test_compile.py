"""torch.compile and torch.export see through the module without a graph break."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from vrnn_fast import VRNN, VRNNOutput, backends
from vrnn_fast.executors.cpu import operators

X, H, Z = 5, 8, 3
needs_cpu = pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def training_step(model: VRNN) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, VRNNOutput]]:
    def step(x: Tensor, lengths: Tensor, eps: Tensor) -> tuple[Tensor, VRNNOutput]:
        out = model(x, lengths, eps=eps, beta=0.5, free_nats=0.1, outputs=("prior", "prediction"))
        return out.loss, out

    return step


def data(steps: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(1, steps + 1, (batch,))
    lengths[0] = 0
    return torch.rand(batch, steps, X).round(), lengths, torch.randn(batch, steps, Z)


def results(model: VRNN, step: Any, batch: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    model.zero_grad()
    loss, out = step(*batch)
    loss.backward()
    leaves = pytree.tree_leaves(out)
    return [loss, *leaves, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_a_compiled_training_step_equals_eager(executor: str) -> None:
    compiler = "eager" if executor == "reference" else "inductor"  # inductor takes a minute over the unrolled loop
    model = VRNN(X, H, Z, backend=executor, batch_first=True, cell="lstm", phi_x=(H,), encoder=(H,), decoder=())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="vrnn_fast")
        compiled = torch.compile(training_step(model), fullgraph=True, dynamic=True, backend=compiler)
        for sizes in ((2, 6),) if executor == "reference" else ((2, 6), (4, 7)):
            batch = data(*sizes)
            for a, b in zip(results(model, compiled, batch), results(model, training_step(model), batch), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{"num_layers": 2, "cell": "lstm", "residual": True}, {"latent_size": 0}])
def test_the_family_compiles(executor: str, options: dict[str, Any]) -> None:
    sizes = {"input_size": X, "hidden_size": H, "latent_size": Z}
    model = VRNN(**{**sizes, "cond_size": 2, "std": "log_std", "head_layers": (4,), "backend": executor, **options})

    def step(x: Tensor, cond: Tensor, resets: Tensor, mask: Tensor, eps: Tensor) -> tuple[Tensor, VRNNOutput]:
        out = model(x, cond=cond, resets=resets, mask=mask, mask_inputs=True, eps=eps, outputs=("prior",))
        return out.loss, out

    compiled = torch.compile(step, fullgraph=True, backend="eager" if executor == "reference" else "aot_eager")
    batch: Any = (torch.rand(3, 4, X).round(), torch.randn(3, 4, 2), torch.rand(3, 4) < 0.4, torch.rand(3, 4, X) < 0.6)
    batch = (*batch, torch.randn(3, 4, model.latent_size))
    for a, b in zip(results(model, compiled, batch), results(model, step, batch), strict=True):
        torch.testing.assert_close(a, b)


@needs_cpu
@pytest.mark.parametrize("prior", [None, "standard_normal"])
def test_answers_compile(prior: Any) -> None:
    """The same noise: this compiler draws it as eager code does."""
    model = VRNN(X, H, Z, likelihood="gaussian", prior=prior, backend="cpu")
    x, lengths, asked = torch.randn(6, 4, X), torch.tensor([6, 3, 2, 1]), (model.score, model.forecast)

    def answers(x: Tensor) -> tuple[Tensor, ...]:
        score, forecast = asked
        own, each = score(x, lengths, num_particles=4), score(x, num_particles=4, per_feature=True)
        return own, each, score(x, num_particles=4, proposal="posterior"), forecast(x, 3, 5).samples

    def seeded(run: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        with torch.no_grad():
            return run(x)

    compiled = torch.compile(answers, fullgraph=True, backend="aot_eager")
    for a, b in zip(seeded(compiled), seeded(answers), strict=True):
        torch.testing.assert_close(a, b)


@needs_cpu
def test_one_graph_serves_every_length_and_batch() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    model = VRNN(X, H, Z, backend="cpu", batch_first=True)
    compiled = torch.compile(training_step(model), fullgraph=True, dynamic=True, backend=count)
    for sizes in ((4, 6), (7, 2), (9, 11)):
        compiled(*data(*sizes))
    assert len(graphs) == 1


@needs_cpu
def test_three_graphs_at_most_serve_every_length_and_batch_unasked() -> None:
    """As torch.compile finds out by itself what varies; with noise drawn inside, forward and backward."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    model = VRNN(X, H, Z, backend="cpu", likelihood="gaussian", cell="lstm", num_layers=2)
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for steps, batch in ((4, 6), (7, 6), (7, 2), (2, 2), (X, X), (2, 64), (64, 2), (H, 5), (3, H), (28, 128)):
        lengths = torch.randint(1, steps + 1, (batch,))
        compiled(torch.rand(steps, batch, X), lengths).loss.backward()
    assert len(graphs) <= 3


@needs_cpu
def test_graphs_are_shared_by_equal_cells_alone() -> None:
    """Cells whose parameters are alike, down to the numbers, and which are still not the same."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def loss(model: VRNN, x: Tensor, eps: Tensor) -> Tensor:
        return model(x, eps=eps).loss

    compiled = torch.compile(loss, fullgraph=True, backend=count)
    x, eps = torch.rand(4, 6, X), torch.randn(4, 6, Z)
    first = VRNN(X, H, Z, backend="cpu")
    for options, number in (({}, 1), ({"activation": "tanh"}, 2), ({"std": "log_std"}, 3), ({}, 3)):
        model = VRNN(X, H, Z, backend="cpu", **options)
        model.load_state_dict(first.state_dict())
        torch.testing.assert_close(compiled(model, x, eps), loss(model, x, eps))
        assert len(graphs) == number


@needs_cpu
def test_autocast_is_traced_through() -> None:
    model, before = VRNN(X, H, Z, backend="cpu"), torch.nn.Linear(X, X)
    eps = torch.randn(3, 4, Z)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(torch.sigmoid(before(x)), eps=eps).loss

    x = torch.rand(3, 4, X)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), loss(x))


@needs_cpu
def test_an_exported_program_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    model = VRNN(X, H, Z, backend="cpu", likelihood="gaussian", num_layers=2, cond_size=2, std="log_variance")
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    per_step = {0: steps, 1: batch}
    shapes = {"x": per_step, "lengths": {0: batch}, "eps": per_step, "cond": per_step, "resets": per_step}

    def arguments(steps: int, batch: int) -> dict[str, Tensor]:
        x, lengths, eps = data(steps, batch)
        optional = {"cond": torch.randn(steps, batch, 2), "resets": torch.rand(steps, batch) < 0.3}
        return {"x": x.transpose(0, 1), "lengths": lengths, "eps": eps.transpose(0, 1), **optional}

    exported = torch.export.export(model, (), arguments(4, 6), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    program = torch.export.load(file).module()
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    library = torch._inductor.aoti_load_package(package)
    given = arguments(7, 2)
    before = operators.launch_counts()
    for loaded in (program, library):
        out = loaded(**given)
        assert isinstance(out, VRNNOutput)
        torch.testing.assert_close(pytree.tree_leaves(out), pytree.tree_leaves(model(**given)))
    assert sum(operators.launch_counts().values()) == sum(before.values()) + 4


def test_lengths_are_asserted_at_run_time(executor: str) -> None:
    model = VRNN(X, H, Z, backend=executor, batch_first=True, phi_x=(), encoder=(), decoder=())
    compiled = torch.compile(
        training_step(model), fullgraph=True, backend="eager" if executor == "reference" else "aot_eager"
    )
    x, lengths, eps = data(2, 6)
    compiled(x, lengths, eps)
    for bad in (-1, 3):
        lengths[3] = bad
        with pytest.raises(RuntimeError, match="lengths must be from 0 to T, and not all 0"):
            compiled(x, lengths, eps)


def test_a_hooked_sub_module_raises_under_the_compiler(executor: str) -> None:
    model = VRNN(X, H, Z, backend=executor)
    model.enc[0].register_forward_hook(lambda *_: None)
    with pytest.raises(Exception, match=r"sub-module 'enc\.0' carries a forward or backward hook"):
        torch.compile(model, fullgraph=True, backend="eager")(torch.rand(2, 2, X))
