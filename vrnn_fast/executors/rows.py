"""What is not sequential, on all T*B rows at once: the stages before and after the scan, and their gradients, in torch.

A row is t * B + b, padding included: its values are finite and its gradients zero. Products are torch's, so a GPU's own
library computes them; their precision is what ``torch.set_float32_matmul_precision`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cell.spec import CellSpec, Std
from ..cell.stages import (
    Activate,
    Add,
    Bias,
    Block,
    Dense,
    Divergence,
    Likelihood,
    Normalize,
    Recur,
    Sample,
    Slice,
    Stage,
    Term,
)
from ..likelihoods import standard_deviation
from ..likelihoods.base import softplus

ALIGNMENT = 16  # bytes
_HALF_LOG_TWO_PI = 0.91893853320467274178


def allocate(
    like: Tensor, shape: tuple[int, ...], fill: float | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Make memory for the kernels, of the device of ``like`` and its dtype or another: all of it comes from here."""
    return like.new_empty(shape, dtype=dtype) if fill is None else like.new_full(shape, fill, dtype=dtype)


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor as kernels read it: contiguous, and from a multiple of 16 bytes on, as all that torch allocates.

    Triton compiles a kernel anew for every set of arguments that begin elsewhere, such as slices of a batch.
    """
    tensor = tensor.contiguous()
    if tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return allocate(tensor, tuple(tensor.shape), dtype=tensor.dtype).copy_(tensor)


class Rows:
    """Values and gradients of a batch by buffer, (rows, width) each, and the stages that work on whole buffers.

    Args:
        parameters: by name.
        count: T * B.
        mask: (rows, X) bool, what was observed, or None for all.
        zeroed: buffers that start at zero, since the scan does not write their padding.
        reached: those that a gradient reaches, in reverse.
    """

    def __init__(
        self,
        spec: CellSpec,
        widths: Mapping[str, int],
        parameters: Mapping[str, Tensor],
        like: Tensor,
        count: int,
        mask: Tensor | None,
        zeroed: Collection[str],
    ) -> None:
        self.spec, self.widths, self.parameters, self.like, self.count = spec, widths, parameters, like, count
        self.mask, self.zeroed = mask, zeroed
        self.value: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}
        self.d_parameters: dict[str, Tensor] = {}
        self.reached: Collection[str] = ()
        self.mean: Tensor | None = None  # the posterior's, where a kernel writes it for itself
        self.nll: Tensor | None = None
        self.kl: Tensor | None = None
        self._begun: set[Slice] = set()

    def buffer(self, of: dict[str, Tensor], name: str) -> Tensor:
        """Return a buffer of ``value`` or ``gradient``."""
        if name not in of:
            of[name] = allocate(self.like, (self.count, self.widths[name]), 0.0 if name in self.zeroed else None)
        return of[name]

    def view(self, of: dict[str, Tensor], part: Slice) -> Tensor:
        return self.buffer(of, part.buffer)[:, part.start : part.start + part.width]

    # ---- forward

    def run(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            self.forward(stage)

    def restore(self, stages: Iterable[Stage]) -> None:
        """Compute every buffer that is not there yet: given the states, no stage depends on an earlier step."""
        there = set(self.value)
        for stage in stages:
            if isinstance(stage, Divergence):
                self.prior_std(stage)
            elif isinstance(stage, Recur):
                self._update(stage, there)
            elif isinstance(stage, Sample):
                for made in (stage.std, stage.z):
                    if made.buffer not in there:
                        raise LookupError(f"{made.buffer} must be kept")
            elif isinstance(stage, Bias | Dense | Normalize | Activate | Add) and stage.target.buffer not in there:
                self.forward(stage)

    def forward(self, stage: Stage) -> None:
        match stage:
            case Bias():
                self.view(self.value, stage.target).copy_(self.bias(stage.terms, stage.target.width))
            case Dense():
                target = self.view(self.value, stage.target)
                first = target if stage.bias is None else self.bias(stage.bias, stage.target.width)
                source, weight = self.view(self.value, stage.source), self.weight(stage)
                torch.addmm(first, source, weight.t(), out=target)
            case Activate():
                target = self.view(self.value, stage.target)
                if stage.target != stage.source:
                    target.copy_(self.view(self.value, stage.source))
                _ACTIVATE[stage.activation](target)
            case Normalize():
                source, (scale, shift) = self.view(self.value, stage.source), self._scaling(stage)
                normal = F.layer_norm(source, (source.shape[1],), scale, shift, stage.eps)
                self.view(self.value, stage.target).copy_(normal)
            case Add():
                self.view(self.value, stage.target).add_(self.view(self.value, stage.source))
            case Divergence():
                self._divergence(stage)
            case Likelihood():
                self.nll = self._nll(stage)
            case _:
                raise TypeError(f"{type(stage).__name__} belongs to the scan")

    def weight(self, stage: Dense) -> Tensor:
        """Stack the blocks: (target width, source width)."""
        blocks = [self._block(self.parameters, b, stage.source.width) for b in stage.blocks]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def bias(self, terms: tuple[Term, ...], width: int) -> Tensor:
        """Add up the terms: (target width)."""
        parts = [self.parameters[t.parameter][t.row : t.row + t.rows] for t in terms]
        if len(parts) == 1 and terms[0].rows == width:
            return parts[0]
        total = self.like.new_zeros(width)
        for t, part in zip(terms, parts, strict=True):
            total[t.at : t.at + t.rows] += part
        return total

    @staticmethod
    def _block(of: Mapping[str, Tensor], b: Block, width: int) -> Tensor:
        return of[b.parameter][b.row : b.row + b.rows, b.column : b.column + width]

    def _halves(self, of: dict[str, Tensor], part: Slice) -> tuple[Tensor, Tensor]:
        mean, raw = self.view(of, part).float().chunk(2, -1)
        return mean, raw

    def prior_std(self, stage: Divergence) -> Tensor:
        """Compute the prior's standard deviation into its buffer, and return it in full precision."""
        std = standard_deviation(stage.transform, self._halves(self.value, stage.prior)[1])
        self.buffer(self.value, stage.prior_std.buffer).copy_(std)
        return std

    def _divergence(self, stage: Divergence) -> None:
        p_std, p_mean = self.prior_std(stage), self._halves(self.value, stage.prior)[0]
        q_mean, q_std = self._posterior(stage)
        ratio = q_std / p_std
        if stage.z is None:
            squares = ratio.square() + ((q_mean - p_mean) / p_std).square() - 1
        else:
            z, eps = self.view(self.value, stage.z).float(), self.value["eps"].float()
            squares = ((z - p_mean) / p_std).square() - eps.square()
        self.kl = (0.5 * squares - ratio.log()).sum(-1)

    def _posterior(self, stage: Divergence) -> tuple[Tensor, Tensor]:
        """Return mean and std, computed as the prior's are, so that equal ones are equal: the scan's own std may differ
        in its last bit, and is rounded."""
        mean, raw = self._halves(self.value, stage.posterior)
        return mean, standard_deviation(self.spec.std, raw)

    def _nll(self, stage: Likelihood) -> Tensor | None:
        if stage.kind == "external":
            return None
        raw, x = self.view(self.value, stage.source).float(), self.value["x"].float()
        if stage.kind == "bernoulli":
            terms = -(x * F.logsigmoid(raw) + (1 - x) * F.logsigmoid(-raw))
        else:
            mean, raw_std = raw.chunk(2, -1)
            std = standard_deviation(stage.transform, raw_std)
            terms = 0.5 * ((x - mean) / std).square() + std.log() + _HALF_LOG_TWO_PI
        return self._observed(terms).sum(-1)

    def _observed(self, terms: Tensor) -> Tensor:
        return terms if self.mask is None else torch.where(self.mask, terms, 0.0)

    def _update(self, stage: Recur, there: set[str]) -> None:
        """Compute the gates' activations, and what a layer hands to the next one."""
        gates = self.view(self.value, stage.gates)
        if stage.cell != "rnn" and stage.gates.buffer not in there:
            parts = gates.chunk(gates.shape[1] // stage.h.width, -1)
            if stage.candidate is not None:
                r, u, n = parts
                torch.sigmoid_(r)
                torch.sigmoid_(u)
                n.addcmul_(r, self.view(self.value, stage.candidate)).tanh_()
            else:
                i, f, g, o = parts
                for part in (i, f, o):
                    torch.sigmoid_(part)
                g.tanh_()
        if stage.output is None or stage.output.buffer in there:
            return
        if stage.cell == "rnn":
            after = gates
        elif stage.c is None:
            _, u, n = gates.float().chunk(3, -1)
            after = n + u * (self.value[stage.h.buffer].float() - n)
        else:
            i, f, g, o = gates.float().chunk(4, -1)
            after = o * torch.tanh(f * self.value[stage.c.buffer].float() + i * g)
        self.view(self.value, stage.output).copy_(after)

    # ---- backward

    def backward(self, stage: Stage, upstream: Mapping[str, Tensor], *, wanted: set[str]) -> None:
        """Compute the gradients of a stage before or after the scan.

        Args:
            upstream: (rows,) or (rows, width) gradients by the names of results, where there are any.
            wanted: those of the inputs x and cond whose gradients somebody wants.
        """
        match stage:
            case Bias():
                self.bias_gradient(stage.terms, stage.target)
            case Dense():
                self.weight_gradient(stage)
                if stage.source.buffer in ("x", "cond") and stage.source.buffer not in wanted:
                    return
                d, target = self.view(self.gradient, stage.target), self.view(self.gradient, stage.source)
                if stage.source in self._begun:
                    target.addmm_(d, self.weight(stage))
                else:
                    torch.mm(d, self.weight(stage), out=target)
                    self._begun.add(stage.source)
            case Activate():
                d, at = self.view(self.gradient, stage.target), self.view(self.value, stage.source)
                if stage.activation != "identity":
                    self.view(self.gradient, stage.source).copy_(_SLOPE[stage.activation](d, at))
            case Normalize():
                self.view(self.gradient, stage.source).copy_(self.scaling_gradient(stage))
            case Divergence():
                self._divergence_backward(stage, upstream)
            case Likelihood():
                self._likelihood_backward(stage, upstream, "x" in wanted)
            case _:
                raise TypeError(f"{type(stage).__name__} belongs to the scan")

    def _add(self, part: Slice, d: Tensor) -> None:
        """Add one more share to a slice's gradient; products add to it from now on."""
        target = self.view(self.gradient, part)
        target.add_(d) if part in self._begun else target.copy_(d)
        self._begun.add(part)

    def weight_gradient(self, stage: Dense) -> None:
        """Compute one product over all rows for each block."""
        d, source = self.view(self.gradient, stage.target), self.view(self.value, stage.source)
        for b in stage.blocks:
            into = self._block(self._into(b.parameter), b, stage.source.width)
            if stage.target.buffer in self.reached:
                torch.mm(d[:, b.at : b.at + b.rows].t(), source, out=into)
            else:
                into.zero_()
        if stage.bias is not None:
            self.bias_gradient(stage.bias, stage.target)

    def bias_gradient(self, terms: tuple[Term, ...], target: Slice) -> None:
        if terms:
            sums = self.view(self.gradient, target).sum(0)
            if target.buffer not in self.reached:
                sums.zero_()
            for t in terms:
                self._into(t.parameter)[t.parameter][t.row : t.row + t.rows] = sums[t.at : t.at + t.rows]

    def _scaling(self, stage: Normalize) -> list[Tensor]:
        """Return scale and shift."""
        return [self.parameters[t.parameter][t.row : t.row + t.rows] for t in stage.terms]

    def scaling_gradient(self, stage: Normalize) -> Tensor:
        """Compute the gradients of scale and shift, and return that of the source."""
        d, source = self.view(self.gradient, stage.target), self.view(self.value, stage.source)
        columns, (scale, shift) = (source.shape[1],), self._scaling(stage)
        _, mean, inverse = torch.native_layer_norm(source, columns, scale, shift, stage.eps)
        given = d, source, columns, mean, inverse, scale, shift, [True, True, True]
        d_source: Tensor
        d_source, *shares = torch.ops.aten.native_layer_norm_backward(*given)
        for t, share in zip(stage.terms, shares, strict=True):
            reached = stage.target.buffer in self.reached
            self._into(t.parameter)[t.parameter][t.row : t.row + t.rows] = share if reached else 0.0
        return d_source

    def _into(self, parameter: str) -> dict[str, Tensor]:
        """Return the gradients of parameters; every element is in exactly one block or term."""
        if parameter not in self.d_parameters:
            self.d_parameters[parameter] = torch.empty_like(self.parameters[parameter])
        return self.d_parameters

    def _divergence_backward(self, stage: Divergence, upstream: Mapping[str, Tensor]) -> None:
        """Leave [d mean | d std] on the posterior, whose sample turns it into [d mean | d raw]."""
        q_mean, q_std = self._posterior(stage)
        p_mean, p_raw = self._halves(self.value, stage.prior)
        p_std = standard_deviation(stage.transform, p_raw)
        g = upstream["kl"].float().unsqueeze(-1) if "kl" in upstream else None
        at = q_mean if stage.z is None else self.view(self.value, stage.z).float()
        ratio, distance = q_std / p_std if stage.z is None else torch.zeros_like(q_std), (at - p_mean) / p_std
        d_q_mean = d_q_std = d_p_mean = d_p_std = torch.zeros_like(q_mean)  # nobody's gradient is no 0 * infinity
        if g is not None:
            d_q_mean, d_q_std = g * distance / p_std, g * (ratio / p_std - 1 / q_std)
            d_p_mean, d_p_std = -d_q_mean, g / p_std * (1 - ratio.square() - distance.square())
        if stage.z is not None:  # which moves the sample instead, and its noise
            self._add(stage.z, d_q_mean)
            past = self.buffer(self.gradient, "eps")
            past.zero_() if g is None else past.copy_(-g * self.value["eps"].float())
            d_q_mean = torch.zeros_like(d_q_mean)
        d_q_mean, d_q_std, d_p_mean, d_p_std = (
            d + upstream[name].float() if name in upstream else d
            for name, d in (("mean", d_q_mean), ("std", d_q_std), ("prior_mean", d_p_mean), ("prior_std", d_p_std))
        )
        self.view(self.gradient, stage.posterior).copy_(torch.cat((d_q_mean, d_q_std), -1))
        d_p_raw = _deviation_backward(stage.transform, p_raw, d_p_std)
        self.view(self.gradient, stage.prior).copy_(torch.cat((d_p_mean, d_p_raw), -1))

    def _likelihood_backward(self, stage: Likelihood, upstream: Mapping[str, Tensor], want_x: bool) -> None:
        raw, x = self.view(self.value, stage.source).float(), self.value["x"].float()
        d_raw = upstream["raw"].float() if "raw" in upstream else torch.zeros_like(raw)
        d_x = torch.zeros_like(x)
        if "nll" in upstream and stage.kind != "external":
            g = upstream["nll"].float().unsqueeze(-1)
            if stage.kind == "bernoulli":
                d_raw = d_raw + self._observed(g * ((1 - x) * torch.sigmoid(raw) - x * torch.sigmoid(-raw)))
                d_x = -self._observed(g * raw)
            else:
                mean, raw_std = raw.chunk(2, -1)
                std = standard_deviation(stage.transform, raw_std)
                distance = (x - mean) / std
                d_x = self._observed(g * distance / std)
                d_std = _deviation_backward(stage.transform, raw_std, g / std * (1 - distance.square()))
                d_raw = d_raw + torch.cat((-d_x, self._observed(d_std)), -1)
        self.view(self.gradient, stage.source).copy_(d_raw)
        if want_x:
            self._add(Slice("x", 0, x.shape[1]), d_x)


def _deviation_backward(std: Std, raw: Tensor, d: Tensor) -> Tensor:
    """Return d times the derivative of :func:`standard_deviation`; what a clamp holds is selected, for d may be
    infinite."""
    if std.plain:
        return d * torch.sigmoid(raw)
    low, high = std.clamp
    u = raw.clamp(low, high) + std.offset
    if std.kind == "softplus":
        free, slope = softplus(std.sharpness * u) / std.sharpness, torch.sigmoid(std.sharpness * u)
    else:
        scale = 0.5 if std.kind == "log_variance" else 1.0
        free = torch.exp(scale * u)
        slope = scale * free
    free_to_move = (free + std.floor >= std.min_std) & (raw >= low) & (raw <= high)
    return torch.where(free_to_move, d * slope, 0.0)


_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": lambda x: torch.nn.functional.leaky_relu_(x, 0.01),
    "tanh": torch.tanh_,
    "elu": torch.nn.functional.elu_,
    "identity": lambda x: x,
    "silu": lambda x: torch.nn.functional.silu(x, inplace=True),
    "gelu": lambda x: x.copy_(torch.nn.functional.gelu(x)),
}
_SLOPE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda d, y: torch.ops.aten.threshold_backward(d, y, 0),
    "leaky_relu": lambda d, y: torch.ops.aten.leaky_relu_backward(d, y, 0.01, True),
    "tanh": torch.ops.aten.tanh_backward,
    "elu": lambda d, y: torch.ops.aten.elu_backward(d, 1, 1, 1, True, y),
    "silu": torch.ops.aten.silu_backward,  # from what it was computed from, as the next
    "gelu": torch.ops.aten.gelu_backward,
}
