"""Values as text for a reader, and as strict JSON. Strings from a store are a stranger's: shown, never interpreted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from rich.markup import escape


def percent(fraction: float) -> str:
    """A fraction for a reader."""
    return "none" if math.isnan(fraction) else f"{fraction:.1%}"


def jsonable(value: Any) -> Any:
    """A value with null for a number that is not finite: JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def all_jsonable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with null for every number that is not finite: JSON knows no NaN."""
    return [{name: jsonable(value) for name, value in row.items()} for row in rows]


def strict(value: Any) -> Any:
    """A JSON value without NaN and infinities, which Zarr attributes may hold."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
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
