"""What every subcommand does with its result: one JSON object for `--json`, else its summary and its tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyze.display.shown import Shown


def print_json(result: dict[str, Any]) -> None:
    """Print strict JSON, indented."""
    print(json.dumps(result, allow_nan=False, indent=1))


def print_or_json(result: Shown, json_: bool, most: int | None = None) -> None:
    """Print a result as JSON, or for a reader; then of each table the first `most` records."""
    if json_:
        print_json(result.to_dict())
        return
    from analyze.display.tables import print_result

    print_result(result, most)
