"""Tables and notes as text: Markdown, LaTeX, or plain in the width of a terminal."""

import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MIB = 1 / 2**20
Row = dict[str, Any]
FORMATS = ("github", "plain", "csv", "latex", "json")


@dataclass(frozen=True)
class Form:
    """How tables are written: one of FORMATS, and how many characters wide a plain one may be."""

    name: str
    width: int | None = None


def titled(text: str, form: Form, title: str | None) -> str:
    """A heading, with what it is about behind it."""
    line = f"{text} - {title}" if title else text
    return {"github": f"### {line}", "latex": f"% {line}"}.get(form.name, line)


def paragraphs(text: str, form: Form) -> str:
    """Text beside tables, line by line."""
    if form.name == "plain" and form.width:
        return "\n".join(
            textwrap.fill(line, form.width, break_long_words=False, break_on_hyphens=False)
            for line in text.splitlines()
        )
    return "\n".join(f"% {line}" for line in text.splitlines()) if form.name == "latex" else text


def cut(text: str, room: int) -> str:
    """A text, or its beginning where it does not fit the room."""
    return text if len(text) <= room else f"{text[: room - 3]}..."


def tabulated(
    table: list[list[str]], headers: list[str], form: Form, right: Collection[int] | None = None, keys: int = 1
) -> str:
    """A table; the columns `right` (None: all but the first) are aligned to the right.

    A plain one that is wider than it may be is cut into several, each of which begins with the first `keys` columns.
    """
    from tabulate import tabulate

    right = range(1, len(headers)) if right is None else right
    kind = {"latex": "latex_booktabs"}.get(form.name, form.name)

    def draw(start: int, end: int) -> str:
        columns = [*range(min(keys, start)), *range(start, end)]
        return tabulate(
            [[line[i] for i in columns] for line in table],
            headers=[headers[i] for i in columns],
            tablefmt=kind,
            colalign=["right" if i in right else "left" for i in columns],
            disable_numparse=True,
        )

    if form.name != "plain" or form.width is None:
        return draw(0, len(headers))
    parts, start = [], 0
    while start < len(headers):
        end = start + 1 if start else min(keys + 1, len(headers))
        while end < len(headers) and max(map(len, draw(start, end + 1).split("\n"))) <= form.width:
            end += 1
        parts.append(draw(start, end))
        start = end
    return "\n\n".join(parts)
