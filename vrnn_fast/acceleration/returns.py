"""What a forward returns, found by running it: which quantity of the run each field is, and how it is reduced.

A layout fixes how a model computes, not what its copies return. Here the original has run once, and every tensor that
it gave is looked up among the quantities of a run with the same noise: features (T, B, .), losses and their reductions.
What is found is a guess, made on one input; the proof decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layouts import losses
from ..layouts.base import Outcome, Run
from .inferred import Constant, Field, Inferred, Items, Reduction, Steps, Total, Unknown, Vector
from .quantities import Vocabulary

_CLOSE = 1e-9
_ROUNDED = 2.0**-22  # nats by which a constant of about 1 may be off in float32,
_DIGITS = 2.0**-40  # and how exactly it is found, out of a sum


@dataclass(frozen=True)
class Probe(Outcome):
    """Returns the run itself."""

    uniform: bool = False

    def noise(self, out: Tensor, fix: frozenset[str]) -> None:
        if self.uniform:
            out.uniform_()
        else:
            out.normal_()

    def output(self, run: Run, fix: frozenset[str]) -> Run:
        return run


def infer(returned: Any, left: Mapping[str, Any], run: Run, uniform: bool) -> Inferred:
    """Describe what an original gave, in terms of our run of it.

    Raises:
        Unknown: a field is none of the quantities.
    """
    vocabulary = Vocabulary(len(run.heads), all(head.shape == run.x.shape for head in run.heads))
    search = _Search(vocabulary, run)
    return Inferred(
        vocabulary,
        search.node("output", returned),
        tuple((name, search.node(f"attribute {name}", value)) for name, value in left.items()),
        uniform,
    )


class _Search:
    def __init__(self, vocabulary: Vocabulary, run: Run) -> None:
        self.steps = run.x.shape[0]
        self.features = {name: quantity(run) for name, quantity in vocabulary.features().items()}
        self.losses = {name: quantity(run) for name, quantity in vocabulary.losses().items()}

    def node(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.field(name, value)
        if type(value) in (list, tuple):
            return self.per_step(value) or Items(
                type(value), tuple(self.node(f"{name}[{i}]", v) for i, v in enumerate(value))
            )
        if type(value) is dict:
            return Items(dict, tuple(self.node(f"{name}[{k!r}]", v) for k, v in value.items()), tuple(value))
        return Constant(value)

    def per_step(self, value: Any) -> Steps | None:
        shapes = {v.shape if isinstance(v, Tensor) else None for v in value}
        if len(value) != self.steps or len(shapes) != 1 or None in shapes:
            return None
        stacked = torch.stack(list(value))
        found = self.feature(stacked, swap=False) or next(self.reduced(stacked, "T"), None)
        found = found or self.rounded(stacked, "T")
        return None if found is None else Steps(type(value), found)

    def field(self, name: str, value: Tensor) -> Any:
        if value.shape == (1,):
            return Vector(self.field(name, value[0]))
        found = self.feature(value, swap=True) or next(self.reduced(value, ""), None) or self.total(value)
        found = found or self.rounded(value, "")
        if found is None:
            raise Unknown(name)
        return found

    def feature(self, value: Tensor, *, swap: bool) -> Field | None:
        for name, tensor in self.features.items():
            if _close(tensor, value):
                return Field(name)
            if swap and _close(tensor.transpose(0, 1), value):
                return Field(name, swap=True)
        return None

    def reduced(self, value: Tensor, steps: str) -> Iterator[Field]:
        """Yield losses that are ``value`` when reduced; with ``steps`` "T" those that keep time."""
        for name, reduction, loss in self.reductions(value, steps):
            if _close(reduction.of(loss), value):
                yield Field(name, reduction)

    def rounded(self, value: Tensor, steps: str) -> Field | None:
        """Find the loss that is ``value`` when reduced, but for a constant that somebody rounded to float32."""
        found = []
        for name, reduction, loss in self.reductions(value, steps):
            ours, counts = reduction.of(loss), reduction.of(torch.ones_like(loss))
            constant = _constant(name, ours, counts, value)
            if constant is not None:
                found.append(Field(name, reduction, constant=constant))
        return next(iter(found), None)

    def reductions(self, value: Tensor, steps: str) -> Iterator[tuple[str, Reduction, Tensor]]:
        """Yield every loss, with every reduction to the shape of ``value``."""
        for kept in ("T", "TB") if steps else ("", "TB", "BT", "B", "T"):
            if value.dim() == len(kept):
                for name, loss in self.losses.items():
                    for reduction in _reductions(kept):
                        yield name, reduction, loss

    def total(self, value: Tensor) -> Total | None:
        """Find the sum of a KL and a likelihood, if there is one of exact constants, or else of a rounded one."""
        rounded = []
        for kept in ("", "TB", "BT", "B", "T"):
            if value.dim() != len(kept):
                continue
            kls, nlls = [
                [(Field(n, r), r.of(loss), r.of(torch.ones_like(loss)))
                 for n, loss in self.losses.items() if n.startswith("kl") == is_kl for r in _reductions(kept)]
                for is_kl in (True, False)
            ]  # fmt: skip
            nlls = [(nll, b, counts) for nll, b, counts in nlls if _comparable(b, value)]
            for kl, a, _ in kls if nlls else ():
                left = (value - a) - torch.stack([b for _, b, _ in nlls])
                off = (left / torch.stack([counts for _, _, counts in nlls])).abs().reshape(len(nlls), -1).amax(1)
                for i in torch.nonzero(off <= _ROUNDED).flatten().tolist():
                    nll, b, counts = nlls[i]
                    if _close(a + b, value):
                        return Total((nll, kl))
                    constant = _constant(nll.quantity, a + b, counts, value)
                    if constant is not None:
                        rounded.append(Total((replace(nll, constant=constant), kl)))
        return next(iter(rounded), None)


def _reductions(kept: str) -> list[Reduction]:
    rest = [d for d in "TBF" if d not in kept]
    subsets = itertools.chain.from_iterable(itertools.combinations(rest, n) for n in range(len(rest) + 1))
    return [Reduction(kept, "".join(subset), sign) for subset in subsets for sign in (1, -1)]


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return _comparable(ours, theirs) and bool((ours - theirs).abs().max() <= _CLOSE * theirs.abs().max())


def _constant(loss: str, ours: Tensor, counts: Tensor, theirs: Tensor) -> float | None:
    """Find what each entry of a loss is off by if its constant is a number of float32; ``counts`` are entries per
    number.

    Any small difference of two numbers would do, so that constant must be one to all digits that float64 has.
    """
    if not _comparable(ours, theirs) or not loss.startswith("gaussian") or loss.endswith("without its constant"):
        return None
    off = ((theirs - ours) / counts).mean().item()
    if not abs(off) <= _ROUNDED:
        return None
    rounded = torch.tensor(losses.HALF_LOG_TWO_PI + off, dtype=torch.float32).item()
    off, found = rounded - losses.HALF_LOG_TWO_PI, off
    return off if abs(found - off) <= _DIGITS and _close(ours + off * counts, theirs) else None


def _comparable(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and ours.device == theirs.device and theirs.is_floating_point()
