"""Two processes of DistributedDataParallel through the CUDA kernels: VRNN_FAST_CUDA=emulate, as each rank is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.support.oracle import Errors
from vrnn_fast import VRNN
from vrnn_fast.executors.cuda import build, launch

RANKS, T, B = 2, 3, 4
LENGTHS = torch.tensor([3, 1, 2, 0])

pytestmark = [
    pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
]


def model(backend: str) -> VRNN:
    torch.manual_seed(0)
    return VRNN(5, 8, 3, phi_x=(), encoder=(8,), decoder=(), backend=backend)


def trained(module: torch.nn.Module, own: slice, ranks: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients after a step of descent, of a loss over the real steps of all processes."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        x, eps = torch.rand(T, B, 5, generator=generator).to(dtype), torch.randn(T, B, 3, generator=generator).to(dtype)
        module.zero_grad()
        normalizer = LENGTHS.sum() / ranks
        module(x[:, own], LENGTHS[own], eps=eps[:, own], normalizer=normalizer).loss.backward()
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.1 * p.grad  # type: ignore[operator]
    return {n.removeprefix("module."): p.grad for n, p in module.named_parameters() if p.grad is not None}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    own = model("auto")
    found = trained(DistributedDataParallel(own), slice(rank, None, RANKS), RANKS, torch.float32)
    torch.save((found, dict(launch.launches)), f"{folder}/{rank}")
    dist.barrier()  # gloo may abort a process whose neighbour leaves first
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRNN_FAST_CUDA", "emulate")
    mp.spawn(work, (str(tmp_path),), nprocs=RANKS)
    errors = Errors(torch.float32)
    alone = [trained(model("reference").to(d), slice(None), 1, d) for d in (torch.float32, torch.float64)]
    for rank in range(RANKS):
        found, launches = torch.load(tmp_path / str(rank), weights_only=False)
        errors.add(found, *alone)
        assert launches == {"all of forward": 2, "all of backward": 2}
    errors.assert_at_most_twice_torchs()
