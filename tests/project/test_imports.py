"""Data flows one way, and so do imports: a part knows those below it and none above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "vrnn_fast"
FLOORS = (
    ("ops", "replacing", "agreement", "checks"),
    ("cell",),
    ("resampling", "likelihoods"),
    ("padding", "parameters", "description", "state_dicts", "call"),
    ("state",),
    ("outputs",),
    ("executors",),
    ("inputs", "bounds"),
    ("inference",),
    ("particles",),
    ("objective", "generation"),
    ("answers",),
    ("model",),
    ("stream", "export", "layouts", "data"),
    ("acceleration", "checkpoints"),
    ("tables",),
    ("training", "adapters"),
    ("cli",),
    ("__main__",),
)
"""The parts of the package, modules and folders, by floor, the lowest first. Those of one floor know nothing of each
other: one that needs another is above it."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path], package: str = ROOT.name) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it, by a relative path or a whole one."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            way = node.module.split(".") if node.module else []
            if node.level:
                base = here[: len(here) - node.level + 1] + way
            elif way[0] == package:
                base = way[1:]
            else:
                continue
            for alias in node.names:
                module = ".".join([*base, alias.name])
                yield module if module in known else ".".join(base)
        elif isinstance(node, ast.Import):
            ways = (alias.name.split(".") for alias in node.names)
            yield from (".".join(way[1:]) for way in ways if way[0] == package)


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    known = modules(root)
    return {name: set(imported(name, path, known, root.name)) - {name} for name, path in known.items() if name}


def floor(name: str) -> int:
    part = name.partition(".")[0]
    if not part:
        return len(FLOORS)  # what a user sees: the names of the package, made of all parts
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def test_every_part_has_a_floor() -> None:
    parts = {name.partition(".")[0] for name in modules() if name}
    assert parts == {part for floor in FLOORS for part in floor}


def test_every_import_runs_downward() -> None:
    """Or stays in its part."""
    arrows = ((name, other) for name, others in graph().items() for other in others)
    between = ((a, b) for a, b in arrows if a.partition(".")[0] != b.partition(".")[0])
    assert not [f"{a} imports {b}" for a, b in between if floor(b) >= floor(a)]


@pytest.mark.parametrize("root", [ROOT, ROOT.parent / "bench"], ids=["package", "benchmarks"])
def test_no_two_modules_import_each_other(root: Path) -> None:
    """Nor along a longer way. A package stands for its ``__init__``."""
    edges, done = graph(root), set[str]()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            pytest.fail(" -> ".join((*way[way.index(name) :], name)))
        if name in done:
            return
        for other in sorted(edges.get(name, ())):
            visit(other, (*way, name))
        done.add(name)

    for name in edges:
        visit(name, ())


def test_every_way_to_write_an_import_is_seen(tmp_path: Path) -> None:
    known, path = modules(), tmp_path / "spec.py"
    for line in ("from ..model import VRNN", "from vrnn_fast.model import VRNN", "from .. import model"):
        path.write_text(line)
        assert set(imported("cell.spec", path, known)) == {"model"}
    path.write_text("def late():\n    import numpy, vrnn_fast.model\n    from vrnn_fast import model")
    assert set(imported("cell.spec", path, known)) == {"model"}
    path.write_text("import torch.nn\nfrom numpy import ndarray")
    assert not set(imported("cell.spec", path, known))


def test_the_package_is_found_as_a_whole() -> None:
    """The other tests see what there is to see."""
    assert len(graph()["model"]) > 5
    assert "cell.partition" in graph()["cell.encode"]


def test_tests_share_what_is_in_support_and_nothing_else() -> None:
    tests = ROOT.parent / "tests"
    own = {path.stem for path in tests.rglob("test_*.py")}
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [node.module or "", *(alias.name for alias in node.names)]
            else:
                continue
            assert not own & {part for name in named for part in name.split(".")}, path
