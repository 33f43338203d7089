"""Two processes: DistributedDataParallel and FSDP2. One launch of workers, whose findings the tests look at."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.support.oracle import Errors
from vrnn_fast import VRNN, backends

X, H, Z, T, B, RANKS, DRAWS = 5, 7, 3, 6, 4, 2, 4
LENGTHS = torch.tensor([6, 1, 5, 0])  # 11 real steps for one process, 1 for the other

Findings = dict[str, Any]

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
    pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built"),
]


class Parent(nn.Module):
    """A layer, and a VRNN over what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(X, X)
        self.vrnn = VRNN(X, H, Z, likelihood="gaussian")

    def forward(self, x: Tensor, lengths: Tensor, eps: Tensor, normalizer: Tensor | None = None) -> Tensor:
        return self.vrnn(torch.tanh(self.features(x)), lengths, eps=eps, normalizer=normalizer).loss


def draw(seed: int) -> tuple[Parent, Tensor, Tensor]:
    torch.manual_seed(seed)
    return Parent(), torch.randn(T, B, X), torch.randn(T, B, Z)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        found[name.removeprefix("module.")] = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
    return found


def message_of(call: Any) -> str:
    try:
        call()
    except TypeError as error:
        return str(error)
    return "nothing was raised"


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    own = slice(rank, None, RANKS)
    steps = LENGTHS[own].sum()
    dist.all_reduce(steps)

    def trained(model: nn.Module, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
        model(x[:, own], LENGTHS[own], eps[:, own], normalizer=steps / RANKS).backward()
        return gradients(model)

    def sharded(model: Parent, *units: nn.Module) -> Parent:
        for unit in (*units, model):
            fully_shard(unit, mesh=mesh)
        return model

    found: Findings = {"data parallel": [], "parent": [], "units": []}
    for seed in range(DRAWS):
        model, x, eps = draw(seed)
        replica, parent, units = (copy.deepcopy(model) for _ in range(3))
        found["data parallel"].append(trained(DistributedDataParallel(replica), x, eps))
        found["parent"].append(trained(sharded(parent), x, eps))
        found["units"].append(trained(sharded(units, units.vrnn), x, eps))

    # a step of training moves the weights, packed ones too
    optimizer = torch.optim.Adam(units.parameters(), lr=0.1)
    with torch.no_grad():
        before = units(x, LENGTHS, eps)
    units.reshard()  # after a forward alone, fully_shard leaves the outermost unit whole
    optimizer.step()
    with torch.no_grad():
        after = units(x, LENGTHS, eps)
    whole = copy.deepcopy(model)
    whole.load_state_dict({name: p.full_tensor() for name, p in units.state_dict().items()})
    found["trained"] = before, after, whole(x, LENGTHS, eps)

    inner = VRNN(X, H, Z)
    fully_shard(inner.enc, mesh=mesh)
    found["a sub-module"] = message_of(lambda: inner(x))
    outer = VRNN(X, H, Z)
    fully_shard(outer, mesh=mesh)
    found["another method"] = message_of(lambda: outer.step(x[0], None))
    register_fsdp_forward_method(outer, "step")
    found["step"] = outer.step(x[0], None).prediction.shape
    found["x"] = message_of(lambda: VRNN(X, H, Z)(distribute_tensor(x, mesh, [Replicate()])))
    if rank == 0:
        torch.save(found, f"{folder}/findings")
    dist.barrier()  # gloo may abort a process whose neighbour leaves first
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("distributed")
    mp.spawn(work, (str(folder),), nprocs=RANKS)
    found: Findings = torch.load(Path(folder, "findings"))
    return found


@pytest.mark.parametrize("how", ["data parallel", "parent", "units"])
def test_gradients_are_those_of_one_process_on_the_whole_batch(findings: Findings, how: str) -> None:
    errors = Errors(torch.float32)
    for seed, found in enumerate(findings[how]):
        model, x, eps = draw(seed)
        alone = []
        for dtype in (torch.float32, torch.float64):
            twin = copy.deepcopy(model).to(dtype)
            twin.vrnn.backend = "reference"
            twin(x.to(dtype), LENGTHS, eps.to(dtype)).backward()
            alone.append(gradients(twin))
        errors.add(found, *alone)
    errors.assert_at_most_twice_torchs()


def test_a_sharded_model_trains(findings: Findings) -> None:
    before, after, whole = findings["trained"]
    assert after < before
    torch.testing.assert_close(after, whole)


@pytest.mark.parametrize("name", ["a sub-module", "another method"])
def test_a_parameter_in_shards_raises(findings: Findings, name: str) -> None:
    first = {"a sub-module": "enc.0.weight", "another method": "phi_x.0.weight"}[name]
    assert findings[name].startswith(
        f"parameter {first} must be a tensor of one process, got a DTensor: shard the VRNN"
    )


def test_a_method_that_fsdp_knows_runs_on_whole_parameters(findings: Findings) -> None:
    assert findings["step"] == (B, X)


def test_data_in_shards_raises(findings: Findings) -> None:
    assert findings["x"].startswith(
        "x must be a tensor of one process, got a DTensor: pass what this process shall run"
    )
