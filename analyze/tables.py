"""Results as tables for a terminal. Strings from a store are a stranger's: shown, never interpreted."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capture.schema import OutliersError

if TYPE_CHECKING:
    from analyze.dettmers import DettmersTable
    from analyze.find import Outliers
    from analyze.info import Info
    from analyze.null import Null
    from analyze.study.ablations import Ablation
    from analyze.sweeps import Sweep

_MOST_ROWS = 20
_FORMULA: Final = ("=", "+", "-", "@")


def console() -> Console:
    """Standard output; wide where it is no terminal, so that no cell is cut."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def clean(value: Any) -> str:
    """A stranger's text on one line, without control characters or markup."""
    return escape(plain(value))


def plain(value: Any) -> str:
    """A value on one line without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() else " " for character in text)


def _facts(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(clean(name), clean(value))
    return table


def print_found(found: Outliers) -> None:
    """The criterion in words, the counts, and the strongest features."""
    out = console()
    out.print(_facts(found.summary()))
    if not found.features:
        return
    table = Table(title=None, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("sequence", "feature", "L%", "S%", "max |x|", "critical |x|"):
        table.add_column(name, justify="right")
    for row in found.features[:_MOST_ROWS]:
        table.add_row(
            "all" if row.sequence is None else str(row.sequence),
            str(row.feature),
            f"{row.layer_fraction:.1%}",
            f"{row.position_fraction:.1%}",
            f"{row.max_magnitude:.4g}",
            f"{row.critical_magnitude:.4g}",
        )
    out.print()
    out.print(table)
    if len(found.features) > _MOST_ROWS:
        out.print(f"and {len(found.features) - _MOST_ROWS:,} more; --json lists them all")


def print_sweep(result: Sweep) -> None:
    """One row a combination of thresholds."""
    c = result.criteria
    print_rows(result.rows, title=f"norm {c.signal}, scale {c.scale}, layer unit {c.layer_unit}; {c.conventions()}")


def print_info(info: Info) -> None:
    """What a store holds."""
    out = console()
    out.print(_facts(info.summary()))
    out.print()
    out.print(_facts([(name, plain(value)) for name, value in info.known.items()]))


def print_metrics(rows: list[dict[str, Any]], table: DettmersTable, tokens: list[dict[str, Any]]) -> None:
    """Layer by layer, then Table 4, then the tokens with the largest magnitudes."""
    print_rows(rows)
    quartiles = "-" if table.quartiles is None else " / ".join(f"{value:.4g}" for value in table.quartiles)
    facts = [
        ("Table 4 of Dettmers et al.", str(table.criteria)),
        ("outliers, one-sided", f"{table.outliers:,}, {table.one_sided:,}"),
        ("layers, positions", f"{cell('fraction', table.layers)}, {cell('fraction', table.positions)}"),
        ("most common outlier", f"{table.most_common}, quartiles of its hits {quartiles}"),
        ("largest outlier", f"{table.largest}, median magnitude of its hits {cell('', table.largest_median)}"),
    ]
    print()
    console().print(_facts(facts if table.outliers else facts[:2]))
    print()
    print_rows(tokens, title="tokens with the largest magnitudes")


def print_null(result: Null) -> None:
    """Found, and found by chance."""
    console().print(_facts(result.summary()))


def print_ablation(result: Ablation) -> None:
    """What was done and lost, then the attention of each layer."""
    console().print(_facts(result.summary()))
    if rows := [row for row in result.layer_rows() if row["top1_with"] is not None]:
        print()
        print_rows(rows, title="attention top-1, features set to zero in one layer at a time")


def print_rows(rows: list[dict[str, Any]], title: str | None = None) -> None:
    """Dictionaries with the same keys as a table."""
    # Plain text: a rich table of a thousand rows takes longer than the sweep behind it.
    names = list(rows[0]) if rows else []
    cells = [[name.replace("_", " ") for name in names], *([cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    left = [isinstance(rows[0][name], str) for name in names]
    lines = [] if title is None else [plain(title)]
    for line in cells:
        padded = [
            text.ljust(w) if to_left else text.rjust(w) for text, w, to_left in zip(line, widths, left, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    print("\n".join(lines))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Dictionaries with the same keys as a CSV file; blank where a number is missing.

    Raises
    ------
    OutliersError
        The file cannot be written.
    """
    try:
        path.write_text(csv_text(list(rows[0]), rows), encoding="utf-8", newline="")
    except OSError as error:
        raise OutliersError(f"cannot write {path}: {error.strerror}; choose another file") from error


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


def cell(name: str, value: Any) -> str:
    """A value for a reader; fractions as percentages."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1%}" if name.endswith("fraction") else f"{value:.6g}"
    if name.endswith("token_text"):  # in quotes: a token is as often as not a space or the end of a line
        return plain(json.dumps(value, ensure_ascii=False))
    return f"{value:,}" if isinstance(value, int) else plain(value)


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
