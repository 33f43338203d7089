"""Accelerated models in wrappers that reduce gradients."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from foreign import copied
from vrnn_fast import accelerate
from vrnn_fast.compat.accelerated import Accelerated

PROCESSES = 2


def compare(rank: int, folder: str, around: bool) -> None:
    """One of the processes: the gradients of the original and of the accelerated model, each averaged over all."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.manual_seed(rank)  # the wrapper gives everybody the parameters of the first
    model = copied.VRNN(6, 9, 4)
    original = DistributedDataParallel(model)
    fast = DistributedDataParallel(accelerate(model)) if around else accelerate(original)
    assert isinstance(fast, DistributedDataParallel)
    assert isinstance(fast.module, Accelerated)
    assert not isinstance(original.module, Accelerated)
    assert list(fast.state_dict()) == list(original.state_dict())
    found = []
    for module in (original, fast, original, fast):
        module.zero_grad(set_to_none=True)
        torch.manual_seed(PROCESSES + rank)
        kl, nll, _, (_, stds) = module((torch.rand(7, 5, 6) < 0.4).float())
        (kl + nll + torch.stack(stds).sum()).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-4, atol=1e-4)
    torch.save(found[1], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("around", [True, False], ids=["the wrapper around", "the wrapper accelerated"])
def test_distributed_data_parallel(around: bool, tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path), around), nprocs=PROCESSES)
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(PROCESSES))
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))
