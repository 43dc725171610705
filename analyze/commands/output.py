"""What every subcommand does with its result: one JSON object for `--json`, else its summary and its tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture.errors import OutliersError
from capture.store.output import output_file

if TYPE_CHECKING:
    from analyze.display.shown import Shown


def print_json(result: dict[str, Any]) -> None:
    """Print strict JSON, indented."""
    print(json.dumps(result, allow_nan=False, indent=1))


def check_outputs(*, csv: Path | None = None, plot: Path | None = None) -> None:
    """Refuse files that cannot be written, before the work and not after it.

    Raises
    ------
    OutliersError
        One cannot be, or both are the same.
    """
    if csv is not None:
        csv = output_file(csv)
    if plot is not None:
        from analyze.display.figures import check_path

        plot = check_path(plot)
    if csv is not None and plot is not None and os.path.realpath(csv) == os.path.realpath(plot):
        raise OutliersError(f"--csv and --plot are both {csv}; expected a file each")


def stores_named(rows: list[dict[str, Any]], keep_paths: bool) -> list[dict[str, Any]]:
    """Records of several stores as a file has them: of a store's path the last part, unless paths are to be kept."""
    if keep_paths:
        return rows
    from analyze.display.text import numbered
    from capture.store.privacy import last_part

    places = list(dict.fromkeys(row["store"] or "" for row in rows))
    names = dict(zip(places, numbered([last_part(place) for place in places]), strict=True))
    return [{**row, "store": names[row["store"] or ""]} for row in rows]


def print_or_json(result: Shown, json_: bool, most: int | None = None) -> None:
    """Print a result as JSON, or for a reader; then of each table the first `most` records."""
    if json_:
        print_json(result.to_dict())
        return
    from analyze.display.tables import print_result

    print_result(result, most)
