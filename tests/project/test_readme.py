"""The README's examples run, one after another, as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.foreign import copied, own

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.filterwarnings("ignore:accelerated as layout")
def test_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {
        "their_model": copied.VRNN(28, 100, 16),
        "own_model": own.SequenceModel(28, 100, 16),
    }
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
