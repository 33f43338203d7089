"""torch.compile and torch.export see through the module without a graph break."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vrnn_fast import VRNN, VRNNOutput, backends

X, H, Z = 5, 8, 3


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
    leaves = torch.utils._pytree.tree_leaves(out)
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


@pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built")
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
