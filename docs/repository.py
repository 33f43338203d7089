"""A hook of MkDocs: pages link to other files of the repository as files do, ``../../CONTRIBUTING.md``, so that the
links work on a code host too. Here those files become part of the site, under their path from the repository's root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
RESULTS = "bench/results/*.md"
TAKEN = ("CHANGELOG.md", "CONTRIBUTING.md", "examples/*.py", "examples/*.cpp", RESULTS, "bench/results/*/*.svg")


def on_config(config: Any) -> Any:
    benchmarks = next(pages for section in config.nav for title, pages in section.items() if title == "Benchmarks")
    benchmarks += [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(RESULTS))]
    return config


def on_files(files: Files, config: Any) -> Files:
    for path in (path for pattern in TAKEN for path in sorted(ROOT.glob(pattern))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("](../../", "](")
