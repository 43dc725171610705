"""What every result offers a reader: names with values, records, and from these its text and its HTML.

A result knows nothing of who prints it, and who prints it knows no result: a new one needs no change here.
"""

from __future__ import annotations

from typing import Any, Final

from analyze.display import html
from analyze.display.text import jsonable, record_lines, summary_lines

Record = dict[str, Any]

_MOST_IN_TEXT: Final = 10


class Shown:
    """A result that tells what it holds as a summary, as records, or as both."""

    def summary(self) -> list[tuple[str, Any]]:
        """Names and values for a reader."""
        return []

    def rows(self) -> list[Record]:
        """Records with the same keys: what `--csv` writes."""
        return []

    def tables(self) -> list[tuple[str, list[Record]]]:
        """Everything that is shown as a table, each with a title, which may be empty."""
        return [("", self.rows())]

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints: strict JSON, null for what is not a finite number."""
        return {"rows": jsonable(self.rows())}

    def __str__(self) -> str:
        lines = summary_lines(self.summary())
        for title, records in self.tables():
            lines += ([title] if title else []) + record_lines(records[:_MOST_IN_TEXT])
            if len(records) > _MOST_IN_TEXT:
                lines.append(f"and {len(records) - _MOST_IN_TEXT:,} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tables = [html.rows(records, title or None) for title, records in self.tables()]
        return html.stack(html.facts(self.summary()), *tables)
