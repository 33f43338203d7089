"""Every public docstring shows a line that runs. They begin where the page of the API says that they do."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vrnn_fast
from tests.support.foreign import copied
from vrnn_fast.executors import Backend
from vrnn_fast.layouts.mapping import mapped

BEGIN = "from vrnn_fast import *\n\nmodel, x = VRNN(3, 16, 2), torch.rand(5, 4, 3).round()"
NEEDS_NATIVE = ("Stream", "StreamStep")


def documented(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class that have a docstring of their own, but for those that say how a class
    does what its base's says."""
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("vrnn_fast")]
    for name, member in vars(kind).items():
        shown = callable(member) or isinstance(member, property)
        if shown and member.__doc__ and not name.startswith("_") and not any(name in vars(base) for base in bases):
            yield f"{kind.__name__}.{name}", member


def public() -> Iterator[tuple[str, Any]]:
    """What a user reads: all that is exported, its methods, and what the pages name beside these."""
    for name in (n for n in vrnn_fast.__all__ if not n.startswith("_")):
        found = getattr(vrnn_fast, name)
        yield name, found
        if inspect.isclass(found):
            yield from documented(found)
    yield from (("Backend", Backend), ("mapped", mapped))


SHOWN = dict(public())


def examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(SHOWN[name]) or "")


@pytest.mark.filterwarnings("ignore:accelerated as layout")
@pytest.mark.parametrize("name", SHOWN)
def test_a_public_docstring_shows_a_line_that_runs(name: str) -> None:
    if name.partition(".")[0] in NEEDS_NATIVE:
        pytest.importorskip("vrnn_fast._native", reason="the native module is optional and not built here")
    scope: dict[str, Any] = {"torch": torch, "theirs": copied.VRNN(3, 16, 2)}
    exec(BEGIN, scope)
    found = examples(name)
    assert found, f"{name} shows nothing"
    test = doctest.DocTest(found, scope, name, None, None, None)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def test_all_that_is_exported_is_looked_at() -> None:
    assert {n for n in vrnn_fast.__all__ if not n.startswith("_")} <= SHOWN.keys()
    assert {"VRNN.forward", "VRNN.generate", "Likelihood.heads", "Stream.push", "Stream.state"} <= SHOWN.keys()


def test_the_page_says_where_examples_begin() -> None:
    assert BEGIN in (Path(__file__).parents[2] / "docs" / "pages" / "reference.md").read_text()
