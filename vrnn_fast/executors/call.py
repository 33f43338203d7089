"""A call of an executor whose kernels run the scan alone: all around them, forward and backward, in torch.

A subclass of :class:`Call` launches the kernels. What depends on a row alone runs over all rows by rows.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cell.spec import CellSpec
from ..cell.stages import Begin, Dense, Keep, Normalize, Partition, Slice
from .base import Batch, Want
from .cut import Cut, initial
from .rows import Rows, aligned, allocate


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


class Gradients(NamedTuple):
    """The gradients of a call's inputs; None for those not asked for."""

    x: Tensor | None
    eps: Tensor | None
    cond: Tensor | None
    state: list[Tensor]
    parameters: list[Tensor]


class Remembered(NamedTuple):
    """What a reverse pass needs of :func:`forward`: some of its results, and the ``keep`` that it was given."""

    z: Tensor
    std: Tensor
    ancestors: Tensor
    saved: Sequence[Tensor]
    keep: Keep


def particles(given: Batch, cut: Cut) -> int:
    """Return how many particles each sequence of a batch has: rows side by side, as long as each other.

    Raises:
        ValueError: uniforms that do not belong to this cell or batch.
        RuntimeError: of particles of several lengths, at the latest when the device is waited for.
    """
    drawn, (steps, batch) = given.uniforms, given.x.shape[:2]
    if cut.resamples != (drawn is not None):
        raise ValueError("uniforms belong to a cell that resamples, and to no other")
    count = 1 if drawn is None else drawn.shape[2]
    if drawn is not None and (drawn.shape[:2] != (steps, batch // count) or batch % count):
        raise ValueError(f"uniforms must be (T, B / particles, particles), got {tuple(drawn.shape)}")
    if given.lengths is not None and count > 1:
        lengths = given.lengths.to(given.x.device)
        alike = lengths.view(-1, count) == lengths[::count, None]
        torch._assert_async(alike.all(), "particles of a sequence must be as long as each other")
    return count


def kept(program: Partition, keep: Keep | None) -> tuple[str, ...]:
    """Return the buffers that forward hands to backward, besides its results."""
    return () if keep is None else tuple(b.name for b in program.buffers if b.keep >= keep)


class Call(ABC):
    """One call: its sizes, and its rows.

    Args:
        cut: what the scan's kernel holds.
        noise: whether the noise of what is drawn is in the place of x.

    Raises:
        ValueError: uniforms that do not belong to this cell or batch.
    """

    adds_z = False  # whether after_backward adds the gradient that reaches z from outside
    masks = False  # whether the kernels read nothing of padding, and write zeros there where it is a result

    def __init__(
        self, spec: CellSpec, given: Batch, parameters: Sequence[Tensor], cut: Cut, *, noise: bool = False
    ) -> None:
        self.spec, self.given, self.cut = spec, given, cut
        x = given.x
        self.steps, self.batch = x.shape[0], x.shape[1]
        self.particles = particles(given, cut)
        self.lengths = None if given.lengths is None else aligned(given.lengths.to(x.device))
        self.order: Tensor | None = None  # of the batch, in which tiles take the rows
        self.real: Tensor | None = None
        if self.lengths is not None and not self.masks:
            self.real = (torch.arange(self.steps, device=x.device)[:, None] < self.lengths).reshape(-1, 1)
        named = dict(zip((p.name for p in spec.parameters()), parameters, strict=True))
        mask = None if given.mask is None else self.flat(given.mask)
        widths = {b.name: b.width for b in cut.program.buffers}
        zeroed = cut.parts.keys() if self.real is not None else ()
        self.rows = Rows(spec, widths, named, x, self.steps * self.batch, mask, zeroed)
        for name, tensor in (("noise" if noise else "x", x), ("eps", given.eps), ("cond", given.cond)):
            if tensor is not None:
                self.rows.value[name] = self.real_only(self.flat(tensor))

    def forward(self, keep: Keep | None, want: Want) -> Outputs:
        """See :func:`forward`."""
        return forward(self, keep, want)

    def backward(self, upstream: Mapping[str, Tensor], remembered: Remembered, wanted: set[str]) -> Gradients:
        """See :func:`backward`."""
        return backward(self, upstream, remembered, wanted)

    @abstractmethod
    def forward_scan(self, stored: tuple[str, ...], final: Sequence[Tensor], ancestors: Tensor) -> None:
        """Launch the forward kernel.

        Args:
            stored: the buffers that it writes.
            final: where the states go that it ends in.
            ancestors: where it says, if the cell resamples, who went on.
        """

    @abstractmethod
    def backward_scan(
        self,
        given: tuple[str, ...],
        d_final: Sequence[Tensor | None],
        d_start: Sequence[Tensor],
        ancestors: Tensor,
        *,
        on_z: bool,
        on_eps: bool,
    ) -> None:
        """Launch the reverse kernel.

        Args:
            given: the buffers whose gradients it reads or writes.
            d_final: gradients of the states that forward ended in; None for zeros.
            d_start: where those of the states go that it began with.
            on_z: whether a gradient reaches z from outside.
            on_eps: whether one is wanted of eps.
        """

    def before(self) -> None:
        """Compute what the scan is given."""
        self.rows.run(self.cut.program.before)

    def after(self, want: Want) -> None:
        """Compute what depends on the scan's results."""
        self.rows.run(self.cut.program.after)
        if want.prior and self.cut.divergence is not None and self.cut.resamples:
            self.rows.prior_std(self.cut.divergence)

    def after_backward(self, upstream: Mapping[str, Tensor], wanted: set[str], keep: Keep) -> None:
        """Compute again what was not kept, and the gradients that reach the scan's results.

        Args:
            upstream: (rows,) or (rows, width) gradients of results, by name.
            wanted: those of the inputs x, eps and cond whose gradients somebody wants.
            keep: the least of the buffers that are there.
        """
        self.rows.restore(self.cut.program.stages)
        for stage in reversed(self.cut.program.after):
            self.rows.backward(stage, upstream, wanted=wanted)

    def before_backward(self, upstream: Mapping[str, Tensor], wanted: set[str]) -> None:
        """Give the inputs the gradients of what the scan was given, and find those of the parameters."""
        for stage in self.cut.program.scan:
            if isinstance(stage, Dense):
                self.rows.weight_gradient(stage)
            elif isinstance(stage, Normalize):
                self.rows.scaling_gradient(stage)
            elif isinstance(stage, Begin):
                self.rows.bias_gradient(stage.terms, initial(stage.target))
        for stage in reversed(self.cut.program.before):
            self.rows.backward(stage, upstream, wanted=wanted)

    def flat(self, tensor: Tensor) -> Tensor:
        """Return (T, B, ...) as (rows, ...)."""
        return aligned(tensor.reshape(self.steps * self.batch, *tensor.shape[2:]))

    def flags(self, tensor: Tensor | None) -> Tensor | None:
        """Turn bool into what the kernels read."""
        return None if tensor is None else self.flat(tensor).view(torch.int8)

    def real_only(self, tensor: Tensor) -> Tensor:
        """Return (rows, width) with zeros at padding, whatever was there."""
        return tensor if self.real is None else torch.where(self.real, tensor, 0.0)

    def rows_of(self, gradient: Tensor) -> Tensor:
        """Return an upstream gradient (T, B, ...) as (rows, ...), zero at padding."""
        flat = self.flat(gradient)
        if self.real is None:
            return flat
        return torch.where(self.real if flat.dim() == 2 else self.real.squeeze(1), flat, 0.0)

    def result(self, tensor: Tensor) -> Tensor:
        """Return (T, B, width) of its own, with zeros at padding."""
        return self.real_only(tensor).contiguous().view(self.steps, self.batch, tensor.shape[1])

    def per_row(self, tensor: Tensor | None) -> Tensor:
        """Return (T, B) in the dtype of x, with zeros at padding."""
        if tensor is None:
            return self.given.x.new_zeros((self.steps, self.batch))
        return self.result(tensor.to(self.given.x.dtype).unsqueeze(1)).squeeze(2)


def on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def forward(call: Call, keep: Keep | None, want: Want) -> Outputs:
    """Run a batch; ``keep`` is the least of the buffers that a backward pass wants, None where there is none."""
    spec, batch, cut, rows, like = call.spec, call.given, call.cut, call.rows, call.given.x
    call.before()
    stored = cut.stored(keep, want)
    if cut.sample is not None and call.real is not None:  # a density needs one, at padding too
        rows.buffer(rows.value, cut.sample.std.buffer).fill_(1.0)
    state = [allocate(like, tuple(start.shape)) for start in batch.state]
    ancestors = like.new_empty((0, 0, 0), dtype=torch.int64)
    if batch.uniforms is not None:
        ancestors = allocate(like, tuple(batch.uniforms.shape), -1, torch.int64)
    call.forward_scan(stored, state, ancestors)
    call.after(want)

    def result(part: Slice, wanted: bool = True) -> Tensor:
        if not wanted:
            return like.new_empty((0, 0, part.width))
        buffer = rows.value[part.buffer]
        return call.result(buffer if buffer.shape[1] == part.width else rows.view(rows.value, part).clone())

    def half(part: Slice) -> Slice:
        return Slice(part.buffer, part.start, spec.latent_size)

    sample, divergence = cut.sample, cut.divergence
    names = "z", "mean", "std", "prior_mean", "prior_std"
    latent = {name: like.new_zeros((call.steps, call.batch, 0)) for name in names}
    if sample is not None and divergence is not None:
        mean = result(half(sample.source)) if rows.mean is None else call.result(rows.mean)
        latent = {"z": result(sample.z), "mean": mean, "std": result(sample.std)}
        latent["prior_mean"] = result(half(divergence.prior), want.prior)
        latent["prior_std"] = result(divergence.prior_std, want.prior)
    return Outputs(
        nll=call.per_row(rows.nll),
        kl=call.per_row(rows.kl),
        **latent,
        raw=result(cut.likelihood.source, want.raw),
        state=state,
        saved=[rows.value[name] for name in kept(cut.program, keep)],
        ancestors=ancestors,
    )


def backward(call: Call, upstream: Mapping[str, Tensor], remembered: Remembered, wanted: set[str]) -> Gradients:
    """Compute the gradients of a batch.

    Args:
        upstream: gradients by the names of results, the states' as ``state0`` and so on.
        wanted: those of the inputs x, eps and cond whose gradients somebody wants.
    """
    spec, batch, cut, rows, like = call.spec, call.given, call.cut, call.rows, call.given.x
    z, std, ancestors, saved, keep = remembered
    rows.value.update(zip(kept(cut.program, keep), saved, strict=True))
    if cut.sample is not None:
        rows.value[cut.sample.z.buffer] = call.flat(z)
        spread = call.flat(std)
        rows.value[cut.sample.std.buffer] = spread if call.real is None else torch.where(call.real, spread, 1.0)
    rows.reached = cut.reached({"state" if name.startswith("state") else name for name in upstream})
    per_row = {name: call.rows_of(d) for name, d in upstream.items() if not name.startswith("state")}
    call.after_backward(per_row, wanted, keep)

    on_z = cut.sample is not None and ("z" in per_row or cut.sample.z in cut.read_after)
    if cut.sample is not None and "z" in per_row and not call.adds_z:
        d_z = rows.view(rows.gradient, cut.sample.z)
        d_z.add_(per_row["z"]) if cut.sample.z in cut.read_after else d_z.copy_(per_row["z"])
    given = {part.buffer for part in cut.read_after} | ({cut.sample.z.buffer} if on_z and cut.sample else set())
    given |= {"eps"} if "eps" in wanted and cut.sample else set()
    d_final: list[Tensor | None] = []
    for i in range(len(batch.state)):
        of_last = upstream.get(f"state{i}")
        d_final.append(None if of_last is None else aligned(of_last))
    d_state = [allocate(like, tuple(start.shape)) for start in batch.state]
    names = tuple(dict.fromkeys((*cut.summed, *sorted(given))))
    call.backward_scan(names, d_final, d_state, ancestors, on_z=on_z, on_eps="eps" in wanted)

    call.before_backward(per_row, wanted)

    def of(name: str, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None or name not in wanted else rows.buffer(rows.gradient, name).view(tensor.shape)

    sequences = of("x", batch.x), of("eps", batch.eps), of("cond", batch.cond)
    return Gradients(*sequences, d_state, [rows.d_parameters[p.name] for p in spec.parameters()])
