"""Data parallelism: a batch shared by processes of one thread each, their gradients by DistributedDataParallel."""

from __future__ import annotations

import os
import tempfile
import weakref
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..contender import FORWARD_LOSS, TRAINING, Entry, NamedTensors, drop_gradients
from ..shapes import Shape, forward_flops
from .ours import model_of

_STEP, _RESULTS = "step", "results"


class Workers:
    """Processes that hold a model each, and their share of the rows of a batch."""

    def __init__(self, shape: Shape, dtype: torch.dtype, count: int) -> None:
        context: Any = get_context("spawn")
        self._place = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            given = (theirs, shape, dtype, rank, count, os.path.join(self._place.name, "store"))
            processes.append(context.Process(target=_work, args=given, daemon=True))
            processes[-1].start()
            theirs.close()
            self._pipes.append(ours)
        self._ending = weakref.finalize(self, _end, processes, self._pipes)
        self.ask(_STEP)

    def ask(self, what: str) -> list[Any]:
        """Let all do it at once, and return their answers."""
        for pipe in self._pipes:
            pipe.send(what)
        return [pipe.recv() for pipe in self._pipes]


def _end(processes: list[Any], pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(5)


def _work(pipe: Connection, shape: Shape, dtype: torch.dtype, rank: int, count: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    model = model_of(shape, dtype)
    x, eps = (t[:, rank::count] for t in shape.data(dtype))
    call: Any = DistributedDataParallel(model) if count > 1 else model
    parameters = tuple(model.parameters())
    given = {"eps": eps, "normalizer": shape.steps * shape.batch / count}  # gradients are averaged
    try:
        while True:
            asked = pipe.recv()
            drop_gradients(parameters)
            loss = call(x, **given).loss
            loss.backward()
            if asked == _STEP:
                pipe.send(None)
                continue
            with torch.no_grad():
                alone = model(x, **given).loss
            gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
            pipe.send({"loss": loss.detach(), FORWARD_LOSS: alone, **gradients})
    except EOFError:
        dist.destroy_process_group()


def _prepare(shape: Shape, dtype: torch.dtype, count: int) -> Entry:
    workers = Workers(shape, dtype, count)

    def results() -> NamedTensors:
        found: list[dict[str, Tensor]] = workers.ask(_RESULTS)
        means = {name: torch.stack([own[name] for own in found]).mean(0) for name in ("loss", FORWARD_LOSS)}
        return found[0] | means

    return Entry({TRAINING: lambda: workers.ask(_STEP)}, results, forward_flops(model_of(shape, dtype), shape))


prepare_one = partial(_prepare, count=1)
prepare_two = partial(_prepare, count=2)
