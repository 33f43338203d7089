"""A name means one thing: no two classes or types of the package and the benchmarks are called the same."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAID_TWICE = {
    "Likelihood": "the stage stands for the object, by whose name everybody knows both",
}
"""Names that two places have, and why."""


def names(path: Path) -> Iterator[str]:
    """Top-level classes, and what is assigned to a name that looks like one."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else (node.target,):
                if isinstance(target, ast.Name) and target.id.lstrip("_")[:1].isupper() and not target.id.isupper():
                    yield target.id


def test_no_two_classes_or_types_have_one_name() -> None:
    places = defaultdict(list)
    for path in sorted(p for folder in ("vrnn_fast", "bench") for p in (ROOT / folder).rglob("*.py")):
        for name in names(path):
            places[name].append(path.relative_to(ROOT).as_posix())
    assert len(places) > 200
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not {name: where for name, where in twice.items() if name not in SAID_TWICE}
    assert twice.keys() == SAID_TWICE.keys(), "an exception that is none any more"
