"""An accelerated model under torch.compile: one graph, the same numbers, one launch."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from tests.support.accelerated import CASES, SAMPLES, Case
from tests.support.foreign import audio
from vrnn_fast import accelerate, backends

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


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


def test_speech_compiles_in_place_and_for_every_beta_and_state(graphs: Graphs) -> None:
    case = CASES["speech"]
    fast, x = case.accelerate(case.build()), case.data()
    calls = [(SAMPLES, 0.5, 0.1), (SAMPLES, 0.6, 0.1), (SAMPLES, 0.7, 0.1), (SAMPLES, 0.8, 0.1, torch.rand(5, 14))]
    eager = [leaves_and_gradients(replace(case, rest=rest), fast, fast, x) for rest in calls]
    fast.compile(fullgraph=True, backend=graphs)
    for rest, found in zip(calls, eager, strict=True):
        assert_alike(leaves_and_gradients(replace(case, rest=rest), fast, fast, x), found)
    assert len(graphs) == 3  # a number, any number, and from a state
    if backends()["cpu"].available:
        assert [launches_in(graph) for graph in graphs] == [case.launches] * 3


def test_speech_compiles_once_more_for_another_length(graphs: Graphs) -> None:
    case = CASES["speech"]
    fast = case.accelerate(case.build())
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    for samples in (42, 60, 42, 60):
        longer = replace(case, rest=(torch.cat([torch.tensor([samples]), SAMPLES[1:]]),))
        x = 2 * torch.rand(5, samples) - 1
        assert_alike(leaves_and_gradients(longer, compiled, fast, x), leaves_and_gradients(longer, fast, fast, x))
    assert len(graphs) == 2


def test_compiled_speech_slices_where_the_compiler_knows(graphs: Graphs) -> None:
    """Inductor has no gradient of a slice that ends at a number out of a tensor."""
    case = CASES["speech"]
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


def test_a_graph_break_in_speech_still_raises(graphs: Graphs) -> None:
    """It is what comes after the launch alone that is not traced."""
    case = CASES["speech"]
    fast = accelerate(audio.VRNNAudio(7, 4, 6, likelihood=Breaks(3)))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        torch.compile(fast, fullgraph=True, backend=graphs)(case.data(), *case.rest)
    assert not graphs


def test_compiled_speech_refuses_what_reaches_not_the_end(graphs: Graphs) -> None:
    case = CASES["speech"]
    fast = case.accelerate(case.build())
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    with pytest.raises(RuntimeError, match="x_sl must reach the last sample of x, in compiled code"):
        compiled(case.data(), SAMPLES.clamp(max=41))


def test_speech_compiles_around_its_metrics_inside_of_other_code(graphs: Graphs) -> None:
    """In parts, where it may: a function of the user's calls it."""
    case = CASES["speech"]
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
