"""`outliers find`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyze.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.printing import print_json

if TYPE_CHECKING:
    from analyze.criteria import Criteria


@asks_for_criteria()
def find(
    store: StorePath,
    criteria: Criteria,
    all_conventions: Annotated[
        bool, typer.Option("--all-conventions", help="One row for each signal, counting, layer unit, and first token.")
    ] = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Find the outlier features at one threshold.

    Example: outliers find data/smollm2.zarr --preset study
    """
    from analyze.cluster import scheduler as running
    from analyze.progress import shown

    if all_conventions:
        from analyze.conventions import all_conventions as run

        with running(scheduler, workers), shown("reading activations") as progress:
            rows = run(store, criteria, progress=progress)
        _print_rows(rows, criteria, json_)
        return
    from analyze.find import find_outliers

    with running(scheduler, workers), shown("reading activations") as progress:
        found = find_outliers(store, criteria, progress=progress)
    if json_:
        print_json(found.to_dict())
    else:
        from analyze.tables import print_found

        print_found(found)


def _print_rows(rows: list[dict[str, Any]], criteria: Any, json_: bool) -> None:
    if json_:
        from analyze.find import all_jsonable

        print_json({"criteria": criteria.to_dict(), "rows": all_jsonable(rows)})
    else:
        from analyze.tables import print_rows

        print_rows(
            rows,
            f"|x| >= {criteria.magnitude:g} in at least {criteria.layers * 100:g}% of layer units "
            f"and at {criteria.positions * 100:g}% of positions",
        )
