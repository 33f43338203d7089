"""The examples run as they are, print something, and show what they say they show."""

from __future__ import annotations

import ast
import importlib.util
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN: dict[str, Callable[[dict[str, Any]], bool]] = {  # what must be true of the names that a script leaves
    "accelerate_model": lambda names: torch.allclose(*names["losses"].values(), rtol=1e-3),
    "conditioning": lambda names: names["obeyed"] > 0.5,  # a fixed direction would be right in half of the steps
    "own_likelihood": lambda names: names["loss"] < (names["known"] + names["constant"]) / 2,
    "own_loop": lambda names: names["elbo"] < names["iwae"] < 0,
    "own_tensor": lambda names: names["losses"][-1] < names["losses"][0] and names["error"] < 0.5,
    "ragged_and_missing": lambda names: names["filled"] < names["guessed"] / 2,
    "rssm": lambda names: names["error"] < 1e-5,
    "streaming": lambda names: names["surprise"][20:].argmax() == 130 and names["error"] < 0.2,
    "with_lightning": lambda names: names["after"] < names["before"],
}
NEEDS = {"streaming": "vrnn_fast._native", "with_lightning": "lightning"}


def test_every_example_is_tried_and_is_short() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHOWN, "teaching"}  # test_teaching.py is the latter's
    for name in SHOWN:
        source = (EXAMPLES / f"{name}.py").read_text()
        assert 15 <= len(source.splitlines()) <= 60, name
        assert "Learn: " in (ast.get_docstring(ast.parse(source)) or ""), name


@pytest.mark.parametrize("name", SHOWN)
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert 1 <= len(capsys.readouterr().out.splitlines()) <= 5
    assert SHOWN[name](names)


@pytest.mark.skipif(importlib.util.find_spec("lightning") is not None, reason="lightning is installed")
def test_a_missing_library_is_named() -> None:
    with pytest.raises(SystemExit, match="pip install lightning"):
        runpy.run_path(str(EXAMPLES / "with_lightning.py"), run_name="__main__")
