"""`outliers find`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from analyze.commands.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import print_json, print_or_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria

_MOST_SHOWN: Final = 20


@asks_for_criteria()
def find(
    store: StorePath,
    criteria: Criteria,
    all_conventions: Annotated[
        bool, typer.Option("--all-conventions", help="One row for each signal, counting, unit, and tokens left out.")
    ] = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Find the outlier features at one threshold.

    Example: outliers find data/smollm2.zarr --preset study
    """
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running

    if all_conventions:
        from analyze.answers.conventions import all_conventions as run

        with running(scheduler, workers), shown("reading activations") as progress:
            rows = run(store, criteria, progress=progress)
        _print_rows(rows, criteria, json_)
        return
    from analyze.answers.find import find_outliers

    with running(scheduler, workers), shown("reading activations") as progress:
        found = find_outliers(store, criteria, progress=progress)
    print_or_json(found, json_, _MOST_SHOWN)


def _print_rows(rows: list[dict[str, Any]], criteria: Any, json_: bool) -> None:
    if json_:
        from analyze.display.text import jsonable

        print_json({"criteria": criteria.to_dict(), "rows": jsonable(rows)})
    else:
        from analyze.display.tables import print_rows

        print_rows(
            [{**row, "skip_tokens": ", ".join(map(str, row["skip_tokens"]))} for row in rows],
            f"|x| >= {criteria.magnitude:g} in at least {criteria.layers * 100:g}% of layer units "
            f"and at {criteria.positions * 100:g}% of positions",
        )
