"""What a forward returns, found by running it: which quantity of the run each field is, and how it is reduced.

A layout fixes how a model computes, not what its copies return. Here the original has run once, and every tensor that
it gave is looked up among the quantities of a run with the same noise: features (T, B, .), losses and their reductions.
What is found is a guess, made on one input; the proof decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihoods import MeanStd
from . import losses
from .base import Fault, Objective, Run
from .losses import EPS

Quantity = Callable[[Run], Tensor]

_CLOSE = 1e-9


# --- quantities: (T, B, features) each


def _q(run: Run) -> MeanStd:
    return MeanStd(run.mean, run.std)


def _p(run: Run) -> MeanStd:
    return MeanStd(run.prior_mean, run.prior_std)


def _features(heads: int) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {
        "mean": lambda run: run.mean,
        "std": lambda run: run.std,
        "prior_mean": lambda run: run.prior_mean,
        "prior_std": lambda run: run.prior_std,
        "z": lambda run: run.z,
        "x": lambda run: run.x,
        "log_variance": lambda run: 2 * torch.log(run.std),
        "prior_log_variance": lambda run: 2 * torch.log(run.prior_std),
        "variance": lambda run: run.std.square(),
        "prior_variance": lambda run: run.prior_std.square(),
    }
    for i in range(heads):
        for name, transform in _TRANSFORMS.items():
            found[f"{name} of head {i}"] = lambda run, i=i, transform=transform: transform(run.heads[i])  # type: ignore[misc]
    return found


_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "the output": lambda raw: raw,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "exp half": lambda raw: torch.exp(raw / 2),
}

_KL: dict[str, Quantity] = {
    "kl": lambda run: losses.kl(_q(run), _p(run)),
    "kl with eps": lambda run: losses.kl(_q(run), _p(run), EPS),
    "kl reversed": lambda run: losses.kl(_p(run), _q(run)),
    "kl reversed with eps": lambda run: losses.kl(_p(run), _q(run), EPS),
    "kl without its -1": lambda run: losses.kl(_q(run), _p(run)) + 0.5,
}


def _bernoulli_with_eps(run: Run, floor: float) -> Tensor:
    return losses.bernoulli_with_eps(run.heads[0], torch.sigmoid(run.heads[0]), run.x, EPS, floor)


def _gaussian(run: Run, mean: str, std: str, eps: float, constant: float) -> Tensor:
    return losses.gaussian(_TRANSFORMS[mean](run.heads[0]), _TRANSFORMS[std](run.heads[1]), run.x, eps) - constant


def _nll(heads: int) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {
        "bernoulli": lambda run: losses.bernoulli(run.heads[0], run.x),
        "bernoulli with eps": partial(_bernoulli_with_eps, floor=EPS),
        "bernoulli with one eps": partial(_bernoulli_with_eps, floor=0.0),
        "squared error": lambda run: (run.x - run.heads[0]).square(),
        "squared error of sigmoid": lambda run: (run.x - torch.sigmoid(run.heads[0])).square(),
        "itakura-saito": lambda run: run.x / run.heads[0].exp() - (run.x.log() - run.heads[0]) - 1,
    }
    if heads > 1:
        for mean, std in itertools.product(("the output", "sigmoid"), ("softplus", "exp", "exp half")):
            for eps, constant in itertools.product((0.0, EPS), (0.0, 0.5 * math.log(2 * math.pi))):
                name = f"gaussian of {mean}, {std}{' with eps' * (eps > 0)}{' without its constant' * (constant > 0)}"
                found[name] = partial(_gaussian, mean=mean, std=std, eps=eps, constant=constant)
    return found


@dataclass(frozen=True)
class Vocabulary:
    """All quantities of a model with so many decoder heads, ``like_x`` if each is as wide as x."""

    heads: int
    like_x: bool

    def features(self) -> dict[str, Quantity]:
        return _features(self.heads)

    def losses(self) -> dict[str, Quantity]:
        return _KL | (_nll(self.heads) if self.like_x else {})

    def __getitem__(self, name: str) -> Quantity:
        return (self.features() | self.losses())[name]


# --- what is made of them


@dataclass(frozen=True)
class Reduction:
    """The sum over all dimensions of a loss but those kept, divided by the sizes of some: letters of ``"TBF"``."""

    kept: str
    mean_over: str
    sign: int = 1

    def of(self, loss: Tensor) -> Tensor:
        divisor = self.sign
        for dimension in self.mean_over:
            divisor = divisor * loss.shape["TBF".index(dimension)]
        summed = loss.sum([i for i, d in enumerate("TBF") if d not in self.kept])
        return (summed.transpose(0, 1) if self.kept == "BT" else summed) / divisor


@dataclass(frozen=True)
class Field:
    """A feature as it is, or (B, T, .) if ``swap``, or a reduced loss."""

    quantity: str
    reduction: Reduction | None = None
    swap: bool = False


@dataclass(frozen=True)
class Total:
    """The sum of two losses."""

    parts: tuple[Field, Field]


@dataclass(frozen=True)
class Steps:
    """A list or tuple with an entry for every time step."""

    kind: type
    field: Field


@dataclass(frozen=True)
class Items:
    """A tuple, list or dictionary, with keys in that case."""

    kind: type
    items: tuple[Any, ...]
    keys: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Vector:
    """A number as a vector of length one."""

    number: Any


@dataclass(frozen=True)
class Constant:
    """What is no tensor."""

    value: Any


@dataclass(frozen=True)
class Inferred(Objective):
    """What :func:`infer` found.

    Attributes:
        returned: what forward returns.
        left: what it leaves as attributes.
        uniform: the noise is uniform on [0, 1).
    """

    vocabulary: Vocabulary
    returned: Any
    left: tuple[tuple[str, Any], ...] = ()
    uniform: bool = False

    @property
    def faults(self) -> Mapping[str, Fault]:
        fields = list(_fields((self.returned, [node for _, node in self.left])))
        names = {field.quantity for field in fields}
        found = {}
        if self.uniform:
            found["noise"] = Fault("its noise is uniform on [0, 1) instead of standard normal")
        if any(name.startswith("kl reversed") for name in names):
            found["kl"] = Fault("its KL is that of the prior to the posterior")
        elif "kl without its -1" in names:
            found["kl"] = Fault("its KL drops the -1, and is too high by half a nat per latent and step")
        elif "kl with eps" in names:
            found["kl"] = Fault(f"its KL adds {EPS:.3g} to the standard deviations inside the logarithms only")
        if any(name.startswith("bernoulli with") for name in names):
            found["nan"] = Fault("its negative log-likelihood is NaN from logit 16 on", no_number=True)
        if any(name.endswith("eps") and not name.startswith("kl") for name in names):
            found["nll"] = Fault(f"its negative log-likelihood has {EPS:.3g} inside the logarithms")
        if any(field.reduction is not None and "F" in field.reduction.mean_over for field in fields):
            found["reduction"] = Fault("its losses are means over features, so KL and likelihood lose their balance")
        return found

    def noise(self, out: Tensor, mend: frozenset[str]) -> None:
        if self.uniform and "noise" not in mend:
            out.uniform_()
        else:
            out.normal_()

    def output(self, run: Run, mend: frozenset[str]) -> Any:
        return _make(self.returned, _Mended(self.vocabulary, run, mend))

    def attributes(self, run: Run) -> dict[str, Any]:
        return {name: _make(node, _Mended(self.vocabulary, run, frozenset())) for name, node in self.left}


class _Mended:
    """The quantities of a run, each computed once, with faults mended."""

    def __init__(self, vocabulary: Vocabulary, run: Run, mend: frozenset[str]) -> None:
        self.vocabulary, self.run, self.mend = vocabulary, run, mend
        self.known: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        if name.startswith("kl") and "kl" in self.mend:
            name = "kl"
        if "nll" in self.mend:
            for part in (" with one eps", " with eps"):
                name = name if name.startswith("kl") else name.replace(part, "")
        if name not in self.known:
            self.known[name] = self.vocabulary[name](self.run)
        return self.known[name]

    def field(self, field: Field) -> Tensor:
        found = self.tensor(field.quantity)
        if field.reduction is not None:
            how = field.reduction
            mean_over = how.mean_over.replace("F", "") if "reduction" in self.mend else how.mean_over
            return Reduction(how.kept, mean_over, how.sign).of(found)
        return found.transpose(0, 1) if field.swap else found


def _make(node: Any, quantities: _Mended) -> Any:
    if isinstance(node, Field):  # and no match: Dynamo of torch 2.10 does not trace it
        return quantities.field(node)
    if isinstance(node, Total):
        return quantities.field(node.parts[0]) + quantities.field(node.parts[1])
    if isinstance(node, Steps):
        return node.kind(quantities.field(node.field).unbind(0))
    if isinstance(node, Vector):
        return _make(node.number, quantities).unsqueeze(0)
    if isinstance(node, Constant):
        return node.value
    if not isinstance(node, Items):
        raise TypeError(f"not a part of a result: {node!r}")
    made = [_make(item, quantities) for item in node.items]
    return node.kind(made) if node.keys is None else dict(zip(node.keys, made, strict=True))


def _fields(node: Any) -> Iterator[Field]:
    if isinstance(node, Field):
        yield node
    for part in _parts(node):
        yield from _fields(part)


def _parts(node: Any) -> tuple[Any, ...]:
    match node:
        case Total():
            return node.parts
        case Steps():
            return (node.field,)
        case Vector():
            return (node.number,)
        case Items():
            return node.items
        case tuple() | list():
            return tuple(node)
        case _:
            return ()


# --- the search


@dataclass(frozen=True)
class Probe(Objective):
    """Returns the run itself."""

    uniform: bool = False

    def noise(self, out: Tensor, mend: frozenset[str]) -> None:
        if self.uniform:
            out.uniform_()
        else:
            out.normal_()

    def output(self, run: Run, mend: frozenset[str]) -> Run:
        return run


class Unknown(Exception):
    """A tensor that is none of the quantities; its name is the message."""


def infer(returned: Any, left: Mapping[str, Any], run: Run, uniform: bool) -> Inferred:
    """What an original gave, in terms of our run of it.

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
        return None if found is None else Steps(type(value), found)

    def field(self, name: str, value: Tensor) -> Any:
        if value.shape == (1,):
            return Vector(self.field(name, value[0]))
        found = self.feature(value, swap=True) or next(self.reduced(value, ""), None) or self.total(value)
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
        """Losses that are ``value`` when reduced; with ``steps`` "T" those that keep time."""
        for kept in ("T", "TB") if steps else ("", "TB", "BT", "B", "T"):
            if value.dim() == len(kept):
                for name, loss in self.losses.items():
                    for reduction in _reductions(kept):
                        if _close(reduction.of(loss), value):
                            yield Field(name, reduction)

    def total(self, value: Tensor) -> Total | None:
        for kept in ("", "TB", "BT", "B", "T"):
            if value.dim() != len(kept):
                continue
            kls, nlls = [
                [(Field(n, r), r.of(loss)) for n, loss in self.losses.items() if n.startswith("kl") == is_kl
                 for r in _reductions(kept)]
                for is_kl in (True, False)
            ]  # fmt: skip
            for (kl, a), (nll, b) in itertools.product(kls, nlls):
                if _close(a + b, value):
                    return Total((nll, kl))
        return None


def _reductions(kept: str) -> list[Reduction]:
    rest = [d for d in "TBF" if d not in kept]
    subsets = itertools.chain.from_iterable(itertools.combinations(rest, n) for n in range(len(rest) + 1))
    return [Reduction(kept, "".join(subset), sign) for subset in subsets for sign in (1, -1)]


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= _CLOSE * theirs.abs().max())
