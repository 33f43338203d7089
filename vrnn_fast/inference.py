"""The posterior along sequences that were seen: one launch, and what a likelihood outside of it adds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from torch import Tensor

from . import bounds, executors
from .call import ModelCall
from .cell.spec import CellSpec
from .executors.base import Batch, SequenceResult, Want, full_precision
from .likelihoods import MeanStd
from .outputs import VRNNOutput, VRNNStep, each
from .padding import at_real, with_frames
from .state import paired, stacked

OUTPUTS = ("prior", "prediction")  # what a call may ask for


def run(
    call: ModelCall,
    spec: CellSpec,
    executor: executors.Executor,
    batch: Batch,
    real: Tensor | None,
    outputs: Collection[str] = (),
) -> tuple[SequenceResult, Tensor]:
    """Run one launch, and compute -log p(x_t | z_<=t, x_<t), (T, B), whoever computes it.

    ``spec`` is that of the call, or the same with another measure; ``real`` are the batch's real steps.
    """
    want = Want("prior" in outputs, call.external or "prediction" in outputs, call.recompute)
    with full_precision(batch.x.device):
        result = executor.run(spec, call.parameters, batch._replace(mask=None) if call.external else batch, want)
    if not call.external:
        return result, result.nll
    x = with_frames(batch.x, real, batch.lengths)
    return result, at_real(real, -_log_prob(call, cast(Tensor, result.raw), x, real, batch.mask))


def infer(call: ModelCall, batch: Batch, outputs: Collection[str], weights: bounds.Weights) -> VRNNOutput:
    """Infer z along a batch of sequences and measure the bound: what :meth:`VRNN.forward` returns."""
    executor, real = executors.choose(call.backend, call.spec, batch.x), batch.real()
    result, nll = run(call, call.spec, executor, batch, real, outputs)
    found = None
    if "prediction" in outputs:
        found = each(lambda p: call.turned(at_real(real, p)), prediction(call, cast(Tensor, result.raw)))
    prior = None
    if result.prior_mean is not None and result.prior_std is not None:
        prior = MeanStd(call.turned(result.prior_mean), call.turned(result.prior_std))
    return VRNNOutput(
        loss=bounds.loss(nll, result.kl, real, batch.lengths, weights),
        nll=call.turned(nll),
        kl=call.turned(result.kl),
        elbo=bounds.evidence(nll, result.kl),
        latent=call.turned(result.z),
        posterior=MeanStd(call.turned(result.mean), call.turned(result.std)),
        state=paired(stacked(result.state, call.spec.state_parts)),
        prior=prior,
        prediction=found,
    )


def step(call: ModelCall, frame: Batch) -> VRNNStep:
    """Predict one frame, then take it in: what :meth:`VRNN.step` returns."""
    executor = executors.choose(call.backend, call.spec, frame.x)
    want = Want(raw=call.external, recompute=call.recompute)
    result = executor.step(call.spec, call.parameters, frame, want)
    nll = -_log_prob(call, cast(Tensor, result.raw), frame.x) if call.external else result.nll
    return VRNNStep(nll, result.kl, prediction(call, result.predicted), paired(result.state))


def prediction(call: ModelCall, raw: Tensor) -> Any:
    """Return what the decoder's raw output predicts."""
    if not call.external:  # elementwise, and no affair of autocast's
        return call.likelihood.prediction(raw)
    with full_precision(raw.device):
        return call.likelihood.prediction(raw)


def _log_prob(
    call: ModelCall, raw: Tensor, x: Tensor, real: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Compute the likelihood outside the launch, of what was observed."""
    with full_precision(raw.device):
        if mask is None:
            return call.likelihood.log_prob(raw, x)
        return call.likelihood.marginal_log_prob(raw, x, mask if real is None else mask & real.unsqueeze(-1))
