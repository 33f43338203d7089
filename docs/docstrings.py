"""An extension of griffe, which reads the docstrings: it puts what they have of Sphinx in Markdown's words."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
COLONS = re.compile(r"::(?=\n\s*\n)")
ALONE = re.compile(r"^\s*:$\n", flags=re.MULTILINE)
SHARED = re.compile(r"^( +)([a-z]\w*)((?:, [a-z]\w*)+)(: .*(?:\n\1 +.*)*)", flags=re.MULTILINE)


class InMarkdown(Extension):
    """Roles become code, and ``::`` before an indented block a colon or nothing. An entry for several arguments is that
    of the first, to which the others refer: griffe wants one of each."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = ALONE.sub("", COLONS.sub(":", text))
            obj.docstring.value = SHARED.sub(self._apart, text)

    @staticmethod
    def _apart(entry: re.Match[str]) -> str:
        indent, first, others, text = entry.groups()
        referring = (f"{indent}{other}: as `{first}`." for other in others[2:].split(", "))
        return "\n".join([f"{indent}{first}{text}", *referring])
