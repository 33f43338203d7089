"""What a forward returns, found by running it: which quantity of the run each field is, and how it is reduced.

A layout fixes how a model computes, not what its copies return. Here the original has run once, and every tensor that
it gave is looked up among the quantities of a run with the same noise: features (T, B, .), losses and their reductions.
What is found is a guess, made on one input; the proof decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from ..layouts import losses
from ..layouts.base import Deviation, Outcome, Run
from ..layouts.losses import EPS
from ..layouts.words import in_words
from ..likelihoods import MeanStd

Quantity = Callable[[Run], Tensor]

_CLOSE = 1e-9
_BERNOULLI, _OF_THETA = "bernoulli", "bernoulli of log(1 - theta)"
_ROUNDED = 2.0**-22  # nats by which a constant of about 1 may be off in float32,
_DIGITS = 2.0**-40  # and how exactly it is found, out of a sum


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


def _bernoulli_with_eps(run: Run, eps: float, floor: float) -> Tensor:
    return losses.bernoulli_with_eps(run.heads[0], torch.sigmoid(run.heads[0]), run.x, eps, floor)


def _gaussian(run: Run, mean: str, std: str, eps: float, constant: float) -> Tensor:
    return losses.gaussian(_TRANSFORMS[mean](run.heads[0]), _TRANSFORMS[std](run.heads[1]), run.x, eps) - constant


def _nll(heads: int) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {
        "bernoulli": lambda run: losses.bernoulli(run.heads[0], run.x),
        "bernoulli with eps": partial(_bernoulli_with_eps, eps=EPS, floor=EPS),
        "bernoulli with one eps": partial(_bernoulli_with_eps, eps=EPS, floor=0.0),
        "squared error": lambda run: (run.x - run.heads[0]).square(),
        "squared error of sigmoid": lambda run: (run.x - torch.sigmoid(run.heads[0])).square(),
        "itakura-saito": lambda run: run.x / run.heads[0].exp() - (run.x.log() - run.heads[0]) - 1,
    }
    if heads > 1:
        for mean, std in itertools.product(("the output", "sigmoid"), ("softplus", "exp", "exp half")):
            for eps, constant in itertools.product((0.0, EPS), (0.0, losses.HALF_LOG_TWO_PI)):
                name = f"gaussian of {mean}, {std}{' with eps' * (eps > 0)}{' without its constant' * (constant > 0)}"
                found[name] = partial(_gaussian, mean=mean, std=std, eps=eps, constant=constant)
    return found


_THETA = {f"bernoulli of theta within {bound:g}": bound for bound in (1e-5, 1e-6, 1e-7, EPS, 1e-8)}


def _within(run: Run, bound: float) -> Tensor:
    theta = torch.sigmoid(run.heads[0]).clamp(bound, 1 - bound)
    return -(run.x * torch.log(theta) + (1 - run.x) * torch.log(1 - theta))


_SATURATED: dict[str, Quantity] = {
    _BERNOULLI: lambda run: losses.bernoulli(run.heads[0], run.x),
    _OF_THETA: partial(_bernoulli_with_eps, eps=0.0, floor=0.0),
    "bernoulli up to 100": lambda run: F.binary_cross_entropy(torch.sigmoid(run.heads[0]), run.x, reduction="none"),
    **{name: partial(_within, bound=bound) for name, bound in _THETA.items()},
}
"""Which the same logits give, unless they are so large that theta is 0 or 1."""


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
        return (self.features() | self.losses() | _SATURATED)[name]


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
    """A feature as it is, or (B, T, .) if ``swap``, or a reduced loss with a constant added to each of its entries."""

    quantity: str
    reduction: Reduction | None = None
    swap: bool = False
    constant: float = 0.0


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
class Inferred(Outcome):
    """What :func:`infer` found.

    Attributes:
        returned: what forward returns.
        left: what it leaves as attributes.
        uniform: the noise is uniform on [0, 1).
        no_number: what is NaN or infinite in the original where the decoder saturates, and a number here.
    """

    vocabulary: Vocabulary
    returned: Any
    left: tuple[tuple[str, Any], ...] = ()
    uniform: bool = False
    no_number: tuple[str, ...] = ()

    @property
    def quantities(self) -> Mapping[str, str]:
        nodes = {"output": self.returned, **{f"attribute {name}": node for name, node in self.left}}
        return {name: words for path, node in nodes.items() for name, words in _quantities(path, node)}

    @property
    def fields(self) -> list[Field]:
        """All fields, wherever they stand."""
        return list(_fields((self.returned, [node for _, node in self.left])))

    @property
    def deviations(self) -> Mapping[str, Deviation]:
        fields = self.fields
        names = {field.quantity for field in fields}
        found = {}
        if self.uniform:
            found["noise"] = Deviation("its noise is uniform on [0, 1) instead of standard normal")
        if any(name.startswith("kl reversed") for name in names):
            found["kl"] = Deviation("its KL is that of the prior to the posterior")
        elif "kl without its -1" in names:
            found["kl"] = Deviation("its KL drops the -1, and is too high by half a nat per latent and step")
        elif "kl with eps" in names:
            found["kl"] = Deviation(f"its KL adds {EPS:.3g} to the standard deviations inside the logarithms only")
        if any(name.startswith("bernoulli with") for name in names):
            found["nan"] = Deviation("its negative log-likelihood is NaN from logit 16 on", no_number=True)
        elif self.no_number:
            where = (
                "from logit 17 on" if _OF_THETA in names else "where the decoder's output is beyond what exp can hold"
            )
            words = [self.quantities.get(name, name) for name in self.no_number]
            found["nan"] = Deviation(f"{', '.join(dict.fromkeys(words))}: NaN or infinite {where}", no_number=True)
        if "bernoulli up to 100" in names:
            found["bound"] = Deviation(
                "its negative log-likelihood is at most 100 per feature, without a gradient there"
            )
        elif any(name in _THETA for name in names):
            bound = next(_THETA[name] for name in names if name in _THETA)
            found["bound"] = Deviation(f"its likelihood knows no theta closer to 0 or 1 than {bound:.3g}")
        constants = {field.constant for field in fields if field.constant}
        if constants:
            nats = max(constants, key=abs)
            found["constant"] = Deviation(
                f"its negative log-likelihood is off by {nats:.2g} nats per feature: a constant is rounded to float32"
            )
        if any(name.endswith("eps") and not name.startswith("kl") for name in names):
            found["nll"] = Deviation(f"its negative log-likelihood has {EPS:.3g} inside the logarithms")
        if any(field.reduction is not None and "F" in field.reduction.mean_over for field in fields):
            found["reduction"] = Deviation(
                "its losses are means over features, so KL and likelihood lose their balance"
            )
        return found

    def noise(self, out: Tensor, fix: frozenset[str]) -> None:
        if self.uniform and "noise" not in fix:
            out.uniform_()
        else:
            out.normal_()

    def output(self, run: Run, fix: frozenset[str]) -> Any:
        return _make(self.returned, _Mended(self.vocabulary, run, fix))

    def attributes(self, run: Run) -> dict[str, Any]:
        return {name: _make(node, _Mended(self.vocabulary, run, frozenset())) for name, node in self.left}

    def settled(self, returned: Any, left: Mapping[str, Any], run: Run) -> Inferred:
        """This one with the losses that an original has whose decoder saturates, where it gave this."""
        theirs = _entries(returned, left)
        choices = _SATURATED if any(f.quantity == _BERNOULLI for f in self.fields) else (_BERNOULLI,)
        found = []
        for quantity in choices:
            this = replace(
                self,
                returned=_replaced(self.returned, quantity),
                left=tuple((name, _replaced(node, quantity)) for name, node in self.left),
            )
            ours = _entries(this.output(run, frozenset()), this.attributes(run))
            differs = [name for name, value in theirs.items() if not _agree(ours[name], value)]
            fixed = tuple(name for name, v in theirs.items() if (~v.isfinite() & ours[name].isfinite()).any())
            found.append((differs, bool(fixed) and quantity != _OF_THETA, replace(this, no_number=fixed)))
        differs, _, best = min(found, key=lambda one: (len(one[0]), one[1]))
        if differs:
            raise Unknown(differs[0], "is, where the decoder saturates, another number than any quantity of a run")
        return best


def _entries(returned: Any, left: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors that a forward gave, by name."""
    parts = {"output": returned, **{f"attribute {name}": value for name, value in left.items()}}
    return {
        f"{part}{pytree.keystr(path)}": leaf
        for part, value in parts.items()
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
        if isinstance(leaf, Tensor)
    }


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same where the second one is finite, but for the rounding of what saturates."""
    where = theirs.isfinite()
    ours, theirs = ours[where], theirs[where]
    return theirs.numel() == 0 or bool((ours - theirs).abs().max() <= 1e-6 * theirs.abs().max())


class _Mended:
    """The quantities of a run, each computed once, with deviations fixed."""

    def __init__(self, vocabulary: Vocabulary, run: Run, fix: frozenset[str]) -> None:
        self.vocabulary, self.run, self.fix = vocabulary, run, fix
        self.known: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        if name.startswith("kl") and "kl" in self.fix:
            name = "kl"
        if "bound" in self.fix and name.startswith("bernoulli"):
            name = "bernoulli"
        if "nll" in self.fix:
            for part in (" with one eps", " with eps"):
                name = name if name.startswith("kl") else name.replace(part, "")
        if name not in self.known:
            self.known[name] = self.vocabulary[name](self.run)
        return self.known[name]

    def field(self, field: Field) -> Tensor:
        found = self.tensor(field.quantity)
        if field.constant and "constant" not in self.fix:
            found = found + field.constant
        if field.reduction is not None:
            how = field.reduction
            mean_over = how.mean_over.replace("F", "") if "reduction" in self.fix else how.mean_over
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


def _replaced(node: Any, quantity: str) -> Any:
    """The same with this quantity instead of the Bernoulli likelihood of exact logits."""
    match node:
        case Field():
            return replace(node, quantity=quantity) if node.quantity == _BERNOULLI else node
        case Total():
            return Total((_replaced(node.parts[0], quantity), _replaced(node.parts[1], quantity)))
        case Steps():
            return replace(node, field=_replaced(node.field, quantity))
        case Vector():
            return Vector(_replaced(node.number, quantity))
        case Items():
            return replace(node, items=tuple(_replaced(item, quantity) for item in node.items))
        case _:
            return node


def _quantities(path: str, node: Any) -> Iterator[tuple[str, str]]:
    """What is at ``path`` and below, in words; a list of steps stands for its entries."""
    match node:
        case Field():
            yield path, _words(node)
        case Total():
            yield path, "the sum of KL and negative log-likelihood"
        case Steps():
            yield path, _words(node.field)
        case Vector():
            yield from _quantities(path, node.number)
        case Items():
            keys = range(len(node.items)) if node.keys is None else node.keys
            for key, item in zip(keys, node.items, strict=True):
                yield from _quantities(f"{path}[{in_words(key)}]", item)


def _words(field: Field) -> str:
    if field.reduction is None:
        return f"taken as {field.quantity}"
    return f"the {'KL' if field.quantity.startswith('kl') else 'negative log-likelihood'}, taken as {field.quantity}"


# --- the search


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


class Unknown(Exception):
    """A tensor that is none of the quantities, by its name, and what it is."""

    def __init__(self, name: str, words: str = "is none of the quantities of a run") -> None:
        super().__init__(f"{name} {words}")
        self.name = name
        self.words = words


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
        """Losses that are ``value`` when reduced; with ``steps`` "T" those that keep time."""
        for name, reduction, loss in self.reductions(value, steps):
            if _close(reduction.of(loss), value):
                yield Field(name, reduction)

    def rounded(self, value: Tensor, steps: str) -> Field | None:
        """The loss that is ``value`` when reduced, but for a constant that somebody rounded to float32."""
        found = []
        for name, reduction, loss in self.reductions(value, steps):
            ours, counts = reduction.of(loss), reduction.of(torch.ones_like(loss))
            constant = _constant(name, ours, counts, value)
            if constant is not None:
                found.append(Field(name, reduction, constant=constant))
        return next(iter(found), None)

    def reductions(self, value: Tensor, steps: str) -> Iterator[tuple[str, Reduction, Tensor]]:
        """Every loss, with every reduction to the shape of ``value``."""
        for kept in ("T", "TB") if steps else ("", "TB", "BT", "B", "T"):
            if value.dim() == len(kept):
                for name, loss in self.losses.items():
                    for reduction in _reductions(kept):
                        yield name, reduction, loss

    def total(self, value: Tensor) -> Total | None:
        """The sum of a KL and a likelihood, if there is one of exact constants, or else of a rounded one."""
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
    """What each entry of a loss is off by if its constant is a number of float32; ``counts`` are entries per number.

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
