"""Proof by running: the original's own forward and ours, in float64, on the same input and the same noise."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..agreement import allowed
from ..layouts.base import Outcome, Run, Sampler
from ..layouts.structure import LayoutError
from ..layouts.words import in_words, reason
from .double import double_by_default
from .mirror import plain, switch
from .module import Accelerated, saturate
from .returns import Probe, Unknown, infer
from .rounding import Shaken

SIZES = {"its own": (3, 2), "random": (4, 3)}  # T and B by whose parameters
ROUNDINGS = 2**18  # of float64 that two runs in it may be apart, none of them an oracle; one to float32 is 2**29
_SEED = 0
_KINDS = {"randn": "normal", "randn_like": "normal", "normal_": "normal", "normal": "normal"}
_KINDS |= {"rand": "uniform", "rand_like": "uniform", "uniform_": "uniform"}
_NOISE = ("normal", "uniform")  # other draws are those of dropout and the like
_LOCK = threading.RLock()

Accelerate: TypeAlias = Callable[[nn.Module, Outcome, torch.dtype | None], nn.Module]
Example: TypeAlias = Callable[[int, int], tuple[Any, ...]]


class ProofError(RuntimeError):
    """The accelerated module does not compute what the original computes; the message names the first difference.

    ``passed`` counts the trials, and the fields of the next one, that were the same.

    Examples:
        >>> try:
        ...     fast = accelerate(theirs)
        ... except ProofError as error:
        ...     print(error)
    """

    def __init__(self, message: str, fields: int = 0) -> None:
        super().__init__(message)
        self.passed = (0, fields)


class RandomDraw(NamedTuple):
    """One draw of random numbers."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def same(self, other: RandomDraw) -> bool:
        """Whether a seed gives the same numbers, whatever their shape."""
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


MODES = tuple(itertools.starmap(Mode, itertools.product((True, False), (True, False))))
TRIALS = (("its own", Mode(None, gradients=True)), *(("random", mode) for mode in MODES))


def _where(weights: str, module: nn.Module, mode: Mode) -> str:
    training, gradients = "train" if module.training else "eval", "with" if mode.gradients else "without"
    return f"with {weights} parameters in {training}() {gradients} gradients"


class Observed(NamedTuple):
    """One forward and backward: what was returned, public attributes left, draws; both taken apart into fields by name,
    and gradients by name."""

    returned: Any
    left: dict[str, Any]
    draws: list[RandomDraw]
    fields: dict[str, Any]
    gradients: dict[str, Tensor | None]


class Proven(NamedTuple):
    """The outcome that the original has, and the dtype of its noise; None is that of the parameters."""

    outcome: Outcome
    noise: torch.dtype | None


def prove(
    model: nn.Module, accelerate: Accelerate, outcomes: Iterable[Outcome], example: Example, *, search: bool = True
) -> Proven:
    """The first outcome with which the accelerated module does what the original does, or with ``search`` the one
    that :mod:`.inference` finds.

    Both run in float64 on copies of the parameters: as they are, then on random ones, which no symmetry or zero of an
    initialisation can hide, in ``train()`` and ``eval()`` and with and without gradients. Every returned field, every
    tensor left as an attribute and every gradient is compared. The random state is as before afterwards; but torch has
    one for all threads, so one proof runs at a time, and what another thread draws meanwhile comes from the same seed.

    Raises:
        ProofError: no outcome does; the message tells the first difference from the one that came farthest.
    """
    errors = []
    with _sandbox(model):
        for outcome in outcomes:
            try:
                return Proven(outcome, _prove(model, accelerate, outcome, example))
            except ProofError as error:
                errors.append(error)
        try:
            if search:
                outcome = _inferred(model, accelerate, example)
                return Proven(outcome, _prove(model, accelerate, outcome, example))
        except ProofError as error:
            errors.append(error)
    raise max(errors, key=lambda error: error.passed)


def _prove(model: nn.Module, accelerate: Accelerate, outcome: Outcome, example: Example) -> torch.dtype | None:
    """The dtype of the noise.

    Raises:
        ProofError: a trial failed; it knows how many had passed.
    """
    twin = _copy(model).double()
    torch.manual_seed(_SEED)
    noise, fast, inputs = None, None, {}
    for passed, (weights, mode) in enumerate(TRIALS):
        if weights not in inputs:
            if weights == "random":
                _redraw(twin)
            inputs[weights] = _inputs(example(*SIZES[weights]), twin)
        try:
            with _original("train"):
                switch(twin, mode.training)
            theirs, missing = _theirs(twin, inputs[weights], outcome, weights, mode)
            where = _where(weights, twin, mode)
            with _accelerated(where):
                if fast is None:
                    noise = _dtype(theirs.draws)
                    fast = accelerate(twin, outcome, noise)
                switch(fast, mode.training)
                ours = _observe(fast, inputs[weights], mode, missing)
            _compare(theirs, ours, missing, where, outcome.quantities)
        except ProofError as error:
            error.passed = (passed, error.passed[1])
            raise
    return noise


def _theirs(
    twin: nn.Module, inputs: tuple[Any, ...], outcome: Outcome, weights: str, mode: Mode
) -> tuple[Observed, set[str]]:
    """What the original gives, and the names of the fields that cannot be compared: with its own parameters those that
    are no numbers and may be none, and those that have lost their digits to the original's own rounding."""
    where = _where(weights, twin, mode)
    theirs = _observe_original(twin, inputs, outcome, mode, where)
    missing = {name for name, value in theirs.fields.items() if not _finite(value)}
    if missing and (weights != "its own" or not any(deviation.no_number for deviation in outcome.deviations.values())):
        first = next(name for name in theirs.fields if name in missing)
        before = list(theirs.fields).index(first)
        raise ProofError(f"{_named(first, outcome.quantities)} of the original is not finite {where}", before)
    if weights == "its own":
        with Shaken():
            shaken = _observe_original(twin, inputs, outcome, mode, where)
        missing |= {name for name, value in theirs.fields.items() if _moved(value, shaken.fields.get(name))}
    return (_observe_original(twin, inputs, outcome, mode, where, missing) if missing else theirs), missing


def _moved(value: Any, shaken: Any) -> bool:
    if not (isinstance(value, Tensor) and isinstance(shaken, Tensor) and value.is_floating_point()):
        return False
    if value.shape != shaken.shape or value.numel() == 0:
        return value.shape != shaken.shape
    return not (value - shaken).abs().max().item() <= _apart(value.abs().max().item(), ROUNDINGS / 8)


def samples(
    model: nn.Module, accelerate: Callable[[nn.Module], nn.Module], sampler: Sampler, features: int
) -> bool | None:
    """Whether the original's samples have gradients; None if it has no such method.

    Both sample in float64 on random parameters, in every mode from the same seed: draws and numbers must be the same.

    Raises:
        ProofError: its method does something else.
        LayoutError: the executors cannot do what it does.
    """
    if not callable(getattr(type(model), sampler.method, None)):
        return None
    with _sandbox(model):
        twin = _copy(model).double()
        torch.manual_seed(_SEED)
        _redraw(twin)
        fast = accelerate(twin)
        gradients = False
        for mode, arguments in itertools.product(MODES, sampler.examples(features)):
            for module in (twin, fast):
                switch(module, mode.training)
            inputs, where = _inputs(arguments, twin), _where("random", twin, mode)
            with _original(sampler.method, inputs, where):
                theirs = _sampled(twin, sampler.method, inputs, mode)
            ours = _sampled(fast, sampler.method, inputs, mode._replace(gradients=False))
            _compare(theirs, ours, set(), where, {})
            gradients |= any(isinstance(f, Tensor) and f.requires_grad for f in theirs.fields.values())
    return gradients


def _sampled(module: nn.Module, method: str, inputs: tuple[Any, ...], mode: Mode) -> Observed:
    torch.manual_seed(_SEED + 1)
    recorder = _Recorder()
    with torch.set_grad_enabled(mode.gradients), double_by_default(), recorder:
        returned = getattr(module, method)(*inputs)
    return Observed(returned, {}, recorder.draws, dict(_fields("sample", returned)), {})


def _inferred(model: nn.Module, accelerate: Accelerate, example: Example) -> Outcome:
    """The outcome that one run of the original tells.

    Raises:
        ProofError: the original gives what is none of the quantities of a run.
    """
    twin = _copy(model).double()
    torch.manual_seed(_SEED)
    _redraw(twin)
    inputs = _inputs(example(*SIZES["random"]), twin)
    if len(inputs) > 1:
        raise ProofError(f"forward takes {len(inputs)} arguments: say what it returns with layout={{'outputs': ...}}")
    mode = Mode(None, gradients=True)
    where = _where("random", twin, mode)
    theirs = _observe_original(twin, inputs, Probe(), mode, where)
    probe = Probe(uniform={draw.kind for draw in theirs.draws if draw.kind in _NOISE} == {"uniform"})
    with _accelerated(where):
        fast = cast(Accelerated, accelerate(twin, probe, _dtype(theirs.draws)))
        run, draws = _probed(fast, inputs)
    _same_draws(theirs.draws, draws, where)
    try:
        found = infer(theirs.returned, theirs.left, run, probe.uniform)
        saturate(fast)
        theirs = _observe_original(twin, inputs, Probe(), mode, where)
        with _accelerated(where):
            run, _ = _probed(fast, inputs)
        return found.settled(theirs.returned, theirs.left, run)
    except Unknown as unknown:
        name = unknown.name
        raise ProofError(
            f"{name}, {in_words(theirs.fields[name])}, {unknown.words}: say what forward returns with "
            "layout={'outputs': ...}",
            list(theirs.fields).index(name),
        ) from None


def _probed(fast: Accelerated, inputs: tuple[Any, ...]) -> tuple[Run, list[RandomDraw]]:
    torch.manual_seed(_SEED + 1)
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        return fast(*inputs), recorder.draws


def _inputs(arguments: tuple[Any, ...], twin: nn.Module) -> tuple[Any, ...]:
    """Tensors in float64 where the model is; whatever else as it is."""
    device = next(twin.parameters()).device

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(device, torch.float64 if value.is_floating_point() else value.dtype)

    return tuple(map(moved, arguments))


def _observe_original(
    twin: nn.Module,
    inputs: tuple[Any, ...],
    outcome: Outcome,
    mode: Mode,
    where: str,
    leave_out: Iterable[str] = (),
) -> Observed:
    with _original("forward", inputs, where), outcome.repaired():
        return _observe(twin, inputs, mode, leave_out)


@contextmanager
def _original(method: str, inputs: tuple[Any, ...] | None = None, where: str = "") -> Iterator[None]:
    """Where a method of the original runs: whatever it raises is its own affair."""
    try:
        yield
    except Exception as error:
        other = " (another one can be given as example=)" if method == "forward" else ""
        on = "" if inputs is None else f" in float64 on {', '.join(map(_given, inputs))}{other}, {where}"
        raise ProofError(f"the original's own {method} fails{on}: {reason(error)}") from error


def _given(value: Any) -> str:
    return f"an input of shape {tuple(value.shape)}" if isinstance(value, Tensor) else in_words(value)


@contextmanager
def _accelerated(where: str) -> Iterator[None]:
    """Where ours runs, and in it the original's own modules: what they raise is a difference, too."""
    try:
        yield
    except (LayoutError, ProofError):
        raise
    except Exception as error:
        raise ProofError(
            f"the accelerated forward fails {where}, where the original's does not: {reason(error)}"
        ) from error


def _dtype(draws: Iterable[RandomDraw]) -> torch.dtype | None:
    """That of the noise; None is that of the parameters, float64 here."""
    dtypes = {draw.dtype for draw in draws if draw.kind in _NOISE}
    return dtypes.pop() if len(dtypes) == 1 and torch.float64 not in dtypes else None


@contextmanager
def _sandbox(model: nn.Module) -> Iterator[None]:
    """Random state of the caller's own, whatever happens inside; one sandbox at a time, since all threads share it."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with _LOCK, torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        yield


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that keeps results of its last run."""
    kept = pytree.tree_leaves([list(vars(m).values()) for m in model.modules()])
    memo = {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    with _original("copy.deepcopy"):
        return copy.deepcopy(plain(model), memo)


def _redraw(model: nn.Module) -> None:
    """Parameters with which every path matters and nothing saturates."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.8 / math.sqrt(p.shape[-1]) if p.dim() > 1 else 0.3)


class _Recorder(TorchDispatchMode):
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
    """Running statistics begin at the same place for both forwards, which share them."""

    @wraps(observe)
    def kept(module: nn.Module, *args: Any) -> Observed:
        held = [(buffer, buffer.clone()) for buffer in module.buffers()]
        try:
            return observe(module, *args)
        finally:
            with torch.no_grad():
                for buffer, before in held:
                    buffer.copy_(before)

    return kept


@_keeping_buffers
def _observe(module: nn.Module, inputs: tuple[Any, ...], mode: Mode, leave_out: Iterable[str] = ()) -> Observed:
    """Run forward, and with gradients backward from a fixed mixture of all that it gave."""
    torch.manual_seed(_SEED + 1)
    leaves = [
        t.clone().requires_grad_(mode.gradients and t.is_floating_point()) if isinstance(t, Tensor) else t
        for t in inputs
    ]
    before = {name: id(value) for name, value in vars(module).items()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    recorder = _Recorder()
    with torch.set_grad_enabled(mode.gradients), double_by_default(), recorder:
        returned = module(*leaves)
    fields = dict(_fields("output", returned))
    left = {n: v for n, v in vars(module).items() if not n.startswith("_") and id(v) != before.get(n)}
    for name, value in left.items():
        fields |= dict(_fields(f"attribute {name}", value))
    changed = ((name, b) for name, b in module.named_buffers() if not torch.equal(b, buffers[name]))
    fields |= {f"buffer {name}": buffer.clone() for name, buffer in changed}
    if not mode.gradients:
        return Observed(returned, left, recorder.draws, fields, {})
    mixture = torch.Generator().manual_seed(_SEED + 2)
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


def _fields(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a result is made of, by name: tensors and other values; for a container its class and length first."""
    if isinstance(value, Mapping):
        yield name, f"{type(value).__name__} of {', '.join(map(in_words, value))}"
        for key, entry in value.items():
            yield from _fields(f"{name}[{in_words(key)}]", entry)
    elif isinstance(value, (tuple, list)):
        yield name, f"{type(value).__name__} of length {len(value)}"
        for i, entry in enumerate(value):
            yield from _fields(f"{name}[{i}]", entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield name, type(value).__name__
        for field in dataclasses.fields(value):
            yield from _fields(f"{name}.{field.name}", getattr(value, field.name))
    elif hasattr(value, "__dict__") and not isinstance(value, (Tensor, nn.Module, type)) and not callable(value):
        yield name, type(value).__name__
        for key, entry in vars(value).items():
            yield from _fields(f"{name}.{key}", entry)
    else:
        yield name, value


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


_CURE = (
    "layout={'outputs': ...} says what forward returns; "
    "'activation', 'input_order' and 'std' beside it say how the cell computes"
)


def _compare(theirs: Observed, ours: Observed, missing: set[str], where: str, quantities: Mapping[str, str]) -> None:
    """Raise at the first difference of draws, fields or gradients."""
    _same_draws(theirs.draws, ours.draws, where)
    for place, (name, value) in enumerate(theirs.fields.items()):
        if name not in ours.fields:
            raise ProofError(f"{name} is missing {where}, which the original gives", place)
        difference = None if name in missing else _difference(value, ours.fields[name], where)
        if difference is not None:
            cure = f" ({_CURE})" if name.startswith("output") else ""
            raise ProofError(f"{_named(name, quantities)} {difference}{cure}", place)
    for name in ours.fields:
        if name not in theirs.fields:
            raise ProofError(f"{name} is given {where}, which the original does not give", len(theirs.fields))
    scale = max((g.abs().max().item() for g in theirs.gradients.values() if g is not None and g.numel()), default=0.0)
    for name, gradient in theirs.gradients.items():
        difference = _difference(gradient, ours.gradients[name], where, scale)
        if difference is not None:
            raise ProofError(f"{name} {difference}", len(theirs.fields))


def _same_draws(theirs: list[RandomDraw], ours: list[RandomDraw], where: str) -> None:
    if len(theirs) != len(ours):
        counts = [_counted(draws) for draws in (theirs, ours)]
        raise ProofError(
            f"the noise differs {where}: the original draws {counts[0]}, the accelerated one {counts[1]}, "
            "once for each step of x (layout={'skip': ...} says how many steps the original leaves out)"
        )
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True), 1):
        if not their.same(our):
            raise ProofError(
                f"the noise differs {where} in draw {number} of {len(theirs)}: the original draws {their}, the "
                f"accelerated one {our} (layout={{'noise': ...}} says how a step's noise is drawn)"
            )


def _counted(draws: list[RandomDraw]) -> str:
    if not draws:
        return "nothing"
    return f"{draws[0]} and so on, {len(draws)} times" if len(draws) > 1 else f"{draws[0]} once"


def _named(name: str, quantities: Mapping[str, str]) -> str:
    words = quantities.get(name) or quantities.get(name.rpartition("[")[0])  # of a list of steps
    return f"{name}, {words}," if words else name


def _difference(theirs: Any, ours: Any, where: str, scale: float | None = None) -> str | None:
    """How two values differ, or None if they do not."""
    both = f"differs {where}: the original gives {in_words(theirs)}, the accelerated one {in_words(ours)}"
    if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor):
        return None if type(theirs) is type(ours) and _alike(theirs, ours) else both
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype or theirs.device != ours.device:
        return both
    if theirs.numel() == 0 or theirs.dtype == torch.bool:
        return None if torch.equal(theirs, ours) else f"differs {where}"
    size = (theirs - ours).abs().max().item()
    largest = theirs.abs().max().item()
    if size <= _apart(largest if scale is None else scale):
        return None
    return f"differs by {size:.3g} {where}, where the original's largest value is {largest:.3g}"


def _apart(largest: float, roundings: float = ROUNDINGS) -> float:
    """How far apart values may be of which the largest is so large."""
    return allowed(0, largest, torch.float64, roundings=roundings)


def _alike(theirs: Any, ours: Any) -> bool:
    """Whether two values of one class, no tensors, are the same; whatever a foreign class says to that, they are not
    if it does not say yes."""
    try:
        if isinstance(theirs, (float, np.ndarray)):
            return bool(np.allclose(theirs, ours, rtol=_apart(1), atol=_apart(1), equal_nan=True))
        return bool(theirs == ours)
    except Exception:
        return False
