"""``python -m bench.readme``: write the committed records into README.md as tables."""

from __future__ import annotations

import re

from .record import RESULTS, ROOT, Record
from .table import markdown

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def section(record: Record) -> str:
    """One machine's table below a line that says what it was."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items() if name != "vrnn-fast")
    return (
        f"**{record.processor}**, {record.threads} threads, `{record.kernel_build}` kernels, float32; {versions}; "
        f"{record.date[:10]}, commit {record.commit[:10]}\n\n{markdown(record.rows)}"
    )


def main() -> None:
    """Replace what stands between the two markers."""
    sections = [section(Record.load(path)) for path in sorted(RESULTS.glob("*.json"))]
    readme = ROOT / "README.md"
    text = "\n\n".join([BEGIN, *sections, END])
    readme.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: text, readme.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
