"""The notebooks, which ``make docs`` executes: each is a page that shows its source and draws a picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "pages" / "notebooks").glob("*.md"))
BLOCK = re.compile(r"^```python(.*?)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def test_there_are_four_and_they_are_executed() -> None:
    assert {page.stem for page in NOTEBOOKS} == {"anomalies", "forecasts", "trajectories", "music"}
    assert re.search(r"^  - markdown-exec\b", (DOCS / "mkdocs.yml").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_is_executed_as_it_is_shown(page: Path) -> None:
    """In a session of its own, and compiles; no picture of an older run lies beside it."""
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) >= 3
    for options, source in blocks:
        assert f'exec="on" source="material-block" session="{page.stem}"' in options
        compile(source, str(page), "exec")
        assert max(map(len, source.splitlines())) <= 120
    assert any("figure.savefig(" in source for _, source in blocks)
    assert not [path for path in page.parent.iterdir() if path.suffix != ".md"]
