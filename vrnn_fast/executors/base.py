"""What every executor takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..cell.spec import CellSpec


class Batch(NamedTuple):
    """A checked batch of sequences.

    Attributes:
        x: (T, B, X) of any strides. Where a cell runs on its own, the noise of what is drawn.
        eps: (T, B, Z) standard normal noise of z, of any strides.
        state: (B, H) tensors, h of every layer, then for an LSTM c of every layer.
        lengths: (B,) int64 on the device of x, or None where all T steps of every row are real.
        cond: (T, B, C) where the cell has a ``cond_size``, else None.
        resets: (T, B) bool, true where the state is zeroed, or the spec's initial one, before the step, or None.
        mask: (T, B, X) bool, true where x was observed, or None.
        uniforms: (T, B / particles, particles) in [0, 1], what a particle filter resamples with. The particles of a
            sequence are rows side by side, as long as each other.
        threshold: the filter resamples a sequence where the effective number of its particles is below this share of
            them, but never after its last step: particle i takes over the state of the first one whose cumulative
            weight is above its uniform number.
    """

    x: Tensor
    eps: Tensor
    state: tuple[Tensor, ...]
    lengths: Tensor | None = None
    cond: Tensor | None = None
    resets: Tensor | None = None
    mask: Tensor | None = None
    uniforms: Tensor | None = None
    threshold: float = 0.5

    @property
    def sequences(self) -> tuple[Tensor | None, ...]:
        """x, eps, cond, lengths, resets, mask and uniforms: the order of the operators."""
        return self.x, self.eps, self.cond, self.lengths, self.resets, self.mask, self.uniforms

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """What may want a gradient: x, eps, cond and the state."""
        return self.x, self.eps, self.cond, *self.state

    def real(self) -> Tensor | None:
        """Return (T, B) bool, true where t < lengths[b]; None without lengths."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.x.shape[0], device=self.x.device)
        return steps.unsqueeze(1) < self.lengths.to(self.x.device)

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the same numbers, rounded or widened to ``dtype``."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        return self._replace(
            x=self.x.to(dtype),
            eps=self.eps.to(dtype),
            state=tuple(s.to(dtype) for s in self.state),
            cond=of(self.cond),
            uniforms=of(self.uniforms),
        )

    def repeated(self, times: int) -> Batch:
        """Repeat every row so many times, side by side: rows b * times to (b + 1) * times - 1 are row b. Each has noise
        of its own, eps being (T, B, times, Z) before.

        Without a copy where strides can say it, for one row or once.
        """

        def rows(tensor: Tensor, dim: int) -> Tensor:
            sizes = [-1] * tensor.dim()
            return tensor.unsqueeze(dim + 1).expand(*sizes[: dim + 1], times, *sizes[dim + 1 :]).flatten(dim, dim + 1)

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else rows(tensor, 1)

        return self._replace(
            x=rows(self.x, 1),
            eps=self.eps.flatten(1, 2),
            state=tuple(rows(s, 0) for s in self.state),
            lengths=None
            if self.lengths is None
            else self.lengths.repeat_interleave(times),  # contiguous for the kernels
            cond=of(self.cond),
            resets=of(self.resets),
            mask=of(self.mask),
        )

    def step(self, t: int, state: tuple[Tensor, ...]) -> Batch:
        """Step t alone, from this state, without a filter: a length is then 0 or 1."""

        def at(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[t : t + 1]

        return Batch(
            self.x[t : t + 1],
            self.eps[t : t + 1],
            state,
            None if self.lengths is None else (self.lengths > t).long(),
            at(self.cond),
            at(self.resets),
            at(self.mask),
        )


class Want(NamedTuple):
    """What a run is asked for beside nll, kl, the posterior and the state.

    Attributes:
        prior: its mean and standard deviation.
        raw: the decoder's raw output.
        recompute: to keep less from forward to backward and compute it again. About memory, never about numbers.
    """

    prior: bool = False
    raw: bool = False
    recompute: bool = False


class SequenceResult(NamedTuple):
    """One run over a batch of sequences. Everything is zero at padding, steps t >= lengths[b].

    Attributes:
        nll: (T, B) negative log-likelihood of x_t in nats; zeros where the likelihood is external.
        kl: (T, B) KL(posterior || prior) in nats, or what the spec's measure has in its place.
        z: (T, B, Z) the latent sample.
        mean: (T, B, Z) the posterior's mean.
        std: (T, B, Z) the posterior's standard deviation.
        prior_mean: (T, B, Z), or None where it was not asked for.
        prior_std: (T, B, Z), or None where it was not asked for.
        raw: (T, B, output_size) the decoder's heads side by side before any transform, or None likewise.
        state: (B, H) tensors, h of every layer, then for an LSTM c of every layer: each row's state after its own last
            step.
        ancestors: (T, B / particles, particles) int64 of a particle filter: whose state each particle took over after
            the step, -1 where its sequence did not resample.
    """

    nll: Tensor
    kl: Tensor
    z: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor | None
    prior_std: Tensor | None
    raw: Tensor | None
    state: tuple[Tensor, ...]
    ancestors: Tensor | None = None

    def to(self, dtype: torch.dtype) -> SequenceResult:
        """Return the same results, rounded or widened to ``dtype``."""
        *per_step, state, ancestors = self
        tensors = (None if t is None else t.to(dtype) for t in per_step)
        return SequenceResult._make((*tensors, tuple(s.to(dtype) for s in state), ancestors))


PER_STEP = SequenceResult._fields[: SequenceResult._fields.index("state")]  # (T, B) or (T, B, .) each


def asked_for(output: Any, batch: Batch, want: Want) -> SequenceResult:
    """Return the result of a run whose operator gave ``output``, by the same names: all that was wanted."""
    return SequenceResult(
        output.nll,
        output.kl,
        output.z,
        output.mean,
        output.std,
        output.prior_mean if want.prior else None,
        output.prior_std if want.prior else None,
        output.raw if want.raw else None,
        tuple(output.state),
        None if batch.uniforms is None else output.ancestors,
    )


class StepResult(NamedTuple):
    """One time step.

    Attributes:
        nll: (B,) negative log-likelihood of x_t in nats; zeros where the likelihood is external.
        kl: (B,) KL(posterior || prior) in nats.
        raw: (B, output_size) the decoder's heads side by side before any transform, or None where not asked for.
        predicted: (B, output_size) the same at the prior's mean of z_t, which has seen nothing of x_t.
        state: (1, B, H) tensors, h for a GRU and (h, c) for an LSTM.
    """

    nll: Tensor
    kl: Tensor
    raw: Tensor | None
    predicted: Tensor
    state: Sequence[Tensor]


class Executor(Protocol):
    """What a module of this package offers to be one. Its sentences start in lower case, without a full stop.

    Examples:
        >>> from vrnn_fast.executors import Batch, Want, reference
        >>> parameters = [model.get_parameter(name) for name, _ in model.spec.parameters()]
        >>> batch = Batch(x, torch.randn(5, 4, 2), (torch.zeros(4, 16),))
        >>> reference.run(model.spec, parameters, batch, Want()).kl.shape
        torch.Size([5, 4])
    """

    @property
    def name(self) -> str:
        """How the user asks for it."""

    @property
    def verified(self) -> str:
        """What it has been verified on, in words."""

    @property
    def device(self) -> str:
        """The type of the device whose tensors it is made for; "any" for all."""

    @property
    def trusted(self) -> bool:
        """Whether ``auto`` takes it as it is, and not after a trial on the device alone."""

    def unavailable(self) -> str | None:
        """Return None if this machine can run it, else the reason why not. Asked once, at import."""

    def refuses(self, spec: CellSpec, x: Tensor, particles: int = 1) -> str | None:
        """Return None, or the reason why this call cannot run here, with so many particles of each sequence where the
        cell is a filter. Traced: plain comparisons only."""

    def launches(self, spec: CellSpec) -> str:
        """Tell how many launches a forward and a backward take, in words."""

    def source(self, spec: CellSpec, x: Tensor) -> str:
        """Return the kernels that it generates to run x, or in words that there are none. It may assume that it can run
        x."""

    def run(
        self,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        want: Want,
    ) -> SequenceResult:
        """Run a batch of sequences, parameters in the order of ``spec.parameters()``. The batch has a mask for a fused
        likelihood alone, and uniforms where the spec's measure is a particle filter."""

    def step(
        self,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        want: Want,
    ) -> StepResult:
        """Run one time step, of a batch without a T: x (B, X), eps (B, Z), cond (B, C) of any strides, and the state as
        (num_layers, B, H) tensors."""

    def generate(
        self,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        *,
        mean: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Let a cell with a Bernoulli or Gaussian likelihood run on its own, without gradients: z_t is the prior's mean
        + std * eps_t; x_t, from the batch's noise in the place of x, is logit > noise_t (logistic) or mean + std *
        noise_t (normal), or its ``mean``, and goes back through phi_x. The noise may be wider than eps of 16 bits.
        Returns x (T, B, X) and the state after it."""


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Turn autocast off: every executor computes in the parameters' dtype."""
    if device.type == "meta":
        return nullcontext()
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
