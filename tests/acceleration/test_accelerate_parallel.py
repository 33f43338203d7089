"""Accelerated models in wrappers that reduce gradients."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.support.foreign import copied
from tests.support.oracle import Errors
from tests.support.replay import RecordNoise, ReplayNoise
from vrnn_fast import accelerate
from vrnn_fast.acceleration.double import double_by_default
from vrnn_fast.acceleration.module import Accelerated

PROCESSES = 2


def gradients(module: DistributedDataParallel, x: Tensor) -> dict[str, Tensor]:
    """Of every parameter by name, averaged over all processes."""
    module.zero_grad(set_to_none=True)
    kl, nll, _, (_, stds) = module(x)
    (kl + nll + torch.stack(stds).sum()).backward()
    return {name: p.grad.clone() for name, p in module.module.named_parameters() if p.grad is not None}


def compare(rank: int, folder: str, around: bool) -> None:
    """One of the processes: the accelerated model's gradients obey the law, the original being plain torch."""
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
    precise = DistributedDataParallel(copy.deepcopy(model).double())
    errors = Errors(torch.float32)
    for seed in range(6):
        torch.manual_seed(PROCESSES * seed + rank)
        x, state = (torch.rand(7, 5, 6) < 0.4).float(), torch.get_rng_state()
        with RecordNoise() as record:
            theirs = gradients(original, x)
        torch.set_rng_state(state)
        ours = gradients(fast, x)
        with double_by_default(), ReplayNoise(record):
            oracle = gradients(precise, x.double())
        errors.add(ours, theirs, oracle)
    errors.assert_at_most_twice_torchs()
    torch.save(ours, f"{folder}/{rank}")
    dist.barrier()  # gloo may abort a process whose neighbour leaves first
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("around", [True, False], ids=["the wrapper around", "the wrapper accelerated"])
def test_distributed_data_parallel(around: bool, tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path), around), nprocs=PROCESSES)
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(PROCESSES))
    assert one.keys() == other.keys()
    assert all(torch.equal(p, other[name]) for name, p in one.items())
