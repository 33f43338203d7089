"""A GPU that is not there: triton specialises, compiles and looks into its caches as for a real one, and runs nothing.

``python -m tests.support.absent_gpu {tune|run}`` is one process of training: calls of several sizes, after it has tuned
or as it finds things on disk. It prints as JSON the configuration, and every kernel that was wanted, with whether it
was on disk.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import triton
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.triton import tuning

SPEC = CellSpec(3, 4, 2, num_layers=2, cond_size=2)
SIZES = (3, 2), (1, 1), (16, 16), (17, 5)  # T and B; triton would compile anew for ones and for multiples of 16
PARTICLES = 2


class Driver:
    """What triton asks of a driver."""

    utils = SimpleNamespace(
        get_device_properties=lambda _: {"max_shared_mem": 1 << 20},
        load_binary=lambda *_: (object(), None, 0, 0, 1024),
        unload_module=lambda _: None,
    )

    def launcher_cls(self, *_: Any) -> Any:
        return lambda *_: None

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def install() -> list[tuple[str, bool]]:
    """From now on there is this GPU; the names of all kernels that triton wants, and whether they were on disk."""
    from triton import knobs
    from triton.runtime import driver

    found: list[tuple[str, bool]] = []

    def listener(*, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        found.append((metadata["name"], cache_hit))

    driver.set_active(Driver())
    knobs.compilation.listener = listener
    return found


def tensor(*shape: int, at: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that begin ``at`` elements after where torch has put them."""
    count = torch.Size(shape).numel()
    return torch.zeros(at + count, dtype=dtype)[at:].view(shape)


def train(steps: int, batch: int, at: int, particles: int = 0) -> None:
    """Forward and backward with all there is to a call; with ``particles``, of a filter. ``at`` as in tensor()."""
    spec, rows = SPEC, batch * max(1, particles)
    shapes: dict[str, tuple[int, ...]] = {"resets": (steps, rows), "mask": (steps, rows, 3)}
    flags = {name: tensor(*shape, at=at, dtype=torch.bool) for name, shape in shapes.items()}
    options: dict[str, Any] = {}
    if particles:
        spec = replace(spec, measure="particle_filter")
        options |= {"uniforms": tensor(steps, batch, particles, at=at), "threshold": 0.9 if at else 0.5}
    lengths = tensor(rows, at=at, dtype=torch.int64)
    x, eps, cond = (tensor(steps, rows, width, at=at).requires_grad_() for width in (3, 2, 2))
    state = tuple(tensor(2, rows, 4, at=at).requires_grad_().unbind())
    parameters = [torch.zeros(p.shape, requires_grad=True) for p in spec.parameters()]
    out = triton.run(spec, parameters, Batch(x, eps, state, lengths, cond, **flags, **options), Want())
    final = torch.stack(out.state)
    torch.autograd.backward([out.kl, final], [torch.zeros_like(out.kl), tensor(2, rows, 4, at=at)])


def play(steps: int, batch: int, at: int) -> None:
    """Generate."""
    parameters = [torch.zeros(p.shape) for p in SPEC.parameters()]
    eps, noise, cond = (tensor(steps, batch, width, at=at) for width in (2, 3, 2))
    state = tuple(tensor(2, batch, 4, at=at))
    triton.generate(SPEC, parameters, Batch(noise, eps, state, cond=cond), mean=False)


def main(way: str) -> None:
    device = torch.device("cpu")
    if way == "tune":
        tuning.tune(SPEC, torch.float32, device, lambda config: float(config.warps == 8 or config.ahead))
    wanted = install()
    for at, (steps, batch) in enumerate(SIZES):
        train(steps, batch, at)
        train(steps, batch, at, PARTICLES)
        play(steps, batch, at)
    print(json.dumps({"config": asdict(tuning.choose(SPEC, torch.float32, device)), "wanted": wanted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
