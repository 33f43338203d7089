"""Proof by running: the original's own forward and ours, in float64, on the same input and the same noise."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..layouts.base import Outcome, Run, Sampler
from ..layouts.structure import LayoutError
from ..layouts.words import in_words, reason
from .difference import ROUNDINGS, ProofError, apart, compare, named, same_draws
from .double import double_by_default
from .inferred import Unknown
from .mirror import plain, switch
from .module import Accelerated, saturate
from .observation import NOISE, SEED, Mode, Observed, RandomDraw, Recorder, fields_of, finite, observe
from .returns import Probe, infer
from .rounding import Shaken

SIZES = {"its own": (3, 2), "random": (4, 3)}  # T and B by whose parameters
_LOCK = threading.RLock()

Accelerate: TypeAlias = Callable[[nn.Module, Outcome, torch.dtype | None], nn.Module]
Example: TypeAlias = Callable[[int, int], tuple[Any, ...]]

MODES = tuple(itertools.starmap(Mode, itertools.product((True, False), (True, False))))
TRIALS = (("its own", Mode(None, gradients=True)), *(("random", mode) for mode in MODES))


def _where(weights: str, module: nn.Module, mode: Mode) -> str:
    training, gradients = "train" if module.training else "eval", "with" if mode.gradients else "without"
    return f"with {weights} parameters in {training}() {gradients} gradients"


class Proven(NamedTuple):
    """The outcome that the original has, and the dtype of its noise; None is that of the parameters."""

    outcome: Outcome
    noise: torch.dtype | None


def prove(
    model: nn.Module, accelerate: Accelerate, outcomes: Iterable[Outcome], example: Example, *, search: bool = True
) -> Proven:
    """Find the first outcome with which the accelerated module does what the original does, or with ``search`` the one
    that :mod:`.returns` finds.

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
    """Prove one outcome, and return the dtype of its noise.

    Raises:
        ProofError: a trial failed; it knows how many had passed.
    """
    twin = _copy(model).double()
    torch.manual_seed(SEED)
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
                ours = observe(fast, inputs[weights], mode, missing)
            compare(theirs, ours, missing, where, outcome.quantities)
        except ProofError as error:
            error.passed = (passed, error.passed[1])
            raise
    return noise


def _theirs(
    twin: nn.Module, inputs: tuple[Any, ...], outcome: Outcome, weights: str, mode: Mode
) -> tuple[Observed, set[str]]:
    """Return what the original gives, and the names of the fields that cannot be compared.

    With its own parameters these are the fields that are no numbers, where a known deviation says so, and those whose
    digits are lost to the original's own rounding.
    """
    where = _where(weights, twin, mode)
    theirs = _observe_original(twin, inputs, outcome, mode, where)
    missing = {name for name, value in theirs.fields.items() if not finite(value)}
    if missing and (weights != "its own" or not any(deviation.no_number for deviation in outcome.deviations.values())):
        first = next(name for name in theirs.fields if name in missing)
        before = list(theirs.fields).index(first)
        raise ProofError(f"{named(first, outcome.quantities)} of the original is not finite {where}", before)
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
    return not (value - shaken).abs().max().item() <= apart(value.abs().max().item(), ROUNDINGS / 8)


def samples(
    model: nn.Module, accelerate: Callable[[nn.Module], nn.Module], sampler: Sampler, features: int
) -> bool | None:
    """Tell whether the original's samples have gradients; None if it has no such method.

    Both sample in float64 on random parameters, in every mode from the same seed: draws and numbers must be the same.

    Raises:
        ProofError: its method does something else.
        LayoutError: the executors cannot do what it does.
    """
    if not callable(getattr(type(model), sampler.method, None)):
        return None
    with _sandbox(model):
        twin = _copy(model).double()
        torch.manual_seed(SEED)
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
            compare(theirs, ours, set(), where, {})
            gradients |= any(isinstance(f, Tensor) and f.requires_grad for f in theirs.fields.values())
    return gradients


def _sampled(module: nn.Module, method: str, inputs: tuple[Any, ...], mode: Mode) -> Observed:
    torch.manual_seed(SEED + 1)
    recorder = Recorder()
    with torch.set_grad_enabled(mode.gradients), double_by_default(), recorder:
        returned = getattr(module, method)(*inputs)
    return Observed(returned, {}, recorder.draws, dict(fields_of("sample", returned)), {})


def _inferred(model: nn.Module, accelerate: Accelerate, example: Example) -> Outcome:
    """Find the outcome that one run of the original tells.

    Raises:
        ProofError: the original gives what is none of the quantities of a run.
    """
    twin = _copy(model).double()
    torch.manual_seed(SEED)
    _redraw(twin)
    inputs = _inputs(example(*SIZES["random"]), twin)
    if len(inputs) > 1:
        raise ProofError(f"forward takes {len(inputs)} arguments: say what it returns with layout={{'outputs': ...}}")
    mode = Mode(None, gradients=True)
    where = _where("random", twin, mode)
    theirs = _observe_original(twin, inputs, Probe(), mode, where)
    probe = Probe(uniform={draw.kind for draw in theirs.draws if draw.kind in NOISE} == {"uniform"})
    with _accelerated(where):
        fast = cast(Accelerated, accelerate(twin, probe, _dtype(theirs.draws)))
        run, draws = _probed(fast, inputs)
    same_draws(theirs.draws, draws, where)
    try:
        found = infer(theirs.returned, theirs.left, run, probe.uniform)
        saturate(fast)
        try:
            theirs = _observe_original(twin, inputs, Probe(), mode, where)
        except ProofError:  # torch.distributions validate: a deviation of 0 is none
            if found.depends_on_saturation:
                raise
            return found
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
    torch.manual_seed(SEED + 1)
    recorder = Recorder()
    with torch.no_grad(), recorder:
        return fast(*inputs), recorder.draws


def _inputs(arguments: tuple[Any, ...], twin: nn.Module) -> tuple[Any, ...]:
    """Put tensors into float64 where the model is; leave whatever else as it is."""
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
        return observe(twin, inputs, mode, leave_out)


@contextmanager
def _original(method: str, inputs: tuple[Any, ...] | None = None, where: str = "") -> Iterator[None]:
    """Run a method of the original inside: what it raises is reported as the original's own error."""
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
    """Run ours inside, the original's own modules included: what it raises is reported as a difference."""
    try:
        yield
    except (LayoutError, ProofError):
        raise
    except Exception as error:
        raise ProofError(
            f"the accelerated forward fails {where}, where the original's does not: {reason(error)}"
        ) from error


def _dtype(draws: Iterable[RandomDraw]) -> torch.dtype | None:
    """Find the dtype of the noise; None is that of the parameters, float64 here."""
    dtypes = {draw.dtype for draw in draws if draw.kind in NOISE}
    return dtypes.pop() if len(dtypes) == 1 and torch.float64 not in dtypes else None


@contextmanager
def _sandbox(model: nn.Module) -> Iterator[None]:
    """Keep the caller's random state, whatever happens inside; one sandbox at a time, since all threads share it."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with _LOCK, torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        yield


def _copy(model: nn.Module) -> nn.Module:
    """Make a deep copy, also of a model that keeps results of its last run."""
    kept = pytree.tree_leaves([list(vars(m).values()) for m in model.modules()])
    memo = {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    with _original("copy.deepcopy"):
        return copy.deepcopy(plain(model), memo)


def _redraw(model: nn.Module) -> None:
    """Draw parameters with which every path matters and nothing saturates."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.8 / math.sqrt(p.shape[-1]) if p.dim() > 1 else 0.3)
