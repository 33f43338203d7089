"""The smallest case that fails as a given one does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

from vrnn_fast import Std

from .case import Case
from .law import Wrong, run

FIRST = ("steps", "batch", "particles", "threads")  # what makes all further tries quicker


def shrink(case: Case, error: Exception) -> Case:
    """Make one field after the other plainer as long as the case fails with the same kind of error."""
    names = dict.fromkeys((*FIRST, *(f.name for f in fields(Case))))
    before = None
    while case != before:
        before = case
        for name in names:
            while plainer := _with_plainer(case, name, error):
                case = plainer
    return case


def failure(case: Case) -> Exception | None:
    """What running it raises, if anything."""
    try:
        run(case)
    except Exception as error:
        return error
    return None


def _with_plainer(case: Case, name: str, error: Exception) -> Case | None:
    """The case with this field as plain as can be in one step."""
    for value in _plainer(getattr(case, name), getattr(Case(), name)):
        candidate = replace(case, **{name: value})
        if _kind(failure(candidate)) == _kind(error):
            return candidate
    return None


def _kind(error: Exception | None) -> object:
    """Its class, and where it was raised unless a case was found to be wrong."""
    trace = error and error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return type(error), None if isinstance(error, Wrong) or not trace else (trace.tb_frame.f_code, trace.tb_lineno)


def _plainer(value: object, default: object) -> Iterator[object]:
    """The default, then values on the way to it."""
    if value == default:
        return
    yield default
    match value:
        case bool():
            return
        case int():
            low = default if isinstance(default, int) else 1
            yield from (v for v in dict.fromkeys((low + (value - low) // 2, value - 1)) if low < v < value)
        case tuple():
            yield from (value[:i] + value[i + 1 :] for i in range(len(value)))
            for i, item in enumerate(value):
                if type(item) is int:
                    smaller = dict.fromkeys(v for v in (0, 1, (item + 1) // 2, item - 1) if v < item)
                    yield from ((*value[:i], v, *value[i + 1 :]) for v in smaller)
        case Mapping():
            yield from ({n: v for n, v in value.items() if n != name} for name in value)
            yield from (value | {n: v} for n, old in value.items() for v in _plainer(old, None) if v is not None)
        case Std():
            (low, high), (none, no_end) = value.clamp, Std().clamp
            yield from (replace(value, clamp=pair) for pair in ((none, high), (low, no_end)) if pair != value.clamp)
            for f in fields(Std):
                own = getattr(value, f.name)
                if f.name == "clamp":
                    continue
                yield from (replace(value, **{f.name: v}) for v in _plainer(own, getattr(Std(), f.name)))
