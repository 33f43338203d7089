"""Every public docstring shows a line that runs, from where the page of the API says; those of functions begin with a
verb."""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vrnn_fast
from tests.support.foreign import copied

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pages" / "reference.md").read_text()
BEGIN = "from vrnn_fast import *\n\nmodel, x = VRNN(3, 16, 2), torch.rand(5, 4, 3).round()"
NEEDS_NATIVE = ("Stream", "StreamStep")
OF_TABLES = ("Estimator", "Detector", "Forecaster", "Imputer")  # a table of 64 rows, columns a and b, and a folder


def documented(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class that have a docstring of their own, but for those that say how a class
    does what its base's says."""
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("vrnn_fast")]
    for name, member in vars(kind).items():
        shown = callable(member) or isinstance(member, property)
        if shown and member.__doc__ and not name.startswith("_") and not any(name in vars(base) for base in bases):
            yield f"{kind.__name__}.{name}", member


def public() -> Iterator[tuple[str, Any]]:
    """What a user reads: all that is exported, what the page of the API names beside it, and their methods, but those
    of a protocol, which its example shows."""
    exported = [f"vrnn_fast.{name}" for name in vrnn_fast.__all__ if not name.startswith("_")]
    for path in dict.fromkeys((*exported, *re.findall(r"^::: (\S+)", PAGE, flags=re.MULTILINE))):
        found = pkgutil.resolve_name(path)
        if inspect.ismodule(found):
            continue
        yield found.__name__, found
        if inspect.isclass(found) and not getattr(found, "_is_protocol", False):
            yield from documented(found)


SHOWN = dict(public())


def examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(SHOWN[name]) or "")


@pytest.mark.filterwarnings("ignore:accelerated as layout")
@pytest.mark.parametrize("name", SHOWN)
def test_a_public_docstring_shows_a_line_that_runs(name: str, tmp_path: Path) -> None:
    if name.partition(".")[0] in NEEDS_NATIVE:
        pytest.importorskip("vrnn_fast._native", reason="the native module is optional and not built here")
    scope: dict[str, Any] = {"torch": torch, "theirs": copied.VRNN(3, 16, 2)}
    if name.partition(".")[0] in OF_TABLES:
        pandas = pytest.importorskip("pandas", reason="the extra `tables` is not installed")
        scope["folder"] = tmp_path
        scope["table"] = pandas.DataFrame({"a": torch.randn(64).numpy(), "b": torch.randn(64).numpy()})
    exec(BEGIN, scope)
    found = examples(name)
    assert found, f"{name} shows nothing"
    test = doctest.DocTest(found, scope, name, None, None, None)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def test_all_that_is_exported_is_looked_at() -> None:
    assert {n for n in vrnn_fast.__all__ if not n.startswith("_")} <= SHOWN.keys()
    assert {"Run", "Executor", "Backend", "mapped"} <= SHOWN.keys()
    assert {"VRNN.forward", "VRNN.generate", "Likelihood.heads", "Stream.push", "Stream.state"} <= SHOWN.keys()


def test_the_page_says_where_examples_begin() -> None:
    assert BEGIN in PAGE


VERBS = """
Add Apply Average Begin Bound Build Call Check Choose Collect Compare Compile Compute Count Cut Decide Define
Describe Digest Disassemble Divide Do Draw Encode Estimate Fill Filter Find Follow Forecast Forget Gather Give Hang
Hold Infer Join Keep Launch Lay Lead Learn Leave Let List Load Make Measure Mirror Name Open Pad Plot Predict Print
Prove Put Raise Read Rebuild Refuse Rename Repeat Replace Return Run Save Say Score See Set Split Stack Step Take
Tell Time Train Try Turn Wait Weigh Write Yield
"""
# where functions are not looked at yet
ELSEWHERE: tuple[str, ...] = ()


def functions() -> Iterator[tuple[str, str]]:
    """Of every function and method with a docstring, but properties: where it stands, and its first word."""
    for path in sorted(p for folder in ("vrnn_fast", "bench") for p in (ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or (text := ast.get_docstring(node)) is None:
                continue
            if not any(re.search(r"property$|\.setter$", ast.unparse(d)) for d in node.decorator_list):
                yield f"{place}:{node.lineno} {node.name}", text.split()[0].rstrip(",:")


def test_the_docstring_of_a_function_begins_with_a_verb() -> None:
    found, verbs = dict(functions()), VERBS.split()
    assert len(found) > 500
    assert not {place: word for place, word in found.items() if word not in verbs}
