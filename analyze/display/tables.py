"""Results as tables for a terminal. Strings from a store are a stranger's: shown, never interpreted."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from analyze.display.shown import Shown
from analyze.display.text import clean, plain, record_lines
from capture.store.files import write_file
from capture.store.output import output_file

_FORMULA: Final = ("=", "+", "-", "@")


def console() -> Console:
    """Standard output; wide where it is no terminal, so that no cell is cut."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def print_facts(rows: Iterable[tuple[str, Any]]) -> None:
    """Names and values, aligned; a long value goes on below itself."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(clean(name), clean(value))
    console().print(table)


def print_rows(rows: list[dict[str, Any]], title: str = "") -> None:
    """Dictionaries with the same keys as a table."""
    # Plain text: a rich table of a thousand rows takes longer than the sweep behind it.
    print("\n".join(([plain(title)] if title else []) + record_lines(rows)))


def print_result(result: Shown, most: int | None = None) -> None:
    """A result for a terminal: its summary, then its tables; of each the first `most` records, and how many more."""
    if summary := result.summary():
        print_facts(summary)
    for number, (title, rows) in enumerate(result.tables()):
        if rows:
            if summary or number:
                print()
            print_rows(rows[:most], title)
            if most is not None and len(rows) > most:
                print(f"and {len(rows) - most:,} more; --json lists them all")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Dictionaries with the same keys as a CSV file; blank where a number is missing.

    Raises
    ------
    OutliersError
        The file cannot be written.
    """
    write_file(output_file(path), csv_text(list(rows[0]), rows).encode())


def csv_text(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Columns of dictionaries as CSV that may be opened in a spreadsheet; blank where a number is missing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in names])
    writer.writerows([csv_cell(row[name]) for name in names] for row in rows)
    return buffer.getvalue()


def csv_cell(value: Any) -> Any:
    """A value for a CSV file that may be opened in a spreadsheet.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, which spreadsheets do not show.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
