"""The processes of a run, as torchrun starts them; one process is a run of one rank."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import Any, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..data.order import share
from ..data.reading import Item
from .config import RunError, one_line

_TIMEOUT = timedelta(minutes=10)  # without a word from another rank
_JOINING = timedelta(minutes=1)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is, and where it computes.

    Attributes:
        start: 1, and one more each time that torchrun has started all ranks anew, after one died.
        control: a group for CPU tensors, beside the one of gradients.
        writing: another one, for checkpoints that are written meanwhile.
    """

    rank: int
    size: int
    device: torch.device
    start: int = 1
    control: Any = None
    writing: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and prints."""
        return self.rank == 0

    def share(self, rows: Sequence[Item], part: int = 0, parts: int = 1) -> Sequence[Item]:
        """Take what this rank has of rows; see :func:`vrnn_fast.data.order.share`."""
        return share(rows, self.rank, self.size, part, parts)

    def sum(self, *values: float) -> list[float]:
        """Add up over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with missing():
            dist.all_reduce(total, group=self.control)
        return cast(list[float], total.tolist())

    def gather(self, item: Item) -> list[Item]:
        """Gather what each rank has, in order, on all of them."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        with missing():
            dist.all_gather_object(found, item, group=self.control)
        return found

    def told(self, item: Item) -> Item:
        """Return what the first rank has."""
        return self.gather(item)[0]

    def together(self, failure: Exception | None) -> None:
        """Raise on all ranks what went wrong on one of them, naming it.

        Raises:
            RunError: something did.
        """
        found = self.gather(None if failure is None else one_line(failure))
        wrong = [(rank, words) for rank, words in enumerate(found) if words is not None]
        if wrong:
            rank, words = wrong[0]
            raise RunError(words if self.size == 1 else f"rank {rank}: {words}", everywhere=True) from failure


@contextmanager
def missing() -> Iterator[None]:
    """Turn what torch says where another rank is no longer there into a line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RunError(f"another rank is gone: {one_line(error)[:200]}") from error


@contextmanager
def _leaving_after(patience: timedelta) -> Iterator[None]:
    """Leave this process where the block takes much longer, for torchrun to start it anew: ranks that wait for one that
    died while they were joining are not always told by gloo, whatever its timeout."""

    def leave() -> None:
        rank, seconds = os.environ["RANK"], patience.total_seconds()
        print(f"rank {rank}: the other ranks did not come within {seconds:.0f} s", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(1.2 * patience.total_seconds(), leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that torchrun started, if it did, else be one.

    Args:
        device: ``"auto"`` is a GPU for each process of a node where there are GPUs, else the CPU.

    Raises:
        RunError: there is no such device, or not one for each process.
    """
    local, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    where = _device(device, local, processes)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks(0, 1, where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    with _leaving_after(_JOINING), missing():
        store, rank, size = next(rendezvous("env://", timeout=_JOINING))
        start = _start(store, rank, size)
        backend = "cuda:nccl,cpu:gloo" if where.type == "cuda" else "gloo"
        own = PrefixStore(f"start {start}", store)
        dist.init_process_group(backend, timeout=_JOINING, store=own, rank=rank, world_size=size)
        control, writing = (dist.new_group(backend="gloo", timeout=_JOINING) for _ in range(2))
    try:
        for group in (None, control, writing):
            dist.distributed_c10d._set_pg_timeout(_TIMEOUT, group)
        yield Ranks(rank, size, where, start, control, writing)
    finally:
        dist.destroy_process_group()


def _start(store: Store, rank: int, size: int) -> int:
    """Find out, with the other ranks, which start of the run this is.

    torchrun may keep one store for all starts, and in it the addresses of ranks that died, so each start has names of
    its own. Each node counts its own restarts; only the store has heard of all. A rank asks under a name that nobody
    had before, so that no answer is an old one, and the first rank answers until it has heard that all know.
    """
    if rank != 0:
        store.set(f"rank {rank} asks as", name := uuid4().hex)
        start = int(store.get(f"start, to {name}"))
        store.set(f"rank {rank} knows {start}", "")
        return start
    start, others = store.add("starts", 1), set(range(1, size))
    while others:
        for other in sorted(others):
            if store.check([f"rank {other} knows {start}"]):
                others.remove(other)
            elif store.check([f"rank {other} asks as"]):
                store.set(f"start, to {store.get(f'rank {other} asks as').decode()}", str(start))
        sleep(0.01)
    return start


def _device(name: str, local: int, processes: int) -> torch.device:
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind != "cuda":
        return torch.device(kind)
    if not torch.cuda.is_available():
        raise RunError("device cuda: torch finds no GPU here; device cpu computes without one")
    if processes > torch.cuda.device_count():
        raise RunError(f"device cuda: {processes} processes on a node of {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", local)


def seen_by_all(ranks: Ranks, name: str, value: str) -> None:
    """Raise RunError where the ranks do not have the same ``value``."""
    found = ranks.gather(value)
    others = [rank for rank, theirs in enumerate(found) if theirs != found[0]]
    if others:
        raise RunError(
            f"{name} is not the same on all ranks: {found[0]} on rank 0, {found[others[0]]} on rank {others[0]}",
            everywhere=True,
        )
