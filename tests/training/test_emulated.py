"""A run whose parameters are divided between two processes, computed by the CUDA kernels in their emulator."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FSDPModule

from vrnn_fast.data import Dataset, Source
from vrnn_fast.executors.cuda import build, launch
from vrnn_fast.training.config import TrainConfig
from vrnn_fast.training.ranks import Ranks, joined
from vrnn_fast.training.trainer import Trainer

WIDTHS = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (8,))
MODEL: dict[str, Any] = {"hidden_size": 8, "latent_size": 3, "activation": "tanh", **WIDTHS}

pytestmark = [
    pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
]


def curve(folder: Path, backend: str, ranks: Ranks | None = None) -> tuple[Trainer, list[float]]:
    """Every step's loss and norm, and the validation, of an epoch in segments."""
    generator = torch.Generator().manual_seed(0)
    x = tuple((torch.rand(2 + i % 3, 5, generator=generator) < 0.3).float() for i in range(9))
    config = TrainConfig(epochs=1, batch_size=3, segment=2, warmup=1, anneal=0.0, shard=True, backend=backend)
    trainer = Trainer(Source(), MODEL, config, Dataset("dots", "bernoulli", x[:5], x[5:7], x[7:]), folder, ranks)
    found = [value for step in trainer.steps() for value in (step.loss, step.gradient_norm)]
    return trainer, [*found, trainer.history[-1].valid.bound]


def work(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with joined("cpu") as ranks:
        trainer, found = curve(Path(folder, "both"), "cuda", ranks)
        about = (found, dict(launch.launches), isinstance(trainer.model, FSDPModule))
        torch.save(about, Path(folder, str(rank)))
        ranks.told(None)


def test_a_sharded_run_by_cuda_kernels_follows_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, right = curve(tmp_path / "alone", "reference")
    monkeypatch.setenv("VRNN_FAST_CUDA", "emulate")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (str(tmp_path), port), nprocs=2)
    steps = len(right) // 2
    for rank in range(2):
        found, launches, sharded = torch.load(tmp_path / str(rank))
        assert sharded
        assert launches["all of backward"] == steps > 2
        assert found == pytest.approx(right, rel=2e-4, abs=2e-4)
