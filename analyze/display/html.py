"""Results as HTML for a notebook: plain tables. Strings from a store are a stranger's: shown, never interpreted."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from analyze.display.text import cell

_MOST_ROWS: Final = 20
_MOST_CHARACTERS: Final = 500


def text(value: Any) -> str:
    """Any value as HTML text: on one line, escaped, without control characters, and not endless."""
    words = "".join(c if c.isprintable() else " " for c in str(value))
    if len(words) > _MOST_CHARACTERS:
        words = words[:_MOST_CHARACTERS] + "…"
    return html.escape(words)


def facts(pairs: Iterable[tuple[str, Any]], caption: str | None = None) -> str:
    """Names and values as a table of two columns; empty for none."""
    pairs = list(pairs)
    if not pairs:
        return ""
    body = "".join(f"<tr>{_cell(name, 'th')}{_cell(value)}</tr>" for name, value in pairs)
    return f"<table>{_caption(caption)}<tbody>{body}</tbody></table>"


def rows(entries: Sequence[Mapping[str, Any]], caption: str | None = None) -> str:
    """Mappings with the same keys as a table; of many the first, and how many more there are. Empty for none."""
    if not entries:
        return ""
    names = list(entries[0])
    head = "".join(f"<th>{text(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            _cell(cell(name, entry[name]), right=not isinstance(entry[name], str) or name.endswith("_text"))
            for name in names
        )
        + "</tr>"
        for entry in entries[:_MOST_ROWS]
    )
    more = len(entries) - _MOST_ROWS
    note = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f"<table>{_caption(caption)}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def stack(*parts: str) -> str:
    """Tables below each other."""
    return "<div>" + "".join(parts) + "</div>"


def _caption(words: str | None) -> str:
    return "" if words is None else f"<caption>{text(words)}</caption>"


def _cell(value: Any, tag: str = "td", right: bool = False) -> str:
    align = "right" if right else "left"
    return f'<{tag} style="text-align: {align}">{text(value)}</{tag}>'
