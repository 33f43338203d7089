"""One run of a module, and all that can be seen of it: what it returns, leaves and draws, and its gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..layouts.words import in_words
from .double import double_by_default

SEED = 0
_KINDS = {"randn": "normal", "randn_like": "normal", "normal_": "normal", "normal": "normal"}
_KINDS |= {"rand": "uniform", "rand_like": "uniform", "uniform_": "uniform"}
NOISE = ("normal", "uniform")  # other draws are those of dropout and the like


class RandomDraw(NamedTuple):
    """One draw of random numbers."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def same(self, other: RandomDraw) -> bool:
        """Tell whether a seed gives the same numbers, whatever their shape."""
        return self._replace(shape=()) == other._replace(shape=()) and math.prod(self.shape) == math.prod(other.shape)

    def __str__(self) -> str:
        return f"{self.kind} {self.shape} {str(self.dtype).removeprefix('torch.')}"


class Mode(NamedTuple):
    """What a forward may depend on beside its input.

    Attributes:
        training: of ``train()`` or ``eval()``, or None for the modes in which its modules are.
        gradients: whether they are enabled.
    """

    training: bool | None
    gradients: bool


class Observed(NamedTuple):
    """One forward and backward: what was returned, public attributes left, draws; both taken apart into fields by name,
    and gradients by name."""

    returned: Any
    left: dict[str, Any]
    draws: list[RandomDraw]
    fields: dict[str, Any]
    gradients: dict[str, Tensor | None]


class Recorder(TorchDispatchMode):
    """Notes every draw of random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws: list[RandomDraw] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags and isinstance(result, Tensor):
            name = function.overloadpacket.__name__
            self.draws.append(RandomDraw(_KINDS.get(name, name), tuple(result.shape), result.dtype))
        return result


def _keeping_buffers(observe: Callable[..., Observed]) -> Callable[..., Observed]:
    """Let running statistics begin at the same place for both forwards, which share them."""

    @wraps(observe)
    def kept(module: nn.Module, *args: Any) -> Observed:
        before = [(buffer, buffer.clone()) for buffer in module.buffers()]
        try:
            return observe(module, *args)
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)

    return kept


@_keeping_buffers
def observe(module: nn.Module, inputs: tuple[Any, ...], mode: Mode, leave_out: Iterable[str] = ()) -> Observed:
    """Run forward, and with gradients backward from a fixed mixture of all that it gave."""
    torch.manual_seed(SEED + 1)
    leaves = [
        t.clone().requires_grad_(mode.gradients and t.is_floating_point()) if isinstance(t, Tensor) else t
        for t in inputs
    ]
    before = {name: id(value) for name, value in vars(module).items()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    recorder = Recorder()
    with torch.set_grad_enabled(mode.gradients), double_by_default(), recorder:
        returned = module(*leaves)
    fields = dict(fields_of("output", returned))
    left = {n: v for n, v in vars(module).items() if not n.startswith("_") and id(v) != before.get(n)}
    for name, value in left.items():
        fields |= dict(fields_of(f"attribute {name}", value))
    changed = ((name, b) for name, b in module.named_buffers() if not torch.equal(b, buffers[name]))
    fields |= {f"buffer {name}": buffer.clone() for name, buffer in changed}
    if not mode.gradients:
        return Observed(returned, left, recorder.draws, fields, {})
    mixture = torch.Generator().manual_seed(SEED + 2)
    total = torch.zeros((), dtype=torch.float64)
    for name, value in fields.items():
        if isinstance(value, Tensor) and value.requires_grad and name not in leave_out:
            weights = torch.randn(value.shape, generator=mixture, dtype=torch.float64)
            total = total + (value * weights.to(value.device)).sum().cpu()
    named = [*module.named_parameters(), *((f"input {i}", t) for i, t in enumerate(leaves) if isinstance(t, Tensor))]
    wanted = {f"the gradient of {name}": t for name, t in named if t.requires_grad}
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if total.requires_grad and wanted:
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return Observed(returned, left, recorder.draws, fields, dict(zip(wanted, found, strict=True)))


def fields_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a result is made of, by name: tensors and other values; for a container its class and length first."""
    if isinstance(value, Mapping):
        yield name, f"{type(value).__name__} of {', '.join(map(in_words, value))}"
        for key, entry in value.items():
            yield from fields_of(f"{name}[{in_words(key)}]", entry)
    elif isinstance(value, (tuple, list)):
        yield name, f"{type(value).__name__} of length {len(value)}"
        for i, entry in enumerate(value):
            yield from fields_of(f"{name}[{i}]", entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield name, type(value).__name__
        for field in dataclasses.fields(value):
            yield from fields_of(f"{name}.{field.name}", getattr(value, field.name))
    elif hasattr(value, "__dict__") and not isinstance(value, (Tensor, nn.Module, type)) and not callable(value):
        yield name, type(value).__name__
        for key, entry in vars(value).items():
            yield from fields_of(f"{name}.{key}", entry)
    else:
        yield name, value


def finite(value: Any) -> bool:
    """Tell whether all numbers of a field are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
