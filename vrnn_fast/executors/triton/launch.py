"""A whole batch of sequences, forward and backward: dense passes over all rows, and one launch for each scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...cell.reach import reached
from ...cell.spec import CellSpec
from ...cell.stages import Dense, Keep, Slice
from ..base import Batch, Want
from ..rows import Rows, aligned, allocate
from . import tuning
from .plan import Plan, identifier, plan

launches: Counter[str] = Counter()  # of kernels of ours in this process: "forward", "backward", "generate"


class Outputs(NamedTuple):
    """The results of a forward pass; ``saved`` are the buffers of :func:`kept`."""

    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    raw: Tensor
    state: list[Tensor]
    saved: list[Tensor]
    ancestors: Tensor


def by_length(lengths: Tensor, particles: int) -> Tensor:
    """(B,) the rows in the order in which tiles take them: the longest first, so that a tile's rows end together.

    The ``particles`` of a sequence stay side by side.
    """
    groups = torch.argsort(lengths[::particles], descending=True, stable=True)
    return (groups.unsqueeze(1) * particles + torch.arange(particles, device=lengths.device)).flatten()


def kept(cut: Plan, keep: Keep | None) -> tuple[str, ...]:
    """The buffers that forward hands to backward, besides its results."""
    return () if keep is None else tuple(b.name for b in cut.program.buffers if b.keep >= keep)


class Launch:
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
        self.spec, self.precision, self.given = spec, precision, given
        x, drawn = given.x, given.uniforms
        self.steps, self.batch = x.shape[0], x.shape[1]
        self.particles = 1 if drawn is None else drawn.shape[2]
        self.config = tuning.choose(spec, x.dtype, x.device, precision, mean, self.particles)
        self.plan = plan(spec, self.config.widest, mean, reverse=reverse)
        if self.plan.resamples != (drawn is not None):
            raise ValueError("uniforms belong to a cell that resamples, and to no other")
        groups = self.batch // self.particles
        if drawn is not None and (drawn.shape[:2] != (self.steps, groups) or groups * self.particles != self.batch):
            raise ValueError(f"uniforms must be (T, B / particles, particles), got {tuple(drawn.shape)}")
        self.lengths = None if given.lengths is None else aligned(given.lengths.to(x.device))
        self.order: Tensor | None = None
        self.real: Tensor | None = None
        if self.lengths is not None:
            if self.particles > 1:
                alike = self.lengths.view(-1, self.particles) == self.lengths[:: self.particles, None]
                torch._assert_async(alike.all(), "particles of a sequence must be as long as each other")
            self.order = by_length(self.lengths, self.particles)
            self.real = (torch.arange(self.steps, device=x.device)[:, None] < self.lengths).reshape(-1, 1)
        named = dict(zip((p.name for p in spec.parameters()), parameters, strict=True))
        mask = None if given.mask is None else self.flat(given.mask)
        widths = {b.name: b.width for b in self.plan.program.buffers}
        zeroed = self.plan.tiles.keys() if self.real is not None else ()
        self.rows = Rows(spec, widths, named, x, self.steps * self.batch, mask, zeroed)
        for name, tensor in (("x" if mean is None else "noise", x), ("eps", given.eps), ("cond", given.cond)):
            if tensor is not None:
                self.rows.value[name] = self.real_only(self.flat(tensor))

    def flat(self, tensor: Tensor) -> Tensor:
        """(T, B, ...) as (rows, ...)."""
        return aligned(tensor.reshape(self.steps * self.batch, *tensor.shape[2:]))

    def flags(self, tensor: Tensor | None) -> Tensor | None:
        """Of bool, as the kernels read it."""
        return None if tensor is None else self.flat(tensor).view(torch.int8)

    def real_only(self, tensor: Tensor) -> Tensor:
        """(rows, width) with zeros at padding, whatever was there."""
        return tensor if self.real is None else torch.where(self.real, tensor, 0.0)

    def rows_of(self, gradient: Tensor) -> Tensor:
        """An upstream gradient (T, B, ...) as (rows, ...), zero at padding."""
        flat = self.flat(gradient)
        if self.real is None:
            return flat
        return torch.where(self.real if flat.dim() == 2 else self.real.squeeze(1), flat, 0.0)

    def result(self, tensor: Tensor) -> Tensor:
        """(T, B, width) of its own, with zeros at padding."""
        return self.real_only(tensor).contiguous().view(self.steps, self.batch, tensor.shape[1])

    def per_row(self, tensor: Tensor | None) -> Tensor:
        """(T, B) in the dtype of x, with zeros at padding."""
        if tensor is None:
            return self.given.x.new_zeros((self.steps, self.batch))
        return self.result(tensor.to(self.given.x.dtype).unsqueeze(1)).squeeze(2)

    def workspace(self) -> Tensor:
        """The weights of the scan side by side, as its kernels read them."""
        like = self.given.x
        space = allocate(like, (self.plan.workspace,), 0.0)
        into, of = [], []
        for matrix in self.plan.matrices:
            weight = self.rows.weight(matrix.stage)
            height, width = weight.shape
            place = space[matrix.offset : matrix.offset + height * matrix.stride].view(height, matrix.stride)
            into.append(place[:, :width])
            of.append(weight)
            if matrix.stage.bias is not None:
                into.append(space[matrix.bias : matrix.bias + height])
                of.append(self.rows.bias(matrix.stage.bias, height))
        torch._foreach_copy_(into, of)
        return space

    def add_states(self, tensors: dict[str, Any]) -> list[Tensor]:
        """Hand the states to a forward kernel; returns those it ends in."""
        final = []
        for name, start in zip(self.plan.states, self.given.state, strict=True):
            final.append(allocate(self.given.x, tuple(start.shape)))
            tensors |= {f"start_{identifier(name)}": aligned(start), f"final_{identifier(name)}": final[-1]}
        return final

    def launch(self, way: str, kernel: Any, arguments: Mapping[str, Tensor | float | None]) -> None:
        """One launch over all tiles of the batch, on the current stream of the tensors' device."""
        from .versions import options

        launches[way] += 1
        whole = self.config.rows // self.particles * self.particles
        with on(self.given.x.device):
            kernel[(-(-self.batch // whole),)](
                **arguments,
                weights=self.workspace(),
                steps=self.steps,
                batch=self.batch,
                lengths=self.lengths,
                order=self.order,
                resets=self.flags(self.given.resets),
                ROWS=self.config.rows,
                PARTICLES=self.particles,
                PRECISION=self.precision,
                **options(self.config.warps),
            )


def on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def forward(
    spec: CellSpec,
    batch: Batch,
    parameters: Sequence[Tensor],
    precision: str,
    keep: Keep | None,
    want: Want,
) -> Outputs:
    """Run a batch; ``keep`` is the least of the buffers that a backward pass wants, None where there is none."""
    from . import kernels

    call = Launch(spec, batch, parameters, precision)
    cut, rows, like = call.plan, call.rows, batch.x
    rows.run(cut.program.before)
    stored = cut.stored(keep, want)
    tensors: dict[str, Any] = {f"b_{identifier(name)}": rows.buffer(rows.value, name) for name in (*cut.given, *stored)}
    if cut.sample is not None and call.real is not None:  # a density needs one, at padding too
        rows.value[cut.sample.std.buffer].fill_(1.0)
    state, ancestors = call.add_states(tensors), like.new_empty((0, 0, 0), dtype=torch.int64)
    if batch.uniforms is not None:
        ancestors = allocate(like, tuple(batch.uniforms.shape), -1, torch.int64)
        tensors |= {"b_uniforms": aligned(batch.uniforms), "b_ancestors": ancestors}
        tensors |= {"enough": batch.threshold * call.particles, "mask": call.flags(batch.mask)}
        rows.nll = tensors["b_nll"] = allocate(like, (rows.count,), 0.0)
        if cut.divergence is not None:
            rows.kl = tensors["b_kl"] = allocate(like, (rows.count,), 0.0)
    kernel = kernels.forward(spec, call.config, like.element_size(), stored)
    call.launch("forward", kernel, tensors)
    rows.run(cut.program.after)
    if want.prior and cut.divergence is not None and cut.resamples:
        rows.prior_std(cut.divergence)

    def result(part: Slice, wanted: bool = True) -> Tensor:
        if not wanted:
            return like.new_empty((0, 0, part.width))
        whole = rows.value[part.buffer]
        return call.result(whole if whole.shape[1] == part.width else rows.view(rows.value, part).clone())

    def half(part: Slice) -> Slice:
        return Slice(part.buffer, part.start, spec.latent_size)

    sample, divergence = cut.sample, cut.divergence
    latent = [like.new_zeros((call.steps, call.batch, 0)) for _ in range(5)]
    if sample is not None and divergence is not None:
        latent = [result(part) for part in (sample.z, half(sample.source), sample.std)]
        latent += [result(part, want.prior) for part in (half(divergence.prior), divergence.prior_std)]
    per_step = (call.per_row(rows.nll), call.per_row(rows.kl), *latent, result(cut.likelihood.source, want.raw))
    return Outputs._make((*per_step, state, [rows.value[name] for name in kept(cut, keep)], ancestors))


def generate(
    spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, mean: bool
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own in one launch, with noise (T, B, X) in the place of x: x (T, B, X) and the state."""
    from . import kernels

    call = Launch(spec, batch, parameters, precision, mean)
    cut, rows = call.plan, call.rows
    rows.run(cut.program.before)
    tensors: dict[str, Any] = {f"b_{identifier(name)}": rows.value[name] for name in cut.given}
    tensors["b_x"] = rows.buffer(rows.value, "x")
    state = call.add_states(tensors)
    kernel = kernels.forward(spec, call.config, batch.x.element_size(), ("x",), mean)
    call.launch("generate", kernel, {name: t for name, t in tensors.items() if name in kernel.arg_names})
    return call.result(rows.value["x"]), state


class Gradients(NamedTuple):
    """Of a call's inputs; None where nobody asked."""

    x: Tensor | None
    eps: Tensor | None
    cond: Tensor | None
    state: list[Tensor]
    parameters: list[Tensor]


def backward(
    spec: CellSpec,
    batch: Batch,
    parameters: Sequence[Tensor],
    upstream: Mapping[str, Tensor],
    z: Tensor,
    std: Tensor,
    ancestors: Tensor,
    saved: Sequence[Tensor],
    precision: str,
    keep: Keep,
    wanted: set[str],
) -> Gradients:
    """The gradients of a batch.

    Args:
        upstream: gradients by the names of results, the states' as ``state0`` and so on.
        z, std, ancestors, saved: of :func:`forward`, whose ``keep`` this is.
        wanted: those of the inputs x, eps and cond whose gradients somebody wants.
    """
    from . import kernels

    call = Launch(spec, batch, parameters, precision, reverse=True)
    cut, rows, like = call.plan, call.rows, batch.x
    rows.value.update(zip(kept(cut, keep), saved, strict=True))
    if cut.sample is not None:
        rows.value[cut.sample.z.buffer] = call.flat(z)
        spread = call.flat(std)
        rows.value[cut.sample.std.buffer] = spread if call.real is None else torch.where(call.real, spread, 1.0)
    rows.restore(cut.program.stages)
    rows.reached = reached(cut.program, {"state" if name.startswith("state") else name for name in upstream})
    per_row = {name: call.rows_of(d) for name, d in upstream.items() if not name.startswith("state")}
    for stage in reversed(cut.program.after):
        rows.backward(stage, per_row, wanted=wanted)

    on_z = cut.sample is not None and ("z" in per_row or cut.sample.z in cut.read_after)
    if cut.sample is not None and "z" in per_row:
        d_z = rows.view(rows.gradient, cut.sample.z)
        d_z.add_(per_row["z"]) if cut.sample.z in cut.read_after else d_z.copy_(per_row["z"])
    tensors = {f"b_{identifier(name)}": rows.value[name] for name in (*cut.values, *(["eps"] if cut.sample else []))}
    given = {part.buffer for part in cut.read_after} | ({cut.sample.z.buffer} if on_z and cut.sample else set())
    given |= {"eps"} if "eps" in wanted and cut.sample else set()
    for name in dict.fromkeys((*cut.summed, *sorted(given))):
        tensors[f"g_{identifier(name)}"] = rows.buffer(rows.gradient, name)
    d_state = []
    for i, (name, start) in enumerate(zip(cut.states, batch.state, strict=True)):
        d_final = upstream.get(f"state{i}")
        tensors[f"d_final_{identifier(name)}"] = torch.zeros_like(start) if d_final is None else aligned(d_final)
        d_state.append(allocate(like, tuple(start.shape)))
        tensors[f"d_start_{identifier(name)}"] = d_state[-1]
    if cut.resamples:
        tensors["b_ancestors"] = ancestors
    kernel = kernels.backward(spec, call.config, like.element_size(), on_z, "eps" in wanted)
    call.launch("backward", kernel, tensors)
    if rows.d_eps is not None and "eps" in wanted:
        rows.gradient["eps"].add_(rows.d_eps)

    for stage in cut.program.scan:
        if isinstance(stage, Dense):
            rows.weight_gradient(stage)
    for stage in reversed(cut.program.before):
        rows.backward(stage, per_row, wanted=wanted)

    def of(name: str, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None or name not in wanted else rows.buffer(rows.gradient, name).view(tensor.shape)

    sequences = of("x", batch.x), of("eps", batch.eps), of("cond", batch.cond)
    return Gradients(*sequences, d_state, [rows.d_parameters[p.name] for p in spec.parameters()])
