"""A whole batch of sequences, forward and backward: dense passes over all rows, and one launch for each scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ...cell.spec import CellSpec
from ...cell.stages import Keep
from ..base import Batch, Want
from ..call import Call, backward, forward, on
from ..rows import aligned, allocate
from . import pack, tuning
from .plan import identifier, plan
from .tuning import Config

launches: Counter[str] = Counter()  # of kernels of ours in this process: "weights", "forward", "backward", "generate"


class Launch(Call):
    """One call: its sizes, its rows, its configuration. Where the cell runs on its own (``mean`` as in :func:`plan`),
    the noise of its outputs is in the place of x."""

    def __init__(
        self,
        spec: CellSpec,
        given: Batch,
        parameters: Sequence[Tensor],
        precision: str,
        mean: bool | None = None,
        *,
        reverse: bool = False,
        config: Config | None = None,
    ) -> None:
        self.precision, self.mean = precision, mean
        particles = 1 if given.uniforms is None else given.uniforms.shape[2]
        self.config = config or tuning.choose(spec, given.x.dtype, given.x.device, precision, mean, particles)
        self.plan = plan(spec, self.config.widest, mean, reverse=reverse)
        super().__init__(spec, given, parameters, self.plan, noise=mean is not None)

    def workspace(self) -> Tensor:
        """The weights of the scan as its kernel reads them."""
        from . import kernels

        space = allocate(self.given.x, (self.plan.workspace,))
        kernel = kernels.packing(self.spec, self.config.widest, self.mean, self.plan.reverse)
        named = {pack.argument(p): aligned(self.rows.parameters[p]) for p in pack.parameters(self.plan)}
        arguments = {"workspace": space, **named, "PRECISION": self.precision}
        self.launch("weights", kernel, pack.programs(self.plan), arguments)
        return space

    def states(self, start: str, starts: Sequence[Tensor], end: str, ends: Sequence[Tensor]) -> dict[str, Tensor]:
        """The states that a kernel begins with and ends in, as its arguments."""
        found: dict[str, Tensor] = {}
        for name, first, last in zip(self.plan.states, starts, ends, strict=True):
            found |= {f"{start}_{identifier(name)}": first, f"{end}_{identifier(name)}": last}
        return found

    def starts(self) -> list[Tensor]:
        return [aligned(start) for start in self.given.state]

    def forward_scan(self, stored: tuple[str, ...], final: Sequence[Tensor], ancestors: Tensor) -> None:
        """See :class:`Call`. A particle filter's kernel leaves nll and kl as well."""
        from . import kernels

        cut, rows, like = self.plan, self.rows, self.given.x
        tensors: dict[str, Any] = {
            f"b_{identifier(name)}": rows.buffer(rows.value, name) for name in (*cut.given, *stored)
        }
        tensors |= self.states("start", self.starts(), "final", final)
        if self.given.uniforms is not None:
            tensors |= {"b_uniforms": aligned(self.given.uniforms), "b_ancestors": ancestors}
            tensors |= {"enough": self.given.threshold * self.particles, "mask": self.flags(self.given.mask)}
            rows.nll = tensors["b_nll"] = allocate(like, (rows.count,), 0.0)
            if cut.divergence is not None:
                rows.kl = tensors["b_kl"] = allocate(like, (rows.count,), 0.0)
        kernel = kernels.forward(self.spec, self.config, like.element_size(), stored)
        self.launch_scan("forward", kernel, tensors)

    def backward_scan(
        self,
        given: tuple[str, ...],
        d_final: Sequence[Tensor],
        d_start: Sequence[Tensor],
        ancestors: Tensor,
        *,
        on_z: bool,
        on_eps: bool,
    ) -> None:
        """See :class:`Call`."""
        from . import kernels

        cut, rows = self.plan, self.rows
        values = (*cut.values, *(["eps"] if cut.sample else []))
        tensors = {f"b_{identifier(name)}": rows.value[name] for name in values}
        tensors |= {f"g_{identifier(name)}": rows.buffer(rows.gradient, name) for name in given}
        tensors |= self.states("d_final", d_final, "d_start", d_start)
        if cut.resamples:
            tensors["b_ancestors"] = ancestors
        kernel = kernels.backward(self.spec, self.config, self.given.x.element_size(), on_z, on_eps)
        self.launch_scan("backward", kernel, tensors)

    def launch_scan(self, way: str, kernel: Any, arguments: Mapping[str, Tensor | float | None]) -> None:
        """Launch a scan over all tiles of the batch."""
        given = {
            **arguments,
            "weights": self.workspace(),
            "steps": self.steps,
            "batch": self.batch,
            "lengths": self.lengths,
            "order": self.order,
            "resets": self.flags(self.given.resets),
            "ROWS": self.config.rows,
            "PARTICLES": self.particles,
            "PRECISION": self.precision,
        }
        whole = self.config.rows // self.particles * self.particles
        self.launch(way, kernel, -(-self.batch // whole), given)

    def launch(self, way: str, kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
        """One launch of so many programs, on the current stream of the tensors' device."""
        from .versions import options

        launches[way] += 1
        with on(self.given.x.device):
            kernel[(programs,)](**arguments, **options(self.config.warps))


class _Timed(Launch):
    """A call that repeats each scan, and knows what they take.

    A scan writes where it has read, so that the numbers of a repeat mean nothing.
    """

    seconds = 0.0
    repeats = 10

    def launch(self, way: str, kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
        once = partial(super().launch, way, kernel, programs, arguments)
        once()
        if way in ("forward", "backward"):
            self.seconds += _seconds(once, self.given.x.device, self.repeats) / self.repeats


def _seconds(once: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Of so many launches, one behind the other."""
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(repeats):
            once()
        return perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with on(device):
        begin.record()
        for _ in range(repeats):
            once()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def scan_seconds(
    spec: CellSpec,
    config: Config,
    dtype: torch.dtype,
    device: torch.device,
    steps: int,
    batch: int,
    precision: str = "ieee",
) -> float:
    """What both scans of a training step take in one configuration, by the device's clock, and nothing around them."""
    from ..problem import Problem

    inputs = {name: t.to(device, dtype) for name, t in Problem.draw(spec, steps, batch).inputs.items()}
    state = tuple(inputs[f"state{i}"] for i in range(spec.state_tensors))
    given = Batch(inputs["x"], inputs["eps"], state, cond=inputs.get("cond"))
    parameters = [inputs[p.name] for p in spec.parameters()]
    there, back = (_Timed(spec, given, parameters, precision, reverse=r, config=config) for r in (False, True))
    found = forward(there, Keep.STORED, Want())
    upstream = {"nll": torch.ones_like(found.nll), "kl": torch.ones_like(found.kl)}
    backward(back, upstream, found.z, found.std, found.ancestors, found.saved, Keep.STORED, set())
    return there.seconds + back.seconds


def make(spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, reverse: bool) -> Launch:
    """A call without or with a reverse scan; see :class:`Launch`."""
    return Launch(spec, batch, parameters, precision, reverse=reverse)


def generate(
    spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, mean: bool
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own in one launch, with noise (T, B, X) in the place of x: x (T, B, X) and the state."""
    from . import kernels

    own = Launch(spec, batch, parameters, precision, mean)
    cut, rows = own.plan, own.rows
    rows.run(cut.program.before)
    tensors: dict[str, Any] = {f"b_{identifier(name)}": rows.value[name] for name in cut.given}
    tensors["b_x"] = rows.buffer(rows.value, "x")
    state = [allocate(batch.x, tuple(start.shape)) for start in batch.state]
    tensors |= own.states("start", own.starts(), "final", state)
    kernel = kernels.forward(spec, own.config, batch.x.element_size(), ("x",), mean)
    own.launch_scan("generate", kernel, {name: t for name, t in tensors.items() if name in kernel.arg_names})
    return own.result(rows.value["x"]), state
