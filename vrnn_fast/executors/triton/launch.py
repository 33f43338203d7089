"""A whole batch of sequences, forward and backward: dense passes over all rows, and one launch for each scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...cell.spec import CellSpec
from ..base import Batch
from ..call import Call, on
from ..rows import aligned, allocate
from . import pack, tuning
from .plan import identifier, plan

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
    ) -> None:
        self.precision, self.mean = precision, mean
        particles = 1 if given.uniforms is None else given.uniforms.shape[2]
        self.config = tuning.choose(spec, given.x.dtype, given.x.device, precision, mean, particles)
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
