"""What a forward returns, once it is known: fields made of quantities, and how each is reduced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from ..layouts.base import Deviation, Outcome, Run
from ..layouts.losses import EPS
from ..layouts.words import in_words
from .quantities import BERNOULLI, OF_THETA, SATURATED, THETA, Vocabulary


class Unknown(Exception):
    """Raised for a tensor that is none of the quantities, with its name and what is known of it."""

    def __init__(self, name: str, words: str = "is none of the quantities of a run") -> None:
        super().__init__(f"{name} {words}")
        self.name = name
        self.words = words


@dataclass(frozen=True)
class Reduction:
    """A loss summed over all dimensions but ``kept``, divided by the sizes of ``mean_over``; letters of ``"TBF"``."""

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
        """All fields, at any depth."""
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
                "from logit 17 on" if OF_THETA in names else "where the decoder's output is beyond what exp can hold"
            )
            words = [self.quantities.get(name, name) for name in self.no_number]
            found["nan"] = Deviation(f"{', '.join(dict.fromkeys(words))}: NaN or infinite {where}", no_number=True)
        if "bernoulli up to 100" in names:
            found["bound"] = Deviation(
                "its negative log-likelihood is at most 100 per feature, without a gradient there"
            )
        elif any(name in THETA for name in names):
            bound = next(THETA[name] for name in names if name in THETA)
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
        return _make(self.returned, _Fixed(self.vocabulary, run, fix))

    def attributes(self, run: Run) -> dict[str, Any]:
        return {name: _make(node, _Fixed(self.vocabulary, run, frozenset())) for name, node in self.left}

    @property
    def depends_on_saturation(self) -> bool:
        """Whether a loss has variants that differ only where the decoder saturates."""
        return any(f.quantity == BERNOULLI for f in self.fields)

    def settled(self, returned: Any, left: Mapping[str, Any], run: Run) -> Inferred:
        """Return the same with the variant of each loss that gives what the original gave where its decoder saturates.

        Args:
            returned: what the original returned then.
            left: the attributes that it left.
            run: our run on the same input."""
        theirs = _entries(returned, left)
        choices = SATURATED if self.depends_on_saturation else (BERNOULLI,)
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
            found.append((differs, bool(fixed) and quantity != OF_THETA, replace(this, no_number=fixed)))
        differs, _, best = min(found, key=lambda one: (len(one[0]), one[1]))
        if differs:
            raise Unknown(differs[0], "is, where the decoder saturates, another number than any quantity of a run")
        return best


def _entries(returned: Any, left: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return all tensors that a forward gave, by name."""
    parts = {"output": returned, **{f"attribute {name}": value for name, value in left.items()}}
    return {
        f"{part}{pytree.keystr(path)}": leaf
        for part, value in parts.items()
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
        if isinstance(leaf, Tensor)
    }


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether two tensors are the same where the second one is finite, but for the rounding of what saturates."""
    where = theirs.isfinite()
    ours, theirs = ours[where], theirs[where]
    return theirs.numel() == 0 or bool((ours - theirs).abs().max() <= 1e-6 * theirs.abs().max())


class _Fixed:
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


def _make(node: Any, quantities: _Fixed) -> Any:
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
    """Return the same with this quantity instead of the Bernoulli likelihood of exact logits."""
    match node:
        case Field():
            return replace(node, quantity=quantity) if node.quantity == BERNOULLI else node
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
    """Yield what is at ``path`` and below, in words; a list of steps stands for its entries."""
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
