"""Two backends on the same batches: first whether they agree, and only then how fast each of them is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from ..agreement import Errors
from ..data import Padded
from ..model import VRNN
from .threads import using

Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """Seconds for one forward and backward over all batches, the sum of each batch's median over the rounds.

    ``disagreement`` says which result differs and by how much; then nothing was timed and the rest is None.
    ``reference_threads`` is the number of threads, one or all, with which the reference was faster on the first
    batch: its small operations may lose more than they gain by a second one.
    """

    disagreement: str | None
    seconds: float | None = None
    reference_seconds: float | None = None
    reference_threads: int | None = None

    @property
    def speedup(self) -> float | None:
        """How many times faster than the reference."""
        return self.reference_seconds / self.seconds if self.reference_seconds and self.seconds else None


def compare(model: VRNN, reference: VRNN, batches: Sequence[Padded], rounds: int = 3) -> Comparison:
    """Run a training step's forward and backward on both models, in turn, with the same noise.

    The results, loss and gradient of every parameter over all batches, are first held against ``reference`` in
    float64, by the law of :mod:`vrnn_fast.agreement`.
    """
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(*batch.x.shape[:2], model.latent_size, generator=generator) for batch in batches]
    threads = torch.get_num_threads()
    _seconds(reference, batches[0], noise[0], 1)  # the very first call is slower
    reference_threads = min((1, threads), key=lambda n: _seconds(reference, batches[0], noise[0], n))
    with using(reference_threads):
        exact, theirs = (_results(m, batches, noise) for m in (copy.deepcopy(reference).double(), reference))
    disagreement = _disagreement(_results(model, batches, noise), theirs, exact)
    if disagreement:
        return Comparison(disagreement)
    ours_total = theirs_total = 0.0
    for batch, eps in zip(batches, noise, strict=True):
        runs = [
            (_seconds(model, batch, eps, threads), _seconds(reference, batch, eps, reference_threads))
            for _ in range(rounds)
        ]
        ours_total += median(run[0] for run in runs)
        theirs_total += median(run[1] for run in runs)
    return Comparison(None, ours_total, theirs_total, reference_threads)


def _seconds(model: VRNN, batch: Padded, eps: Tensor, threads: int) -> float:
    with using(threads):
        start = perf_counter()
        _backward(model, batch, eps)
        return perf_counter() - start


def _backward(model: VRNN, batch: Padded, eps: Tensor) -> Tensor:
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    loss: Tensor = model(batch.x.to(dtype), batch.lengths, eps=eps.to(dtype)).loss
    loss.backward()
    return loss.detach()


def _results(model: VRNN, batches: Sequence[Padded], noise: Sequence[Tensor]) -> Results:
    """Return each result of all batches side by side."""
    found: dict[str, list[Tensor]] = {}
    for batch, eps in zip(batches, noise, strict=True):
        found.setdefault("the loss", []).append(_backward(model, batch, eps))
        for name, p in model.named_parameters():
            if p.grad is not None:
                found.setdefault(f"the gradient of {name}", []).append(p.grad.clone())
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def _disagreement(ours: Results, theirs: Results, exact: Results) -> str | None:
    for name in exact:
        if name not in ours:
            return f"{name} is missing"
    errors = Errors(theirs["the loss"].dtype, roundings=4)  # there is but one draw
    errors.add(*({name: found[name] for name in exact} for found in (ours, theirs, exact)))
    return next(iter(errors.violations().values()), None)
