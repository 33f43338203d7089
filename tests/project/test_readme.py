"""The examples of README and of the documentation's pages run as printed, and what the pages name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vrnn_fast
from bench.readme import SUPPORT, support
from tests.support.foreign import copied, own

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def blocks(page: Path) -> list[str]:
    return PYTHON.findall(page.read_text())


def run(page: Path) -> None:
    """Run a page's examples one after another, in one namespace."""
    names: dict[str, object] = {"their_model": copied.VRNN(28, 100, 16), "own_model": own.SequenceModel(28, 100, 16)}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)


def prose(text: str) -> str:
    """Without code and tables."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)


def test_there_are_pages_and_examples() -> None:
    assert len(PAGES) >= 10
    assert sum(len(blocks(page)) for page in PAGES) >= 20


@pytest.mark.filterwarnings("ignore:accelerated as layout")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_examples_of_a_page(page: Path) -> None:
    run(page)


@pytest.mark.filterwarnings("ignore:accelerated as layout")
def test_examples_of_the_readme_print_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", README.read_text(), flags=re.DOTALL)
    run(README)
    printed = capsys.readouterr().out
    assert NUMBER.sub("", printed) == NUMBER.sub("", shown)
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    assert all(abs(float(found) - float(expected)) <= 0.3 for found, expected in pairs)


def test_the_readme_is_short_and_begins_with_what_to_do() -> None:
    assert len(prose(README.read_text()).split()) <= 1000
    screen = "\n".join(README.read_text().splitlines()[:40])
    assert all(text in screen for text in ("make demo", "make test", "journey.svg"))


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    """Where a code host shows them; mkdocs looks after its own site."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    assert [page.name for page in PAGES if f"(docs/pages/{page.name}" not in README.read_text()] == []


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "pages" / "index.md"], ids=lambda page: page.stem)
def test_what_runs_where_is_what_executors_say(page: Path) -> None:
    assert "\n\n".join([SUPPORT[0], support(), SUPPORT[1]]) in page.read_text()  # else: python -m bench.readme


def test_the_reference_has_whatever_is_exported() -> None:
    found = set(re.findall(r"^::: vrnn_fast\.(\w+)$", (ROOT / "docs" / "pages" / "reference.md").read_text(), re.M))
    assert found >= set(vrnn_fast.__all__) - {"__version__"}
