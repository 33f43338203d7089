"""Scans of small cells by several blocks to a tile of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.executors.cuda.cells import GRU, cell
from tests.support.family import FAMILY
from tests.support.oracle import Problem
from tests.support.poisoned import poisoned_memory
from vrnn_fast.cell.partition import generation
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.cell.stages import Normalize
from vrnn_fast.executors import cuda, reference
from vrnn_fast.executors.base import Batch
from vrnn_fast.executors.cuda import build, emulator, launch
from vrnn_fast.executors.cuda.cluster import Cluster, refuses
from vrnn_fast.executors.cuda.emulator import Schedule
from vrnn_fast.executors.cuda.exchange import BUFFERS
from vrnn_fast.executors.cuda.forward import alone, forward
from vrnn_fast.executors.cuda.plan import TILE, WARPS, KernelPlan, Through
from vrnn_fast.executors.cuda.reverse import reverse
from vrnn_fast.executors.cuda.steps import BACKWARD, FORWARD, all_by

needs_emulator = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")
RAGGED = [3, 1, 0, 2, 3]
BARE: dict[str, Any] = {"phi_x": (9,), "prior": (), "decoder": ()}
SCANS = (FORWARD, BACKWARD)


def square(width: int, **options: Any) -> CellSpec:
    """A GRU cell with one hidden layer as wide as the state in every network, and 16 latent variables."""
    nets = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (width,))
    return CellSpec(28, width, 16, **{**nets, **options})


def plans(spec: CellSpec, cluster: Cluster) -> Iterator[KernelPlan]:
    yield forward(spec, cluster)
    yield reverse(spec, cluster, on_z=True, on_eps=True)
    if spec.likelihood != "external" and not any(isinstance(s, Normalize) for s in generation(spec, mean=False).scan):
        yield alone(spec, cluster, mean=False)


def family(through: Through = "peers") -> Iterator[KernelPlan]:
    kinds = cycle(("gru", "lstm", "rnn"))
    specs = [cell(cell=kind, **options) for kind, options in zip(kinds, FAMILY.values(), strict=False)]
    specs = [spec for spec in specs if refuses(spec) is None]
    specs += [square(256), CellSpec(5, 19, 3, phi_x=(), phi_z=(), encoder=(), prior=(), decoder=())]
    for spec, cluster in product(specs, (Cluster(2, through=through), Cluster(8, alike=False, through=through))):
        if through == "memory" or spec.hidden_size >= TILE * cluster.ranks:  # else some would have no columns to push
            yield from plans(spec, cluster)


@contextmanager
def by(cluster: Cluster | None) -> Iterator[None]:
    """All scans by this cluster; by those that are chosen if it is None."""
    if cluster is None:
        yield
        return
    with mock.patch.object(launch, "chosen", return_value=all_by(cluster)):
        yield


def without_weights(found: Mapping[str, Tensor], spec: CellSpec) -> dict[str, Tensor]:
    names = {f"d {p.name}" for p in spec.parameters()}
    return {name: t for name, t in found.items() if name not in names}


@contextmanager
def scans_alone() -> Iterator[None]:
    """Without the gradients of weights, whose sums take the emulator most of the time."""

    def zeros(call: launch.KernelCall, _: object) -> tuple[list[object], list[Tensor]]:
        return [], [torch.zeros_like(p) for p in call.parameters]

    with mock.patch.object(launch.KernelCall, "weight_gradients", zeros):
        yield


def assert_generates(cluster: Cluster) -> None:
    """A GRU cell on its own, by these ranks, gives what the reference does."""
    problem = Problem.draw(GRU, 3, 5)
    eps, state = problem.inputs["eps"].float(), (problem.inputs["state0"].float(),)
    parameters = [problem.inputs[p.name].float() for p in GRU.parameters()]
    noise = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0)).logit()
    right, after = reference.generate(GRU, parameters, Batch(noise, eps, state), mean=False)
    with by(cluster):
        x, state_after = cuda.generate(GRU, parameters, Batch(noise, eps, state), mean=False)
    assert torch.equal(x, right)
    torch.testing.assert_close(state_after[0], after[0])


def assert_no_schedule_changes_a_bit(problem: Problem, cluster: Cluster) -> None:
    """Whoever of these ranks or of their warps runs ahead, every element is written; memory begins as NaN."""
    with by(cluster), poisoned_memory():
        expected = problem.run(cuda, torch.float32)
        for schedule in (Schedule(late=False), Schedule("one behind", WARPS), Schedule("ahead", 7), Schedule("random")):
            with mock.patch.object(emulator, "schedule", schedule):
                found = problem.run(cuda, torch.float32)
            for name, t in expected.items():
                assert t.isfinite().all(), name
                assert torch.equal(found[name], t), f"{name} under {schedule}"


def one_buffer(text: str) -> str:
    """Plant a fault: what is exchanged has one buffer, and one gate."""
    found = re.sub(rf"(exchange|operand)_buffers = {BUFFERS};", r"\1_buffers = 1;", text)
    assert found != text
    return found
