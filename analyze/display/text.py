"""Values as text for a reader, and as strict JSON. Strings from a store are a stranger's: shown, never interpreted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.markup import escape


def percent(fraction: float) -> str:
    """A fraction for a reader."""
    return "none" if math.isnan(fraction) else f"{fraction:.1%}"


def jsonable(value: Any) -> Any:
    """A value as strict JSON: null for a number that is not finite, lists for tuples and arrays, however deep."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's, which need not be imported for this
        return jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parameters(count: int | None) -> str:
    """A number of parameters as papers print it."""
    if count is None:
        return "-"
    for factor, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            return f"{count / factor:.4g}{letter}"
    return str(count)


def clean(value: Any) -> str:
    """A stranger's text on one line, without control characters or markup."""
    return escape(plain(value))


def plain(value: Any) -> str:
    """A value on one line without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() else " " for character in text)


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


def numbered(names: Sequence[str]) -> list[str]:
    """Names, those that are alike with their numbers among all, so that each is another."""
    return [f"{name} ({number})" if name and names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def aligned(lines: Sequence[Sequence[str]], left: Sequence[bool]) -> list[str]:
    """Cells in columns of equal width, those of `left` beginning and the others ending together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    ]


def record_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Records with the same keys as lines of a table; none for none."""
    if not rows:
        return []
    names = list(rows[0])
    cells = [[name.replace("_", " ") for name in names], *([cell(name, row[name]) for name in names] for row in rows)]
    return aligned(cells, [isinstance(rows[0][name], str) for name in names])


def summary_lines(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    """Names and values as aligned lines."""
    return aligned(lines, [True, True]) if (lines := [(plain(name), plain(value)) for name, value in pairs]) else []
